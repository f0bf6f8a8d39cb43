"""The method in two dimensions: hyperplanes and buckets, a pool and its window."""

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from bonlib.study.figures.style import ACCENTS, INK, MINER_COLOURS, MUTED

_FAR = 4.0  # of rows that are longer a hash takes the direction alone, so that its planes end there
_COLOURS = (MINER_COLOURS["bag"], MINER_COLOURS["random"], *ACCENTS)


def buckets_in_the_plane(points: NDArray[Any], hashes: Mapping[str, Callable[[Tensor], Tensor]]) -> Figure:
    """Points coloured by bucket, and the lines that part the buckets; one panel a state of the hash.

    Args:
        points: ``(n, 2)``.
        hashes: by the title of their panel, functions from rows ``(n, 2)`` to hidden units ``(n, bits)``, whose signs
            are the bits.
    """
    figure, axes = plt.subplots(1, len(hashes), figsize=(3.2 * len(hashes), 3.2), squeeze=False)
    for ax, (title, units_of) in zip(axes[0], hashes.items(), strict=True):
        signs = (units_of(torch.as_tensor(points).float()) > 0).numpy()
        bits = signs.shape[1]
        codes = signs @ (1 << np.arange(bits))
        for code in range(2**bits):
            chosen, colour = codes == code, _COLOURS[code % len(_COLOURS)]
            marker = "os^Dv"[code % 5]
            ax.scatter(*points[chosen].T, color=colour, marker=marker, s=42, label=f"{code:0{bits}b}")
        limit = 1.25 * np.abs(points).max()
        side = np.linspace(-limit, limit, 121)
        grid = np.stack(np.meshgrid(side, side), axis=-1)  # (121, 121, 2)
        units = units_of(torch.from_numpy(grid.reshape(-1, 2)).float()).numpy().reshape(121, 121, -1)
        units[np.linalg.norm(grid, axis=-1) > _FAR] = np.nan
        for bit in range(bits):
            ax.contour(side, side, units[..., bit], levels=[0], colors=INK, linewidths=1, linestyles="-:"[bit % 2])
        ax.set(title=title, xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    axes[0, -1].legend(title="code", fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def window_in_the_plane(means: NDArray[Any], anchor: int, order: NDArray[Any], window: tuple[int, int]) -> Figure:
    """An anchor's identity and its pool, numbered by rank, from 1; those of the window are ringed.

    Args:
        means: ``(identities, 2)``.
        anchor: identity of the anchor.
        order: identities of the pool, nearest first.
        window: first rank that is drawn from, and the one after the last.
    """
    figure, ax = plt.subplots(figsize=(5.2, 3.6))
    ax.scatter(*means[anchor], color=INK, s=70, marker="*", label="the anchor's identity")
    ax.scatter(*means[order].T, color=MUTED, s=20, label="its pool")
    chosen = means[order[window[0] : window[1]]]
    ax.scatter(*chosen.T, s=130, facecolors="none", edgecolors=MINER_COLOURS["bag"], linewidths=1.6, label="the window")
    _number(ax, means[order])
    ax.set(aspect="equal")
    ax.margins(0.35, 0.2)
    figure.legend(fontsize=8, loc="outside right center")
    return figure


def _number(ax: Axes, places: NDArray[Any]) -> None:
    for rank, place in enumerate(places):
        ax.annotate(f"rank {rank + 1}", place, xytext=(7, 5), textcoords="offset points", fontsize=9)
