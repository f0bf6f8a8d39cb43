"""Methods side by side, from the records of runs."""
# pandas is typed more loosely than it behaves:
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportIndexIssue=false

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bonlib.study.figures.style import ACCENTS, FORM_DASHES, INK, MINER_COLOURS, MUTED, count_axis, mean_and_range
from bonlib.study.names import method_name, metric_name
from bonlib.study.statistics import mean_interval

_AXES = {"images": "training images seen", "training_seconds": "training seconds, evaluation left out"}


def opponents(
    history: pd.DataFrame, x: str, references: Sequence[str], metric: str = "recall@1", *, ylabel: str = ""
) -> Figure:
    """A panel for each method: its curve over those of the references, which are drawn in every panel.

    Args:
        history: as :func:`~bonlib.study.records.load_history` gives it.
        x: ``"images"`` or ``"training_seconds"``.
        references: names of methods.
        metric: column to draw.
        ylabel: what it is called, where that is not its name.
    """
    last = history[history["step"] == history["step"].max()].groupby("method")[metric].mean()
    others = last.drop(list(references), errors="ignore").sort_values(ascending=False).index
    columns = min(4, len(others))
    rows = -(-len(others) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(10.5, 1.8 * rows + 0.8), sharex=True, sharey=True, squeeze=False
    )
    for ax, name in zip(axes.flat, others, strict=False):
        for reference in references:
            _band(ax, history[history["method"] == reference], x, metric, reference, linewidth=1)
        _band(ax, history[history["method"] == name], x, metric, str(name), linewidth=2.2)
        ax.set_title(name, fontsize=9)
    for ax in axes.flat[len(others) :]:
        ax.set_axis_off()
    count_axis(axes[0, 0], 4)
    for column in range(columns):  # the lowest panel of a column bears the numbers, even where the row below ends early
        axes[(len(others) - 1 - column) // columns, column].tick_params(labelbottom=True)
    lines, names = axes[0, 0].get_legend_handles_labels()
    names = [f"{name} (thin, in every panel)" for name in names[:-1]]
    figure.legend(lines[:-1], names, loc="outside upper center", ncols=len(references), fontsize=9)
    figure.supxlabel(f"{_AXES.get(x, x)}; shade: 95 % interval of the mean", fontsize=10)
    gap = " " if rows > 1 else "\n"  # one row is too low for a long line
    figure.supylabel(f"{ylabel or metric_name(metric)},{gap}validation classes", fontsize=10)
    return figure


def _band(ax: Axes, runs: pd.DataFrame, x: str, metric: str, name: str, linewidth: float = 1.5) -> None:
    points = [(group[x].mean(), *mean_interval(group[metric].tolist())[:3]) for _, group in runs.groupby("step")]
    at, mean, low, high = np.array(points).T
    colour = _colour(name, runs)
    dash = "-." if "," in name else FORM_DASHES[runs["form"].iloc[0]]  # a variant
    ax.plot(at, mean, color=colour, linestyle=dash, label=name, linewidth=linewidth)
    if not np.isnan(low).all():
        ax.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)


def _colour(name: str, runs: pd.DataFrame) -> str:
    """That of the miner; grey where random sets go with a loss that gives the method its name."""
    miner = runs["miner"].iloc[0]
    return MUTED if miner == "random" and "random" not in name else MINER_COLOURS.get(miner, MUTED)


def final_scores(runs: pd.DataFrame, metric: str = "metrics.recall@1") -> Figure:
    """A metric of all methods, the best on top: a dot a seed, a bar for the 95 % interval of the mean.

    Args:
        runs: as :func:`~bonlib.study.records.load_runs` gives them.
        metric: column to draw, on test classes (``metrics.…``) or validation classes (``validation.…``).
    """
    groups = sorted(runs.groupby("method", sort=False), key=lambda item: item[1][metric].mean())
    figure, ax = plt.subplots(figsize=(6.8, 0.36 * len(groups) + 1.1))
    for y, (name, group) in enumerate(groups):
        colour = _colour(str(name), group)
        mean, low, high, count = mean_interval(group[metric].tolist())
        if count > 1:
            ax.plot([low, high], [y, y], color=colour, linewidth=6, alpha=0.25, solid_capstyle="butt")
        ax.plot(group[metric], y + np.linspace(-0.15, 0.15, len(group)), "o", color=colour, markersize=4)
        right = max(group[metric].max(), high) if count > 1 else group[metric].max()
        ax.annotate(f"{mean:.3f}", (right, y), (6, 0), textcoords="offset points", va="center")
    ax.set(
        yticks=range(len(groups)),
        xlabel=f"{metric_name(metric)}, {metric.partition('.')[0].replace('metrics', 'unseen test')} classes",
        ylim=(-0.6, len(groups) - 0.4),
    )
    ax.set_yticklabels([name for name, _ in groups])
    ax.margins(x=0.2)
    return figure


def leads(tables: Mapping[str, pd.DataFrame], method: str) -> Figure:
    """What a method is ahead of each other one, with its 95 % interval; to the right of zero it is ahead.

    Args:
        tables: as :func:`~bonlib.study.statistics.against` gives them, by the title of their panel.
        method: its name.
    """
    most, across = max(map(len, tables.values())), min(len(tables), 3)
    down = -(-len(tables) // across)
    size = 2.4 + 2.9 * across, down * (0.34 * most + 0.6) + 0.6
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False)
    for ax in axes.flat[len(tables) :]:
        ax.set_axis_off()
    markers = {"ahead": ">", "level": "o", "behind": "<"}  # a cross: not known, of one seed
    others = list(dict.fromkeys(name for table in tables.values() for name in table.index))
    for place, (title, table) in enumerate(tables.items()):
        ax = axes.flat[place]
        for name, row in table.iterrows():
            y, colour = others.index(name), INK if row["verdict"] in ("ahead", "behind") else MUTED
            ax.plot([100 * row["low"], 100 * row["high"]], [y, y], color=colour, linewidth=2)
            ax.plot(100 * row["lead"], y, markers.get(row["verdict"], "x"), color=colour, markersize=7)
        ax.axvline(0, color=INK, linewidth=1)
        sizes = 100 * table["lead"].abs().sort_values()
        reach = sizes.iloc[len(sizes) // 2]
        for size in sizes.iloc[len(sizes) // 2 :]:  # up to where a few are far from all others
            reach = size if size < 2 * reach else reach
        if "random" in sizes:  # the lead that counts is always in sight
            reach = max(reach, sizes["random"] / 1.3)
        for name, row in table[100 * table["lead"].abs() > 1.8 * reach].iterrows():  # off the panel: in words
            side = "right" if row["lead"] > 0 else "left"
            at = (0.98 if row["lead"] > 0 else 0.02, others.index(name))
            text = f"{100 * row['lead']:+.1f}, {row['verdict']}"
            ax.annotate(text, at, xycoords=("axes fraction", "data"), ha=side, va="center", fontsize=8)
        ax.set(title=title, ylim=(len(others) - 0.4, -0.6), xlim=(-1.8 * reach, 1.8 * reach), yticks=range(len(others)))
        ax.set_yticklabels(others if place % across == 0 else [])
    said = "95 % intervals, cut where they are wide; each panel its own scale; no mark: not run"
    figure.supxlabel(f"lead of {method}, points; triangle: ahead or behind, dot: level\n{said}", fontsize=10)
    return figure


def costs(table: pd.DataFrame) -> Figure:
    """Milliseconds of a step by part, one bar a method, cheapest on top.

    Args:
        table: as :func:`~bonlib.study.statistics.cost_table` gives it.
    """
    table = table.sort_values("total", ascending=False)
    figure, ax = plt.subplots(figsize=(7.6, 0.34 * len(table) + 1.2))
    parts = {
        "compute": ("#C9C9C9", ""),
        "data": (ACCENTS[3], ""),
        "draw": (ACCENTS[1], "//"),
        "hash": (ACCENTS[2], "\\\\"),
    }
    parts["refresh"] = (ACCENTS[0], "..")
    left = np.zeros(len(table))
    for part, (colour, hatch) in parts.items():
        ax.barh(table.index, table[part], left=left, color=colour, hatch=hatch, edgecolor="white", label=part)
        left += table[part].to_numpy()
    for y, (total, share) in enumerate(zip(table["total"], table["miner_share"], strict=True)):
        ax.annotate(f"{share:.1%} mining", (total, y), (4, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set(xlabel="milliseconds a step, looks spread over all of them", xlim=(0, 1.18 * table["total"].max()))
    ax.legend(ncols=5, fontsize=8, loc="lower center", bbox_to_anchor=(0.4, 1))
    return figure


def over(runs: pd.DataFrame, x: str, xlabel: str, metric: str = "validation.recall@1", *, log: bool = False) -> Figure:
    """A metric against a setting, a panel a data set, a line a miner: mean over seeds and its 95 % interval.

    Args:
        runs: as :func:`~bonlib.study.records.load_runs` gives them.
        x: column of the setting, numbers.
        xlabel: what it is called.
        metric: column to draw.
        log: a logarithmic axis.
    """
    parts = dict(list(runs.groupby("dataset", sort=False)))
    width = 6.0 if len(parts) == 1 else 4.0 * len(parts)
    figure, axes = plt.subplots(1, len(parts), figsize=(width, 3.6), squeeze=False)
    for ax, (name, here) in zip(axes[0], parts.items(), strict=True):
        for i, ((miner, form), group) in enumerate(here.groupby(["miner", "form"], sort=False)):
            points = [(at, *mean_interval(part[metric].tolist())[:3]) for at, part in group.groupby(x)]
            at, mean, low, high = np.array(points, dtype=float).T
            at = at * 1.03**i if log else at  # bars beside each other
            colour = MINER_COLOURS.get(str(miner), MUTED)
            style: dict[str, Any] = {"color": colour, "linestyle": FORM_DASHES[str(form)], "marker": "o", "capsize": 3}
            ax.errorbar(at, mean, yerr=[mean - low, high - mean], label=method_name(str(miner), str(form)), **style)
        if log:
            ax.set_xscale("log")
            ax.minorticks_off()
        ticks = sorted(here[x].unique())
        ax.set(xlabel=f"{xlabel}; bars: 95 % interval", xticks=ticks, title=name if len(parts) > 1 else "")
        ax.set_xticklabels([f"{tick:,g}" for tick in ticks])
    axes[0, 0].set_ylabel(f"{metric_name(metric)}, validation classes")
    axes[0, 0].legend()
    return figure


def side_by_side(table: pd.DataFrame, columns: Mapping[str, str], own: str) -> Figure:
    """What each method comes to, a panel a column, best by the first on top: dots are seeds, bars the mean's interval.

    Args:
        table: one run a row, with ``method`` and the columns.
        columns: what each is called.
        own: the method to stand out.
    """
    order = table.groupby("method")[next(iter(columns))].mean().sort_values(na_position="first").index
    figure, axes = plt.subplots(1, len(columns), figsize=(11, 0.36 * len(order) + 1.3), sharey=True)
    for ax, (column, title) in zip(axes, columns.items(), strict=True):
        for y, name in enumerate(order):
            values = table.loc[table["method"] == name, column].dropna()
            mean, low, high, seeds = mean_interval(values.tolist()) if len(values) else (np.nan,) * 4
            colour = INK if name == own else MUTED
            if seeds > 1:
                ax.plot([low, high], [y, y], color=colour, linewidth=5, alpha=0.3, solid_capstyle="butt")
            ax.plot(values, [y] * len(values), "o", color=colour, markersize=4)
            ax.plot(mean, y, "|", color=colour, markersize=13, markeredgewidth=2)
        ax.set(title=title)
        ax.margins(x=0.15)
        if 0 < 20 * table[column].min() < table[column].max():
            ax.set_xscale("log", nonpositive="clip")
    figure.supxlabel("dot: a seed; bar: 95 % interval of the mean", fontsize=10)
    axes[0].set(yticks=range(len(order)), ylim=(-0.6, len(order) - 0.4))
    axes[0].set_yticklabels(order)
    return figure


def arrivals(table: pd.DataFrame) -> Figure:
    """R@1 against steps, a line a method, the range of its seeds shaded, and against seconds, means over seeds.

    Args:
        table: as ``benchmarks/arriving.py`` writes it: ``method``, ``seed``, ``step``, ``identities``, ``recall@1``,
            ``seconds``. Dashed stands where newcomers arrive.
    """
    figure, (ax, by_time) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    looks = ("random", "two-stage-bag", "refreshed-bag", "subspaces", "exact")  # as the methods stand in the table
    for i, (name, rows) in enumerate(table.groupby("method", sort=False)):
        style = {"marker": "o", "markersize": 3, "color": MINER_COLOURS[looks[i]]}
        mean_and_range(ax, rows.groupby("step")["recall@1"], label=name, **style)
        means = rows.groupby("step")[["seconds", "recall@1"]].mean()
        by_time.plot(means["seconds"], means["recall@1"], **style)
    first = table.loc[table["identities"] == table["identities"].min(), "step"].max()
    ax.axvline(first, color=INK, linewidth=1, linestyle="--")
    at = {"xycoords": ("data", "axes fraction"), "xytext": (-4, 0), "textcoords": "offset points", "ha": "right"}
    ax.annotate("the other half arrives", (first, 0.95), fontsize=8, **at)
    ax.set(xlabel="steps; shade: range of the seeds", ylabel="R@1, validation identities")
    by_time.set(xlabel="seconds of training, looks included", xscale="log")
    ax.legend(fontsize=9)
    return figure
