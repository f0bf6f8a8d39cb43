"""Figures: labelled, drawn from the data given, and saved byte-stable."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from bonlib import plots
from bonlib.style import INK, MINER_COLOURS, save_figure

METHODS = [("random", "set", "batch-hard"), ("bag", "set", "batch-hard"), ("bag", "triplet", "triplet")]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def history():
    rng = np.random.default_rng(0)
    rows = [
        {"key": f"{miner}{form}{seed}", "miner": miner, "form": form, "loss": loss, "seed": seed, "step": step,
         "images": step * 128, "training_seconds": step * 0.1, "loss_value": 0.1, "active": 1 / step,
         "recall@1": 0.5 + step / 100 + rng.normal() / 100}
        for miner, form, loss in METHODS for seed in range(3) for step in (10, 20, 30)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def lines_by_label(ax):
    return {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}


@pytest.mark.parametrize("x", ["images", "training_seconds"])
def test_curves_are_means_over_seeds_in_the_miners_colour(history, x):
    (ax,) = plots.compare(history, x).axes
    lines = lines_by_label(ax)
    assert set(lines) == {"random sets + batch-hard", "BoN sets + batch-hard", "BoN triplets"}
    expected = history.query("miner == 'bag' and form == 'triplet'").groupby("step")[[x, "recall@1"]].mean()
    assert lines["BoN triplets"].get_xydata() == pytest.approx(expected.to_numpy())
    assert lines["BoN triplets"].get_color() == lines["BoN sets + batch-hard"].get_color() == MINER_COLOURS["bag"]
    assert lines["BoN triplets"].get_linestyle() != lines["BoN sets + batch-hard"].get_linestyle()
    assert ax.get_xlabel()
    assert ax.get_ylabel()


def test_final_scores_show_every_seed_best_method_on_top(history):
    runs = history.query("step == 30").assign(**{"metrics.recall@1": lambda frame: frame["recall@1"]})
    (ax,) = plots.final_scores(runs).axes
    assert len(ax.get_yticklabels()) == 3
    means = runs.groupby(["miner", "form"])["recall@1"].mean().sort_values()
    shown = [float(text.get_text()) for text in ax.texts]
    assert shown == pytest.approx(means.tolist(), abs=6e-4)


def test_one_seed_has_no_interval(history):
    one = history.query("seed == 0")
    (ax,) = plots.compare(one, "images").axes
    assert not ax.collections
    (ax,) = plots.final_scores(one.query("step == 30").rename(columns={"recall@1": "metrics.recall@1"})).axes
    assert len(ax.get_lines()) == 3


def test_active_shares_and_densities_are_labelled(history):
    for figure in (
        plots.active_over_training(history),
        plots.distances_to_negatives({"random": np.random.default_rng(0).random(50), "BoN": np.linspace(0, 1, 50)}),
        plots.bit_balance(np.full(5, 0.5)),
        plots.occupancy(np.array([3, 1, 4]), np.array([2, 1, 2])),
        plots.embedding_map(np.zeros((3, 2)), {"101": np.array([True, False, True])}),
    ):
        for ax in figure.axes:
            assert ax.get_xlabel(), figure
            assert ax.get_ylabel(), figure


def test_a_curve_of_probabilities_ends_where_there_are_none():
    curve = pd.DataFrame({"distance": [0.1, 0.2, 0.3], "probability": [0.5, 0.01, 0.0]})
    (ax,) = plots.same_bucket({"8 bits": curve}).axes
    assert lines_by_label(ax)["8 bits"].get_xydata().tolist() == [[0.1, 0.5], [0.2, 0.01]]


def test_rows_of_images_may_differ_in_length():
    figure = plots.image_grid([np.zeros((3, 1, 8, 8)), np.zeros((1, 8, 8))], ["a", "b"], "title")
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 1, 1, 0, 0]


def test_equal_pictures_give_equal_files(folders):
    saved = []
    for _ in range(2):
        figure, ax = plt.subplots()
        ax.plot([1, 2], [3, 4], color=INK)
        png = save_figure(figure, "00_test")
        saved.append((png.read_bytes(), png.with_suffix(".svg").read_bytes()))
    assert saved[0] == saved[1]
    assert sorted(path.name for path in (folders / "figures").iterdir()) == ["00_test.png", "00_test.svg"]
