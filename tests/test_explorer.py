"""The explorer against brute force, and its widgets as a click moves them."""

import re

import numpy as np
import pytest
import torch

from bonlib.bag import BagOfNegatives
from bonlib.study.analysis import embed_all
from bonlib.study.config import Config
from bonlib.study.experiment import Experiment
from bonlib.study.explorer import Dial, Explorer, Story, draw_view, draw_windows, look, over_time, telling_anchor
from bonlib.study.live import watch

SMALL = {"identities": 60, "batch_size": 40, "steps": 30, "evaluate_every": 15, "bits": 5}


@pytest.fixture(scope="module")
def story():
    experiment = Experiment(Config(miner="bag", form="set", **SMALL))
    told = Story(experiment)
    watch(experiment, on_evaluation=told.remember)
    return told


@pytest.mark.parametrize("moment", [0, -1])
def test_a_view_is_what_brute_force_finds(story, moment):
    anchor, seen, labels = telling_anchor(story), story.moments[moment], story.dataset.labels.numpy()
    view = look(story, anchor, moment)
    rows = seen.embeddings.float()
    distances = torch.cdist(rows[anchor][None], rows, compute_mode="donot_use_mm_for_euclid_dist")[0].numpy()
    same = labels == labels[anchor]
    in_bucket = (seen.codes == seen.codes[anchor]) & (seen.codes >= 0)
    assert set(view.bag) == set(np.flatnonzero(in_bucket & ~same))
    assert set(view.positives) == set(np.flatnonzero(in_bucket & same)) - {anchor}
    assert (np.diff(distances[view.bag]) >= -1e-5).all()
    nearer = [(distances[~same] < distances[i] - 1e-5).sum() for i in view.bag]
    assert (view.bag_ranks > nearer).all()
    assert sorted(distances[view.nearest]) == pytest.approx(np.sort(distances[~same])[: len(view.nearest)], abs=1e-5)
    assert view.negatives == (~same).sum()
    if view.code:
        assert int(view.code, 2) == seen.codes[anchor]


def test_the_anchor_to_look_at_has_a_bag_that_holds_most_of_its_nearest(story):
    labels = story.dataset.labels.numpy()
    views = [look(story, anchor) for anchor in range(len(labels))]
    held = {v.anchor: len({*v.bag} & {*v.nearest}) for v in views if len({*labels[v.bag]}) > 2 and len(v.bag) > 7}
    assert held[telling_anchor(story, of=len(labels))] == max(held.values()) > 0


def test_moments_differ_and_the_table_tells_of_each(story):
    table = over_time(story, anchors=40, margin=0.3)
    assert table.index.tolist() == [15, 30]
    assert (story.moments[0].codes != story.moments[1].codes).any()
    assert table["active"].between(0, 1).all()
    assert table["rank"].between(1, len(story.dataset)).all()


def test_every_triplet_is_active_under_a_wide_margin_and_none_of_it_under_a_negative_one(story):
    wide, none = over_time(story, anchors=20, margin=2.1), over_time(story, anchors=20, margin=-2.1)
    assert (wide[["active", "active by chance"]] == 1).all(axis=None)
    assert (none[["active", "active by chance"]] == 0).all(axis=None)


def test_bags_over_time_are_those_of_single_views(story):
    """With every sample an anchor, sizes are the mean over all bags that are not empty."""
    table = over_time(story, anchors=len(story.dataset))
    sizes = [len(look(story, anchor, 0, nearest=0).bag) for anchor in range(len(story.dataset))]
    assert table.loc[15, "negatives"] == pytest.approx(np.mean([size for size in sizes if size]))


def test_the_figure_shows_anchor_positives_bag_and_nearest(story):
    view = look(story, telling_anchor(story))
    figure = draw_view(story, view)
    pictures = sum(bool(ax.images) for ax in figure.axes)
    assert pictures == 1 + min(len(view.positives), 11) + 2 * min(len(view.bag), 12) + len(view.nearest)
    assert view.code in figure.get_suptitle()


def test_long_names_do_not_run_into_each_other(story):
    names = story.dataset.class_names
    story.dataset.class_names = [f"{name}, a place of a very long name" for name in names]
    figure = draw_view(story, look(story, telling_anchor(story)))
    story.dataset.class_names = names
    figure.canvas.draw()
    for ax in figure.axes:
        label, width = ax.xaxis.label, ax.get_window_extent().width
        assert label.get_window_extent().width <= 1.25 * width, label.get_text()


def test_slider_search_and_clicks_move_the_explorer(story):
    explorer = Explorer(story, telling_anchor(story))
    first = explorer.view
    explorer.time.value = 0
    assert (explorer.view.anchor, explorer.view.step) == (first.anchor, 15)
    name = story.dataset.class_names[7]
    explorer.search.value = name
    assert story.dataset.labels[explorer.view.anchor] == 7
    explorer.search.value = "no such class"
    assert story.dataset.labels[explorer.view.anchor] == 7
    explorer.random.click()
    nearest = explorer.view.nearest[0]
    last_row = explorer.images.children[-1]
    last_row.children[0].children[0].click()  # the button that is the picture of the nearest negative
    assert explorer.view.anchor == nearest
    assert f".{explorer._prefix}-{nearest}{{background" in explorer._style.value
    other = Explorer(story, explorer.view.anchor)  # perhaps of another notebook, on the same page
    assert not set(re.findall(r"\.bonlib[\w-]+", explorer._style.value)) & set(
        re.findall(r"\.bonlib[\w-]+", other._style.value)
    )


def test_a_story_follows_an_experiment_that_is_run_again(folders):
    config = Config(
        dataset="glyphs", identities=60, miner="bag", batch_size=24, steps=20, evaluate_every=10, test=False
    )
    experiment = Experiment(config)
    story = Story(experiment)
    story.remember(0)
    for _ in range(2):
        for step in experiment:
            if step.metrics is not None:
                story.remember(step.step)
    assert [moment.step for moment in story.moments] == [0, 10, 20]
    last, everyone = story.moments[-1], np.arange(len(story.dataset))
    assert torch.equal(last.embeddings, embed_all(experiment.encoder, experiment.train))
    assert (last.codes == experiment.miner.codes(everyone)).all()


def test_an_anchor_without_a_code_has_an_empty_bag(story):
    unseen = np.flatnonzero(story.moments[0].codes < 0)
    view = look(story, int(unseen[0]), 0)
    assert (view.code, len(view.bag)) == ("", 0)
    draw_view(story, view)


def test_what_cannot_be_looked_at_is_refused(story):
    with pytest.raises(ValueError, match="anchor is -1; allowed are 0 to"):
        look(story, -1)
    empty = Story.__new__(Story)
    empty.moments = []
    with pytest.raises(ValueError, match="no moments"):
        look(empty, 0)
    with pytest.raises(ValueError, match="miner is 'random', which has no buckets"):
        Story(Experiment(Config(miner="random", form="set", **SMALL | {"bits": None})))


def test_the_dial_shows_the_identities_of_its_window(story):
    embeddings = story.moments[-1].embeddings.float()
    bag = BagOfNegatives(story.dataset.labels, embeddings.shape[1], batch_size=8, per_class=2)
    bag.fill(lambda ids: embeddings[ids])
    figure = draw_windows(story.dataset, bag, 5, [(0, 3), (10, 12)])
    assert sum(bool(ax.images) for ax in figure.axes) == (1 + 3) + (1 + 2)
    shown = [np.asarray(ax.images[0].get_array()) for ax in figure.axes if ax.images]
    pool = bag.candidates(5)
    expected = [5, *(bag.samples_of(c)[0] for c in pool[:3]), 5, *(bag.samples_of(c)[0] for c in pool[10:12])]
    for image, i in zip(shown, expected, strict=True):
        assert (image == story.dataset.pixels([i])[0].squeeze()).all()
    dial = Dial(story.dataset, bag, 5)
    first = bytes(dial.image.value)
    assert first.startswith(b"\x89PNG")
    assert dial.window.value == bag.window
    dial.window.value = (20, 30)
    assert bytes(dial.image.value) != first
    anchor = dial.anchor
    dial.random.click()
    assert dial.anchor != anchor
