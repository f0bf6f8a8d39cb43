"""One run: its curves, and where its time went."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bonlib.study.figures.style import ACCENTS, MINER_COLOURS, MUTED
from bonlib.study.names import metric_name

_LABEL: dict[str, Any] = {"color": MUTED, "ha": "right", "va": "bottom", "fontsize": 8}
_LEAST_SPAN = 0.1  # of the axis of recall: less is no change


def training_curves(
    history: pd.DataFrame,
    metric: str = "recall@1",
    *,
    baseline: pd.DataFrame | None = None,
    points: pd.DataFrame | None = None,
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
    _from_zero(axes[0], fine["loss"].max())  # pyright: ignore[reportArgumentType]
    axes[1].set_ylim(0, 1.03)
    axes[1].yaxis.set_major_formatter(PercentFormatter(1))
    if "miner.entropy_bits" in panels:
        bits: Any = history["miner.bits"].max() if "miner.bits" in history else float("nan")
        _from_zero(axes[2], max(fine["miner.entropy_bits"].max(), bits))
        axes[2].axhline(bits, color=MUTED, linestyle="--")
        axes[2].text(0.98, bits, "most", transform=axes[2].get_yaxis_transform(), **_LABEL)
    last = axes[-1]
    last.set(title=f"validation {metric_name(metric)}", xlabel="step")
    if len(history):
        last.plot(history["step"], history[metric], **style)
    if baseline is not None and len(baseline):
        shown = baseline[baseline["step"] <= max(fine["step"].max(), baseline["step"].min())]
        last.plot(shown["step"], shown[metric], color=MINER_COLOURS["random"], linestyle="--", marker="s", markersize=3)
        # Curves rise: the lower right corner is free.
        last.text(0.98, 0.03, "dashed: random", transform=last.transAxes, **_LABEL | {"color": MINER_COLOURS["random"]})
    low, high = last.get_ylim()
    spare = max(_LEAST_SPAN - (high - low), 0) / 2
    last.set_ylim(low - spare, high + spare)
    return figure


def _from_zero(ax: Axes, most: float) -> None:
    """Let an axis begin at zero, with room above what it shows; as it is where nothing is shown yet."""
    if most > 0:
        ax.set_ylim(0, 1.15 * most)


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
