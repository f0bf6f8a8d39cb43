"""Codes and buckets: entropy, balance, who shares a bucket, how full buckets are."""
# pandas is typed more loosely than it behaves:
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false

from collections.abc import Mapping
from math import comb
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from bonlib.study.figures.style import ACCENTS, INK, MINER_COLOURS, MUTED


def hash_over_training(history: pd.DataFrame) -> Figure:
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


def churn_over_training(history: pd.DataFrame) -> Figure:
    """Share of codes that have changed when they are seen again, a line a data set and loss, mean over seeds."""
    figure, ax = plt.subplots(figsize=(6.4, 3.0))
    colours = (MINER_COLOURS["bag"], MINER_COLOURS["random"], *ACCENTS)
    seen = history.dropna(subset=["miner.churn"])
    for ((dataset, loss), of), colour in zip(seen.groupby(["dataset", "loss"]), colours, strict=False):
        line = of.groupby("step")["miner.churn"].mean()
        ax.plot(
            line.index / line.index.max(), line, color=colour, label=f"{dataset}, {loss}, {line.index.max():,} steps"
        )
    ax.set(xlabel="part of the training", ylabel="codes that change", ylim=(0, 1.03))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    ax.legend(fontsize=8)
    return figure


def bit_balance(shares: NDArray[np.float64]) -> Figure:
    """Share of samples that have each bit set; a half is perfect."""
    figure, ax = plt.subplots(figsize=(6.4, 2.8))
    ax.bar(np.arange(len(shares)), shares, color=MINER_COLOURS["bag"], width=0.7)
    ax.axhline(0.5, color=INK, linestyle="--", linewidth=1)
    ax.set(xlabel="bit", ylabel="samples with the bit set", ylim=(0, 1), xticks=np.arange(len(shares)))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    return figure


def flipped_bits(flips: Mapping[str, NDArray[np.integer[Any]]], bits: int) -> Figure:
    """Share of samples whose code has so and so many other bits than before, a group of bars a reason.

    Args:
        flips: by the name of the reason, numbers of bits ``(n,)``.
        bits: length of the code; the line is that of two random codes.
    """
    figure, ax = plt.subplots(figsize=(6.4, 3.2))
    at, width = np.arange(bits + 1), 0.8 / len(flips)
    for i, (name, values) in enumerate(flips.items()):
        colour, place = (*ACCENTS[:2], MINER_COLOURS["bag"])[i % 3], at + (i - (len(flips) - 1) / 2) * width
        ax.bar(place, np.bincount(values, minlength=bits + 1) / len(values), width, color=colour, label=name)
    chance = [comb(bits, flipped) / 2**bits for flipped in at]
    ax.plot(at, chance, color=INK, linestyle="--", marker=".", linewidth=1, label="two random codes")
    ax.set(xlabel=f"bits of {bits} that are others", ylabel="samples", xticks=at)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.legend()
    return figure


def same_bucket(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Probability of sharing a bucket against distance, one line a hash; it ends where no pair did."""
    figure, ax = plt.subplots(figsize=(6.4, 3.6))
    for (name, curve), colour, marker in zip(curves.items(), (MINER_COLOURS["bag"], *ACCENTS), "os^Dv", strict=False):
        seen = curve[curve["probability"] > 0]
        ax.plot(seen["distance"], seen["probability"], color=colour, marker=marker, markersize=4, label=name)
    ax.set(yscale="log", xlabel="distance of two embeddings", ylabel="probability of one bucket")
    ax.legend()
    return figure


def bits_compared(table: pd.DataFrame, default: int) -> Figure:
    """What the number of bits does: size of a bag, nearest negatives found, rank of a drawn negative.

    Args:
        table: as :func:`~bonlib.study.analysis.compare_bits` gives it.
        default: number of bits that is marked.
    """
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.0))
    axes[0].plot(table["bits"], table["negatives"], color=MINER_COLOURS["bag"], marker="o")
    axes[0].set(title="negatives in a bag", yscale="log")
    axes[1].plot(table["bits"], table["found"], color=MINER_COLOURS["bag"], marker="o", label="BoN")
    axes[1].plot(table["bits"], table["found_by_chance"], color=MUTED, linestyle="--", label="random bag of that size")
    axes[1].set(title="of the 10 nearest negatives found", yscale="log")
    axes[1].legend(fontsize=8)
    axes[2].plot(table["bits"], table["relative_rank"], color=MINER_COLOURS["bag"], marker="o")
    axes[2].set(title="negatives nearer than a drawn one", ylim=(0, 0.52))
    axes[2].axhline(0.5, color=MUTED, linestyle="--")
    axes[2].text(table["bits"].min(), 0.49, "random", color=MUTED, va="top", fontsize=8)
    for ax in (axes[1], axes[2]):
        ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")  # down to a tenth of a percent
    for ax in axes:
        ax.axvline(default, color=MUTED, linewidth=1, linestyle=":")
        ax.set(xlabel="bits (dotted: the default)", xticks=table["bits"])
    return figure


def occupancy(sizes: NDArray[np.int64], classes: NDArray[np.int64]) -> Figure:
    """Sizes of the buckets, largest first, and how many identities each holds."""
    figure, ax = plt.subplots(figsize=(6.4, 3.2))
    order = np.argsort(-sizes)
    ax.fill_between(
        np.arange(len(sizes)), sizes[order], color=MINER_COLOURS["bag"], alpha=0.35, label="samples", step="mid"
    )
    median = pd.Series(classes[order]).rolling(25, center=True, min_periods=1).median()
    ax.plot(median, color=INK, linewidth=1.5, label="identities, median of 25 buckets")
    ax.axhline(sizes.mean(), color=MUTED, linestyle="--", label=f"samples if even: {sizes.mean():.0f}")
    ax.set(xlabel="bucket, largest first", ylabel="in the bucket", xlim=(0, len(sizes) - 1), ylim=(0, None))
    ax.set_yscale("symlog", linthresh=1)
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
