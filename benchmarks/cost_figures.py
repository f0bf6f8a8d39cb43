"""Figures of what BoN costs, one function a figure: tables of :mod:`costs` in, a matplotlib Figure out."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from bonlib.study.figures.style import ACCENTS, INK, MINER_COLOURS, MUTED, use_style

use_style()

_PEERS = {"BoN": (MINER_COLOURS["two-stage-bag"], "o"), "MPerClassSampler": (MINER_COLOURS["random"], "s")}
_PEERS |= {"exact search": (MINER_COLOURS["exact"], "^"), "HNSW graph": (MINER_COLOURS["smart"], "D")}
_METHODS = {"as published": MINER_COLOURS["bag"], "two stages": MINER_COLOURS["two-stage-bag"]}


def batch_costs(batches: pd.DataFrame, samplers: pd.DataFrame) -> Figure:
    """Milliseconds a batch against samples (the slowest form of BoN) and against identities (with peers), log axes.

    Args:
        batches: as :func:`~costs.batch_costs` gives it.
        samplers: as :func:`~costs.sampler_costs` gives it.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), sharey=True)
    for method, rows in (
        batches.groupby(["method", "samples"], sort=False)[["milliseconds", "cold"]].max().groupby(level=0)
    ):
        counts, colour = rows.index.get_level_values("samples"), _METHODS[str(method)]
        left.plot(counts, rows["milliseconds"], marker="o", color=colour, markersize=4, label=f"{method}, warm caches")
        left.plot(counts, rows["cold"], "--", marker="o", color=colour, markersize=4, label=f"{method}, cold caches")
    left.set(xscale="log", yscale="log", xlabel="samples", ylabel="milliseconds a batch of 128")
    left.set_title("draw a batch, correct its codes")
    left.legend(loc="upper left", bbox_to_anchor=(0, 0.9))
    for name, rows in samplers.groupby("miner", sort=False):
        colour, marker = _PEERS[str(name)]
        right.plot(rows["identities"], rows["milliseconds"], marker=marker, color=colour, markersize=5)
        last = rows.iloc[-1]
        right.annotate(
            str(name), (last["identities"], last["milliseconds"]), (0, 7), textcoords="offset points",
            ha="right", fontsize=9,
        )  # fmt: skip
    right.set(xscale="log", xlabel="identities, four samples each", title="BoN and what it replaces")
    return figure


def memory(parts: pd.Series) -> Figure:
    """Where the bytes of a sample go, as one bar.

    Args:
        parts: bytes a sample by name.
    """
    figure, ax = plt.subplots(figsize=(9.6, 2.0))
    left = 0.0
    colours = (*ACCENTS, MINER_COLOURS["bag"], MINER_COLOURS["random"], MUTED, "#B8B8B8")
    few = parts < 2  # bars too narrow for a name
    parts = pd.concat([parts[~few], pd.Series({"all other": parts[few].sum()})[: few.sum()]])
    for i, (name, size) in enumerate(parts.items()):
        ax.barh(0, size, left=left, color=colours[i % len(colours)], edgecolor="white")
        text = f"{str(name).replace(' ', chr(10), 1)}\n{size:.1f}"
        ax.text(left + size / 2, -0.46, text, ha="center", va="top", fontsize=8)
        left += size
    ax.axvline(32, color=INK, linewidth=1, linestyle="--")
    ax.text(32.2, 0.2, "32,\nthe limit", va="center", fontsize=8)
    ax.set(xlabel="bytes a sample", yticks=[], xlim=(0, 35), ylim=(-1.35, 0.5))
    ax.grid(visible=False)
    return figure


def shares(steps: pd.DataFrame) -> Figure:
    """Milliseconds of a training step by part, and BoN's share of it, a panel an encoder.

    Args:
        steps: as :func:`~costs.step_costs` gives it.
    """
    figure, axes = plt.subplots(len(steps), 1, figsize=(9.6, 0.95 * len(steps) + 0.7), squeeze=False)
    for ax, (_, row) in zip(axes[:, 0], steps.iterrows(), strict=True):
        ax.barh(0, row["training"], color=MUTED, label="forward, loss, backward, optimiser")
        ours, name = row["draw"] + row["update"], f"{row['encoder']}, {row['method']}"
        ax.barh(0, ours, left=row["training"], color=MINER_COLOURS["bag"], hatch="//", edgecolor="white", label="BoN")
        total = row["training"] + ours
        ax.text(total * 1.01, 0, f"BoN {ours:.1f} ms, {row['share']:.2%}", va="center", fontsize=9)
        ax.set(yticks=[0], yticklabels=[name], xlim=(0, total * 1.25))
        ax.grid(visible=False)
    axes[-1, 0].set_xlabel("milliseconds a step of 128 images")
    axes[0, 0].legend(loc="lower left", ncols=2, bbox_to_anchor=(0, 1))
    return figure


def variants(table: pd.DataFrame) -> Figure:
    """How much faster a training step gets by each change, against the step as it is.

    Args:
        table: as :func:`~costs.step_variants` gives it.
    """
    table = table.query("variant != 'as it is'")
    figure, ax = plt.subplots(figsize=(9.6, 0.34 * len(table) + 0.9))
    for y, (_, row) in enumerate(table.iterrows()):
        ax.hlines(y, 1, row["speedup"], color=MUTED, linewidth=2)
        ax.plot(row["speedup"], y, "o", color=INK)
        left = row["speedup"] < 1
        ax.annotate(
            f"{row['speedup']:.2f}", (row["speedup"], y), (-8 if left else 8, 0), textcoords="offset points",
            ha="right" if left else "left", va="center", fontsize=9,
        )  # fmt: skip
    ax.axvline(1, color=INK, linewidth=1)
    ax.set(yticks=range(len(table)), yticklabels=table["variant"], ylim=(len(table) - 0.4, -0.6))
    ax.set(xlabel="speed against the step as it is (right of the line is faster)")
    low, high = table["speedup"].min(), table["speedup"].max()
    ax.set_xlim(min(low, 0.9) - 0.06, max(high, 1.1) + 0.06)
    return figure
