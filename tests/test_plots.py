"""Figures: labelled, drawn from the data given, and saved byte-stable."""

import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from bonlib.core.hashes import make_hasher
from bonlib.core.paths import project_dir
from bonlib.study import figures
from bonlib.study.figures.style import INK, MINER_COLOURS, save_figure
from bonlib.study.names import method_name
from bonlib.study.statistics import against, cost_table

sys.path.insert(0, str(project_dir() / "benchmarks"))
import cost_figures

METHODS = [("random", "set", "batch-hard"), ("bag", "set", "batch-hard"), ("bag", "triplet", "triplet")]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def history():
    rng = np.random.default_rng(0)
    rows = [
        {"key": f"{miner}{form}{seed}", "miner": miner, "form": form, "loss": loss, "seed": seed,
         "method": method_name(miner, form, loss), "step": step,
         "images": step * 128, "training_seconds": step * 0.1, "loss_value": 0.1, "active": 1 / step,
         "recall@1": 0.5 + step / 100 + rng.normal() / 100}
        for miner, form, loss in METHODS for seed in range(3) for step in (10, 20, 30)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def lines_by_label(ax):
    return {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}


@pytest.mark.parametrize("x", ["images", "training_seconds"])
def test_curves_are_means_over_seeds_in_the_miners_colour(history, x):
    (ax, *_) = figures.opponents(history, x, ["random sets + batch-hard", "first-stage sets + batch-hard"]).axes
    lines = lines_by_label(ax)
    assert set(lines) == {"random sets + batch-hard", "first-stage sets + batch-hard", "first-stage triplets"}
    expected = history.query("miner == 'bag' and form == 'triplet'").groupby("step")[[x, "recall@1"]].mean()
    assert lines["first-stage triplets"].get_xydata() == pytest.approx(expected.to_numpy())
    triplets, sets = lines["first-stage triplets"], lines["first-stage sets + batch-hard"]
    assert triplets.get_color() == sets.get_color() == MINER_COLOURS["bag"]
    assert triplets.get_linestyle() != sets.get_linestyle()
    assert ax.figure.get_supxlabel()
    assert ax.figure.get_supylabel()


def test_final_scores_show_every_seed_best_method_on_top(history):
    runs = history.query("step == 30").assign(**{"metrics.recall@1": lambda frame: frame["recall@1"]})
    (ax,) = figures.final_scores(runs).axes
    assert len(ax.get_yticklabels()) == 3
    means = runs.groupby(["miner", "form"])["recall@1"].mean().sort_values()
    shown = [float(text.get_text()) for text in ax.texts]
    assert shown == pytest.approx(means.tolist(), abs=6e-4)


def test_one_seed_has_no_interval(history):
    one = history.query("seed == 0")
    (ax, *_) = figures.opponents(one, "images", ["random sets + batch-hard"]).axes
    assert not ax.collections
    (ax,) = figures.final_scores(one.query("step == 30").rename(columns={"recall@1": "metrics.recall@1"})).axes
    assert len(ax.get_lines()) == 3


def test_each_opponent_has_a_panel_over_the_references(history):
    figure = figures.opponents(history, "images", ["random sets + batch-hard", "first-stage sets + batch-hard"])
    shown = [ax for ax in figure.axes if ax.axison]
    assert [ax.get_title("left") for ax in shown] == ["first-stage triplets"]
    assert [line.get_color() for line in shown[0].get_lines()] == [
        MINER_COLOURS["random"],
        MINER_COLOURS["bag"],
        MINER_COLOURS["bag"],
    ]


def test_leads_and_costs_are_drawn_as_the_tables_say(history):
    runs = history.query("step == 30").assign(
        steps=30, peak_memory_gib=1.0, **{f"seconds.{part}": 0.3 for part in ("draw", "data", "compute", "hash")}
    )
    table = against(runs, "recall@1", "first-stage triplets")
    ax, other = figures.leads({"one": table, "another": table.iloc[:1]}, "first-stage triplets").axes
    assert (ax.get_title("left"), other.get_title("left")) == ("one", "another")
    assert [text.get_text() for text in ax.get_yticklabels()] == table.index.tolist()
    points = [line.get_xdata()[0] for line in ax.get_lines() if len(line.get_xdata()) == 1]
    assert points == pytest.approx((100 * table["lead"]).tolist())
    costs = cost_table(runs)
    assert costs["total"].tolist() == pytest.approx(
        [40] * 3
    )  # four parts of 0.3 s in 30 steps; records without refresh
    assert costs["miner_share"].tolist() == pytest.approx([0.5] * 3)
    (ax,) = figures.costs(costs).axes
    assert sum(bar.get_width() for bar in ax.patches) == pytest.approx(120)


def test_leads_over_identities_stand_where_the_tables_say():
    table = pd.DataFrame({"identities": [10, 100], "lead": [0.01, 0.03], "low": [0.0, 0.02], "high": [0.02, 0.05]})
    (ax,) = figures.leads_over_identities({"bag": table, "two-stage-bag": table.assign(lead=0.02)}).axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["first-stage sets", "two-stage sets"]
    line, _, (bars,) = ax.containers[0]
    assert line.get_ydata() == pytest.approx([1, 3])
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [[0, 2], [2, 5]]


def test_a_metric_over_a_setting_has_a_line_a_miner(history):
    runs = history.query("form == 'set'").rename(columns={"recall@1": "validation.recall@1"}).assign(dataset="one")
    (ax,) = figures.over(runs, "step", "steps").axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["random sets", "first-stage sets"]
    expected = runs.query("miner == 'bag'").groupby("step")["validation.recall@1"].mean()
    assert ax.containers[1].lines[0].get_ydata() == pytest.approx(expected.to_numpy())
    other = runs.assign(dataset="another", **{"validation.recall@1": runs["validation.recall@1"] / 2})
    first, second = figures.over(pd.concat([runs, other]), "step", "steps").axes
    assert second.get_title("left") == "another"
    for panel, share in ((first, 1), (second, 0.5)):
        assert panel.containers[1].lines[0].get_ydata() == pytest.approx(share * expected.to_numpy())


def test_methods_stand_side_by_side_best_on_top():
    methods = {"method": ["a", "ours", "ours"], "recall": [0.5, 0.6, 0.8], "churn": [0.5, np.nan, np.nan]}
    table = pd.DataFrame(methods)
    recall, churn = figures.side_by_side(table, {"recall": "R@1", "churn": "churn"}, "ours").axes
    assert (recall.get_title("left"), churn.get_title("left")) == ("R@1", "churn")
    assert [text.get_text() for text in recall.get_yticklabels()] == ["a", "ours"]
    seeds = [list(line.get_xdata()) for line in recall.get_lines() if line.get_marker() == "o"]
    means = [float(line.get_xdata()[0]) for line in recall.get_lines() if line.get_marker() == "|"]
    assert (seeds, means) == ([[0.5], [0.6, 0.8]], pytest.approx([0.5, 0.7]))


def test_arrivals_mark_the_step_at_which_newcomers_come():
    table = pd.DataFrame({"method": "one", "seed": [0, 1] * 3, "step": [1, 1, 2, 2, 3, 3]})
    table = table.assign(identities=[5] * 4 + [9] * 2, **{"recall@1": [0.1, 0.3, 0.2, 0.4, 0.5, 0.7]})
    by_step, by_time = figures.arrivals(table.assign(seconds=table["step"] * 10 + table["seed"])).axes
    line, mark = by_step.get_lines()
    assert line.get_ydata() == pytest.approx([0.2, 0.3, 0.6])
    assert mark.get_xdata()[0] == 2
    (line,) = by_time.get_lines()
    assert (*line.get_xdata(), *line.get_ydata()) == pytest.approx((10.5, 20.5, 30.5, 0.2, 0.3, 0.6))


def test_active_shares_and_densities_are_labelled(history):
    for figure in (
        figures.active_over_training(history),
        figures.distances_drawn(
            {
                name: pd.DataFrame(np.random.default_rng(0).random((50, 2)), columns=["positive", "negative"])
                for name in "ab"
            },
            margin=0.2,
        ),
        figures.flipped_bits({"hash": np.array([0, 1, 3]), "both": np.array([2, 2, 1])}, bits=4),
        figures.bit_balance(np.full(5, 0.5)),
        figures.occupancy(np.array([3, 1, 4]), np.array([2, 1, 2])),
        figures.embedding_map(np.zeros((3, 2)), {"101": np.array([True, False, True])}),
    ):
        for ax in figure.axes:
            assert ax.get_xlabel(), figure
            assert ax.get_ylabel(), figure


def test_flipped_bits_are_shares_and_chance_is_binomial():
    figure = figures.flipped_bits({"one": np.array([0, 1, 1, 2]), "other": np.array([0, 0])}, bits=2)
    (ax,) = figure.axes
    heights = [[bar.get_height() for bar in group] for group in ax.containers]
    assert heights == [[0.25, 0.5, 0.25], [1, 0, 0]]
    assert ax.get_lines()[0].get_ydata().tolist() == [0.25, 0.5, 0.25]


def test_the_reach_of_a_triplet_stands_at_the_median_positive_and_the_margin():
    table = pd.DataFrame({"positive": [0.1, 0.2, 0.6], "negative": [0.3, 0.4, 0.5]})
    (ax,) = figures.distances_drawn({"random": table}, margin=0.25).axes
    assert ax.get_lines()[-1].get_xdata()[0] == pytest.approx(0.45)


def test_a_curve_of_probabilities_ends_where_there_are_none():
    curve = pd.DataFrame({"distance": [0.1, 0.2, 0.3], "probability": [0.5, 0.01, 0.0]})
    (ax,) = figures.same_bucket({"8 bits": curve}).axes
    assert lines_by_label(ax)["8 bits"].get_xydata().tolist() == [[0.1, 0.5], [0.2, 0.01]]


def test_rows_of_images_may_differ_in_length():
    figure = figures.image_grid([np.zeros((3, 1, 8, 8)), np.zeros((1, 8, 8))], ["a", "b"], "title")
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


def test_the_plane_shows_each_point_by_its_bucket_and_the_window_by_rank():
    rng, hasher = np.random.default_rng(0), make_hasher("hyperplanes", 2, 2)
    points = rng.normal(size=(30, 2))
    hasher.partial_fit(torch.from_numpy(points))
    figure = figures.buckets_in_the_plane(points, {"then": hasher.project, "now": hasher.project})
    first = figure.axes[0]
    drawn = {c.get_label(): len(c.get_offsets()) for c in first.collections if c.get_label()[0] != "_"}
    codes = hasher.encode(torch.from_numpy(points)).numpy()
    assert drawn == {f"{code:02b}": n for code, n in enumerate(np.bincount(codes, minlength=4))}
    assert [ax.get_title("left") for ax in figure.axes] == ["then", "now"]
    order = np.array([3, 1, 2])
    (ax,) = figures.window_in_the_plane(points[:4], 0, order, (1, 3)).axes
    ringed = next(c for c in ax.collections if c.get_label() == "the window").get_offsets()
    assert np.asarray(ringed) == pytest.approx(points[[1, 2]])
    assert [text.get_text() for text in ax.texts] == ["rank 1", "rank 2", "rank 3"]


def test_churn_is_the_mean_over_seeds_along_the_training():
    rows = [
        {"dataset": "parts", "loss": loss, "seed": seed, "step": step, "miner.churn": 0.5 + seed / 10}
        for loss in ("a", "b") for seed in (0, 1) for step in (50, 100)
    ]  # fmt: skip
    (ax,) = figures.churn_over_training(pd.DataFrame(rows)).axes
    assert set(lines_by_label(ax)) == {"parts, a, 100 steps", "parts, b, 100 steps"}
    for line in lines_by_label(ax).values():
        assert line.get_xydata() == pytest.approx(np.array([[0.5, 0.55], [1, 0.55]]))


def test_retrievals_frame_the_query_and_cross_out_what_is_wrong():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 3, 8, 8), dtype=np.uint8)
    right = np.array([[True, False, True, True], [False, False, True, False]])
    figure = figures.retrievals(images[:, 0], list(images), right, ["a", "b"])
    crossed = np.array([len(ax.get_lines()) for ax in figure.axes]).reshape(2, 5)
    assert (crossed == np.c_[[0, 0], ~right]).all()
    for row, axes in enumerate(np.array(figure.axes).reshape(2, 5)):
        assert (axes[0].images[0].get_array() == images[row, 0].transpose(1, 2, 0)).all()
        for column in range(4):
            assert (axes[1 + column].images[0].get_array() == images[row, column].transpose(1, 2, 0)).all()


def contrast(colour, ground) -> float:
    """Ratio of luminances, after the Web Content Accessibility Guidelines 2."""

    def luminance(name) -> float:
        channels = np.array(to_rgb(name))
        linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    light, dark = sorted((luminance(colour), luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_and_lines_stand_out_from_the_paper(history):
    assert contrast("black", "white") == pytest.approx(21)
    batches = pd.DataFrame(
        {
            "samples": [10, 100] * 2,
            "method": "two stages",
            "form": ["set"] * 2 + ["pair"] * 2,
            "milliseconds": 1.0,
            "cold": 3.0,
        }
    )
    samplers = pd.DataFrame({"identities": [10, 100] * 2, "miner": ["BoN"] * 2 + ["exact search"] * 2})
    shown = [
        cost_figures.batch_costs(batches, samplers.assign(milliseconds=1.0)),
        cost_figures.memory(pd.Series({"labels": 4.0, "class index": 8.0})),
        figures.opponents(history, "images", ["random sets + batch-hard"]),
        figures.final_scores(history.assign(**{"metrics.recall@1": 0.5, "metrics.map@r": 0.2})),
        figures.hash_over_training(
            pd.DataFrame({"step": [1, 2], "miner.bits": 5}).assign(
                **{f"miner.{name}": 0.5 for name in ("entropy_bits", "churn", "filled")}
            )
        ),
    ]
    for figure in shown:
        for text in figure.findobj(Text):
            if text.get_text():
                assert contrast(text.get_color(), "white") >= 4.5, text.get_text()
        plt.close(figure)
    for miner, colour in MINER_COLOURS.items():
        if miner in ("bag", "random", "exact"):
            assert contrast(colour, "white") >= 3, miner  # what WCAG asks of graphics


def test_curves_and_galleries_show_the_means_of_the_records():
    rows = [
        {
            "dataset": name, "method": method, "name": method, "miner": miner, "loss": "batch-hard", "seed": seed,
            "images": images, "gallery": 10 * images, "recall@1": 0.5 + 0.1 * seed + images / 1000,
        }
        for name in ("parts", "toponyms") for method, miner in (("random", "random"), ("BoN, variant", "bag"))
        for seed in (0, 1) for images in (10, 20, 40)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    for figure, x in ((figures.curves_by_dataset(table), "images"), (figures.recall_over_gallery(table), "gallery")):
        axes = figure.axes
        assert [ax.get_title(loc="left") or ax.get_title() for ax in axes] == ["parts", "toponyms"]
        for ax in axes:
            lines = {line.get_label(): line for line in ax.get_lines()}
            expected = table[table["method"] == "random"].groupby(x)["recall@1"].mean()
            assert lines["random"].get_xdata().tolist() == expected.index.tolist()
            assert lines["random"].get_ydata() == pytest.approx(expected.to_numpy())
            assert lines["BoN, variant"].get_color() == MINER_COLOURS["bag"]
            assert lines["BoN, variant"].get_linestyle() == "-."
        plt.close(figure)
