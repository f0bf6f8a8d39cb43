"""One function a figure: arrays and DataFrames in, a matplotlib Figure out."""
# pandas is typed more loosely than it behaves:
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from bonlib.style import ACCENTS, FORM_DASHES, INK, MINER_COLOURS, MUTED, use_style

if TYPE_CHECKING:
    import pandas as pd

use_style()


def image_grid(rows: Sequence[NDArray[Any]], names: Sequence[str] | None = None, title: str = "") -> Figure:
    """Images in rows of their own lengths.

    Args:
        rows: each ``(images, 3, height, width)`` in colour, or ``(images, 1, height, width)`` or ``(images, height,
            width)``, dark where the value is high.
        names: what stands left of each row.
        title: over the figure.
    """
    widest = max(len(row) for row in rows)
    figure, axes = plt.subplots(len(rows), widest, figsize=(0.52 * widest + 1.6, 0.56 * len(rows) + 0.4), squeeze=False)
    for r, row in enumerate(rows):
        for c, ax in enumerate(axes[r]):
            ax.set_axis_off()
            if c < len(row):
                show_image(ax, row[c])
        if names is not None:
            axes[r, 0].text(-0.25, 0.5, names[r], transform=axes[r, 0].transAxes, ha="right", va="center", fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def show_image(ax: Axes, image: NDArray[Any]) -> None:
    """One image: ``(3, height, width)`` in colour; ``(1, height, width)`` or ``(height, width)``, dark where high."""
    image = np.asarray(image)
    image = image.transpose(1, 2, 0) if image.ndim == 3 and len(image) == 3 else image.squeeze()
    ax.imshow(image, cmap="gray_r", vmin=0, vmax=255)


def retrievals(
    queries: NDArray[Any], found: Sequence[NDArray[Any]], right: NDArray[np.bool_], names: Sequence[str] | None = None
) -> Figure:
    """A row a query: its image, framed in black, then what was found, nearest first; wrong ones are crossed out.

    Args:
        queries: ``(queries, channels, height, width)`` uint8.
        found: for each query ``(k, channels, height, width)``.
        right: ``(queries, k)`` whether an image is of the query's identity.
        names: of the queries.
    """
    figure = image_grid(
        [np.concatenate([query[None], images]) for query, images in zip(queries, found, strict=True)], names
    )
    columns = 1 + right.shape[1]
    for i, ax in enumerate(figure.axes):
        row, column = divmod(i, columns)
        ax.set_axis_on()
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
        query = column == 0
        good = query or right[row, column - 1]
        ax.spines[:].set(visible=True, linewidth=2.5 if query else 1.5)
        ax.spines[:].set_color(INK if query else MINER_COLOURS["random"] if good else MINER_COLOURS["bag"])
        if not good:
            ax.plot([0, 1], [0, 1], color=MINER_COLOURS["bag"], linewidth=1.5, transform=ax.transAxes)
    return figure


def zero_loss(shares: "pd.DataFrame") -> Figure:
    """Share of triplets with zero loss against the number of identities, by kind of negative."""
    figure, ax = plt.subplots(figsize=(6.4, 3.8))
    lines = {
        "random": ("one random negative", MINER_COLOURS["random"], "o"),
        "batch": ("hardest of 128 random negatives (a batch)", ACCENTS[3], "s"),
        "hardest": ("hardest of all identities", INK, "^"),
    }
    for column, (name, colour, marker) in lines.items():
        ax.plot(shares["identities"], shares[column], color=colour, marker=marker, label=name)
    ax.set(
        xscale="log",
        ylim=(-0.02, 1.02),
        xlabel="identities to draw negatives from",
        ylabel="triplets with zero loss",
    )
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.legend(loc="center right", bbox_to_anchor=(1, 0.66), fontsize=9)
    return figure


def active_over_training(history: "pd.DataFrame") -> Figure:
    """Share of active tuples over training, one line a method: mean over seeds, the band from least to most.

    Args:
        history: as :func:`~bonlib.runs.load_history` gives it.
    """
    figure, ax = plt.subplots(figsize=(6.4, 3.6))
    for name, points in history.groupby("method", sort=False):
        colour = MINER_COLOURS.get(points["miner"].iloc[0], MUTED)
        dash = FORM_DASHES[points["form"].iloc[0]]
        sns.lineplot(
            points, x="step", y="active", color=colour, linestyle=dash, label=name, errorbar=("pi", 100), ax=ax
        )
    ax.set(xlabel="step", ylabel="active triplets", ylim=(0, 1.02))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def distances_to_negatives(distances: Mapping[str, NDArray[Any]]) -> Figure:
    """Densities of the distances from anchors to their negatives, one line a name; the nearer the harder."""
    figure, ax = plt.subplots(figsize=(6.4, 3.4))
    colours = (MINER_COLOURS["random"], MINER_COLOURS["bag"], INK)
    for (name, values), colour, dash in zip(distances.items(), colours, ("-", "-", "--"), strict=False):
        sns.kdeplot(x=values, color=colour, linestyle=dash, linewidth=2, cut=0, label=name, ax=ax)
    ax.set(xlabel="distance to the negative", ylabel="density", yticks=[], xlim=(0, None))
    ax.legend()
    return figure


def hash_over_training(history: "pd.DataFrame") -> Figure:
    """Entropy, churn and filled share of a bag over training, side by side."""
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.0))
    steps, bits = history["step"], float(history["miner.bits"].iloc[0])
    axes[0].plot(steps, history["miner.entropy_bits"], color=MINER_COLOURS["bag"], marker="o", markersize=3)
    axes[0].axhline(bits, color=MUTED, linestyle="--")
    axes[0].text(steps.max(), bits, f"maximum, {bits:.0f} bits", ha="right", va="bottom", color=MUTED, fontsize=8)
    axes[0].set(title="entropy of the table", ylabel="bits", ylim=(0, bits * 1.12))
    shares = {"churn": "codes that change when seen again", "filled": "samples with a code"}
    for ax, (column, title) in zip(axes[1:], shares.items(), strict=True):
        ax.plot(steps, history[f"miner.{column}"], color=MINER_COLOURS["bag"], marker="o", markersize=3)
        ax.set(title=title, ylim=(0, 1.03))
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    for ax in axes:
        ax.set_xlabel("step")
    return figure


def bit_balance(shares: NDArray[np.float64]) -> Figure:
    """Share of samples that have each bit set; a half is perfect."""
    figure, ax = plt.subplots(figsize=(6.4, 2.8))
    ax.bar(np.arange(len(shares)), shares, color=MINER_COLOURS["bag"], width=0.7)
    ax.axhline(0.5, color=INK, linestyle="--", linewidth=1)
    ax.set(xlabel="bit", ylabel="samples with the bit set", ylim=(0, 1), xticks=np.arange(len(shares)))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def same_bucket(curves: Mapping[str, "pd.DataFrame"]) -> Figure:
    """Probability of sharing a bucket against distance, one line a hash; it ends where no pair did."""
    figure, ax = plt.subplots(figsize=(6.4, 3.6))
    for (name, curve), colour, marker in zip(curves.items(), (MINER_COLOURS["bag"], *ACCENTS), "os^Dv", strict=False):
        seen = curve[curve["probability"] > 0]
        ax.plot(seen["distance"], seen["probability"], color=colour, marker=marker, markersize=4, label=name)
    ax.set(yscale="log", xlabel="distance of two embeddings", ylabel="probability of one bucket")
    ax.legend()
    return figure


def bits_compared(table: "pd.DataFrame") -> Figure:
    """What the number of bits does: size of a bag, nearest negatives found, rank of a drawn negative."""
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.0))
    axes[0].plot(table["bits"], table["bag_mean"], color=MINER_COLOURS["bag"], marker="o")
    axes[0].set(title="negatives in a bag", yscale="log")
    axes[1].plot(table["bits"], table["found"], color=MINER_COLOURS["bag"], marker="o", label="BoN")
    axes[1].plot(table["bits"], table["found_by_chance"], color=MUTED, linestyle="--", label="random bag of that size")
    axes[1].set(title="of the 10 nearest negatives found", yscale="log")
    axes[1].legend(fontsize=8)
    axes[2].plot(table["bits"], table["relative_rank"], color=MINER_COLOURS["bag"], marker="o")
    axes[2].set(title="rank of a drawn negative", ylim=(0, 0.52))
    axes[2].axhline(0.5, color=MUTED, linestyle="--")
    axes[2].text(table["bits"].min(), 0.49, "random", color=MUTED, va="top", fontsize=8)
    for ax in (axes[1], axes[2]):
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    for ax in axes:
        ax.set(xlabel="bits", xticks=table["bits"])
    return figure


def occupancy(sizes: NDArray[np.int64], classes: NDArray[np.int64]) -> Figure:
    """Sizes of the buckets, largest first, and how many identities each holds."""
    figure, ax = plt.subplots(figsize=(6.4, 3.2))
    order = np.argsort(-sizes)
    ax.fill_between(
        np.arange(len(sizes)),
        sizes[order],
        color=MINER_COLOURS["bag"],
        alpha=0.35,
        label="samples",
        step="mid",
    )
    ax.plot(np.arange(len(sizes)), classes[order], color=INK, linewidth=0.6, label="identities")
    ax.axhline(sizes.mean(), color=MUTED, linestyle="--", label=f"samples if even: {sizes.mean():.0f}")
    ax.set(xlabel="bucket, largest first", ylabel="in the bucket", xlim=(0, len(sizes) - 1), ylim=(0, None))
    ax.legend()
    return figure


def embedding_map(points: NDArray[Any], groups: Mapping[str, NDArray[np.bool_]]) -> Figure:
    """A two-dimensional map of embeddings with a few groups, such as buckets, highlighted.

    Args:
        points: ``(n, 2)``.
        groups: for each name which points to highlight, ``(n,)``.
    """
    figure, ax = plt.subplots(figsize=(6.6, 4.8))
    ax.scatter(*points.T, s=2, color="#D9D9D9", linewidths=0)
    colours = (MINER_COLOURS["bag"], MINER_COLOURS["random"], *ACCENTS, INK)
    for (name, chosen), colour, marker in zip(groups.items(), colours, "osD^vP*", strict=False):
        ax.scatter(*points[chosen].T, s=24, marker=marker, color=colour, linewidths=0.3, edgecolors="white", label=name)
    ax.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    ax.grid(visible=False)
    ax.legend(title="bucket", fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def training_curves(
    history: "pd.DataFrame",
    metric: str = "recall@1",
    *,
    baseline: "pd.DataFrame | None" = None,
    points: "pd.DataFrame | None" = None,
) -> Figure:
    """Loss, share of active tuples, entropy of the table (BoN) and a validation metric of one run over its steps.

    Args:
        history: one evaluation a row; may still be empty where ``points`` are given.
        metric: column of the last panel.
        baseline: ``step`` and ``metric`` of another miner, drawn beside as far as this run has steps.
        points: ``step``, ``loss``, ``active``, ``miner.entropy_bits`` between the evaluations, where they are known.
    """
    fine = history if points is None else points
    panels = {"loss": "loss", "active": "active tuples"}
    panels |= {"miner.entropy_bits": "entropy of the table, bits"} if "miner.entropy_bits" in fine else {}
    figure, axes = plt.subplots(1, len(panels) + 1, figsize=(9.6, 2.7))
    miner = history["miner"].iloc[0] if len(history) else "bag"
    style: dict[str, Any] = {"color": MINER_COLOURS.get(miner, MUTED), "marker": "o", "markersize": 3}
    for ax, (column, title) in zip(axes, panels.items(), strict=False):
        ax.plot(fine["step"], fine[column], **style)
        ax.set(title=title, xlabel="step")
    axes[1].set_ylim(0, 1.03)
    axes[1].yaxis.set_major_formatter(PercentFormatter(1))
    last = axes[-1]
    last.set(title=f"validation {metric}", xlabel="step")
    if len(history):
        last.plot(history["step"], history[metric], **style)
    if baseline is not None and len(baseline):
        shown = baseline[baseline["step"] <= max(fine["step"].max(), baseline["step"].min())]
        last.plot(shown["step"], shown[metric], color=MINER_COLOURS["random"], linestyle="--", marker="s", markersize=3)
        # Curves rise: the lower right corner is free.
        where = {"transform": last.transAxes, "ha": "right", "va": "bottom", "fontsize": 8}
        last.text(0.98, 0.03, "dashed: random", color=MINER_COLOURS["random"], **where)
    return figure


def seconds_by_part(seconds: Mapping[str, float], steps: int) -> Figure:
    """Milliseconds of a step by part, as one bar, with the share of the miner itself (draw + hash)."""
    figure, ax = plt.subplots(figsize=(8.2, 1.5))
    parts = {"draw": MINER_COLOURS["bag"], "hash": ACCENTS[2], "data": ACCENTS[3], "compute": MUTED}
    if seconds.get("refresh"):
        parts["refresh"] = ACCENTS[0]
    left, total = 0.0, sum(seconds[part] for part in parts)
    for part, colour in parts.items():
        width = 1000 * seconds[part] / steps
        ax.barh(0, width, left=left, color=colour, label=f"{part} {width:.1f} ms ({seconds[part] / total:.1%})")
        left += width
    ax.set(yticks=[], xlabel="milliseconds a step")
    ax.legend(ncols=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure
