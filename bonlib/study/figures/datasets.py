"""What data sets and numbers of identities do to the lead of a miner."""
# pandas is typed more loosely than it behaves:
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportIndexIssue=false

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from bonlib.study.figures.style import LOSS_DASHES, MINER_COLOURS, MUTED, count_axis, mean_and_range
from bonlib.study.names import method_name, metric_name


def curves_by_dataset(history: pd.DataFrame, metric: str = "recall@1") -> Figure:
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
            mean_and_range(ax, group.groupby("images")[metric], dash, color=colour, label=method)
        top = here[metric].max()
        first = here[here["images"] > here["images"].max() / 4][metric].min()  # the first climb would hide the rest
        ax.set(
            title=name,
            xlabel="training images seen; shade: range of the seeds",
            ylim=(first - (top - first) / 8, top + (top - first) / 8),
        )
        count_axis(ax, 5)
    axes[0, 0].set_ylabel(f"{metric_name(metric)}, validation classes")
    shown = {label: line for ax in axes[0] for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    labels = list(shown)
    figure.legend(
        list(shown.values()), labels, loc="outside lower center", ncols=2 if len(labels) == 4 else 3, fontsize=9
    )
    return figure


def _look(run: pd.Series) -> tuple[str, str]:
    """Colour and dash of a run: by its miner and loss, and whether its name says that it is a variant."""
    dash = "-." if "," in str(run["name"]) else LOSS_DASHES.get(run["loss"], "-")
    return MINER_COLOURS.get(run["miner"], MUTED), dash


def leads_over_identities(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """What miners are ahead of random batches against the number of training identities, with 95 % intervals.

    Args:
        tables: as :func:`~bonlib.study.statistics.leads_by` gives them, by the name of the miner.
    """
    figure, ax = plt.subplots(figsize=(6.4, 3.6))
    for place, (miner, table) in enumerate(tables.items()):
        lead, x = 100 * table["lead"], table["identities"] * 1.06 ** (place - (len(tables) - 1) / 2)  # side by side
        reach = [lead - 100 * table["low"], 100 * table["high"] - lead]
        ax.errorbar(x, lead, reach, marker="o", capsize=3, color=MINER_COLOURS[miner], label=method_name(miner, "set"))
    ax.axhline(0, color=MINER_COLOURS["random"], linewidth=1)
    ax.set(xscale="log", xlabel="training identities; bars: 95 % interval", ylabel="lead over random sets, points")
    ax.minorticks_off()
    sizes = sorted({size for table in tables.values() for size in table["identities"]})
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
    ax.legend(fontsize=9)
    return figure


def recall_over_gallery(table: pd.DataFrame) -> Figure:
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
            colour, dash = _look(group.iloc[0])
            by_size = group.groupby("gallery")["recall@1"]
            mean_and_range(ax, by_size, dash, marker="o", markersize=3.5, color=colour, label=method)
        ax.set(xscale="log", xlabel="samples in the gallery; shade: range of the seeds", title=name)
    axes[0, 0].set_ylabel("R@1, unseen classes")
    axes[0, -1].legend(fontsize=8)
    return figure
