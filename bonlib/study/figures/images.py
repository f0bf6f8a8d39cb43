"""Images: in rows, and what was found for a query."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bonlib.study.figures.style import INK, MINER_COLOURS


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
            place = {"transform": axes[r, 0].transAxes, "ha": "right", "va": "center"}
            axes[r, 0].text(-0.25, 0.5, names[r], fontsize=9, parse_math=False, **place)  # a name may hold dollars
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
