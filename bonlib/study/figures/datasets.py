"""What data sets and numbers of identities do to the lead of a miner."""
# pandas is typed more loosely than it behaves:
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportIndexIssue=false

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from bonlib.study.figures.style import INK, LOSS_DASHES, MINER_COLOURS, MUTED
from bonlib.study.names import method_name

if TYPE_CHECKING:
    import pandas as pd


def across(table: "pd.DataFrame", miner: str = "bag", baseline: str = "random") -> Figure:
    """Data sets in rows, fewest identities on top: what two miners reach, and the lead with its 95 % interval.

    Args:
        table: as :func:`~bonlib.study.statistics.leads_by` gives it.
        miner: whose lead it is.
        baseline: over which miner.
    """
    figure, (values, lead) = plt.subplots(1, 2, figsize=(9.2, 0.55 * len(table) + 1.5), sharey=True)
    rows = range(len(table))
    values.hlines(rows, table[baseline], table[miner], color=MUTED, linewidth=1)
    for name, marker in ((baseline, "s"), (miner, "o")):
        values.plot(table[name], rows, marker, color=MINER_COLOURS[name], markersize=7, label=method_name(name, "set"))
    values.set(xlabel="R@1, unseen classes", yticks=rows, ylim=(len(table) - 0.4, -0.6))
    values.set_yticklabels([
        f"{name}\n{row['identities']:,.0f} identities, {row['steps']:,.0f} steps" for name, row in table.iterrows()
    ])  # fmt: skip
    values.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    lead.hlines(rows, 100 * table["low"], 100 * table["high"], color=MINER_COLOURS[miner], linewidth=2)
    lead.plot(100 * table["lead"], rows, "o", color=MINER_COLOURS[miner], markersize=7)
    for y, (mean, high) in enumerate(zip(100 * table["lead"], 100 * table["high"], strict=True)):
        at = mean if np.isnan(high) else high
        lead.annotate(f"{mean:+.1f}", (at, y), (6, 0), textcoords="offset points", va="center")
    lead.axvline(0, color=INK, linewidth=1)
    lead.set(xlabel=f"lead, points of R@1 (95 % interval, {table['seeds'].min():.0f} seeds)")
    lead.margins(x=0.22)
    return figure


def curves_by_dataset(history: "pd.DataFrame", metric: str = "recall@1") -> Figure:
    """A validation metric against images seen: a panel a data set, a line a method, the range of its seeds shaded.

    Args:
        history: as :func:`~bonlib.study.records.load_history` gives it.
        metric: column to draw.
    """
    names = history["dataset"].unique().tolist()
    figure, axes = plt.subplots(1, len(names), figsize=(4.4 * len(names), 3.6), squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        here = history[history["dataset"] == name]
        for method, group in here.groupby("method", sort=False):
            colour, dash = _look(group.iloc[0])
            by_step = group.groupby("images")[metric]
            ax.plot(by_step.mean(), dash, color=colour, label=method)
            ax.fill_between(by_step.min().index, by_step.min(), by_step.max(), color=colour, alpha=0.15, linewidth=0)
        top = here[metric].max()
        first = here[here["images"] > here["images"].max() / 4][metric].min()  # the first climb would hide the rest
        ax.set(title=name, xlabel="training images seen", ylim=(first - (top - first) / 8, top + (top - first) / 8))
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes[0, 0].set_ylabel(f"{metric}, validation classes")
    shown = {label: line for ax in axes[0] for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    labels = list(shown)
    figure.legend(
        list(shown.values()), labels, loc="outside lower center", ncols=2 if len(labels) == 4 else 3, fontsize=9
    )
    return figure


def _look(run: "pd.Series") -> tuple[str, str]:
    """Colour and dash of a run: by its miner and loss, and whether its name says that it is a variant."""
    dash = "-." if "," in str(run["name"]) else LOSS_DASHES.get(run["loss"], "-")
    return MINER_COLOURS.get(run["miner"], MUTED), dash


def recall_over_gallery(table: "pd.DataFrame") -> Figure:
    """Recall against the size of the gallery: a panel a data set, a line a method, the range of its seeds shaded.

    Args:
        table: as :func:`~bonlib.study.records.load_galleries` gives it.
    """
    names = sorted(table["dataset"].unique())
    figure, axes = plt.subplots(1, len(names), figsize=(4.4 * len(names), 3.4), squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        here = table[table["dataset"] == name].copy()
        whole = here.groupby(["method", "seed"])["gallery"].transform("max") == here["gallery"]
        here.loc[whole, "gallery"] = int(here.loc[whole, "gallery"].median())  # splits differ by a few samples
        for method, group in here.groupby("method", sort=True):
            by_size = group.groupby("gallery")["recall@1"]
            colour, dash = _look(group.iloc[0])
            ax.plot(by_size.mean(), dash, marker="o", markersize=3.5, color=colour, label=method)
            ax.fill_between(by_size.min().index, by_size.min(), by_size.max(), color=colour, alpha=0.15, linewidth=0)
        ax.set(xscale="log", xlabel="samples in the gallery", title=name)
    axes[0, 0].set_ylabel("R@1, unseen classes")
    axes[0, -1].legend(fontsize=8)
    return figure
