"""How figures look, the same everywhere: one colour a miner, one dash a form; saving them byte-stable."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bonlib.core.paths import figures_dir, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with the common kinds of colour blindness can tell apart.
MINER_COLOURS = {
    "bag": "#D55E00",
    "two-stage-bag": "#7A0177",
    "random": "#0072B2",
    "class-based": "#009E73",
    "smart": "#CC79A7",
    "subspaces": "#E69F00",
    "graph": "#56B4E9",
    "exact": "#222222",
    "refreshed-bag": "#8C3B00",
}
FORM_DASHES = {"set": "-", "triplet": "--", "pair": ":"}
LOSS_DASHES = {"multi-similarity": "--"}  # all other losses are drawn solid
INK, MUTED, ACCENTS = "#222222", "#757575", ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_STYLE: dict[str, Any] = {
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "grid.alpha": 0.3,
    "font.size": 10,
    "legend.frameon": False,
    "svg.hashsalt": "bonlib",
}


def use_style() -> None:
    """Set matplotlib's defaults to the style of the study."""
    import matplotlib as mpl

    mpl.rcParams.update(_STYLE)  # pyright: ignore[reportCallIssue, reportArgumentType]


def count_axis(ax: "Axes", ticks: int) -> None:
    """Few ticks on an axis of large numbers, in thousands."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(ticks))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def mean_and_range(ax: "Axes", groups: Any, dash: str = "-", **style: Any) -> None:
    """Draw the mean of each group of values against its key, and shade their range; ``groups`` is a grouped column."""
    ax.plot(groups.mean(), dash, **style)
    ax.fill_between(groups.min().index, groups.min(), groups.max(), color=style["color"], alpha=0.15, linewidth=0)


def save_figure(figure: "Figure", name: str) -> Path:
    """Save a figure as ``<name>.png`` and ``<name>.svg`` in the figures directory; equal pictures give equal files.

    Args:
        figure: the figure.
        name: ``<notebook>_<what>``, without suffix.

    Returns:
        The PNG file.
    """
    import matplotlib as mpl

    folder = figures_dir()
    with mpl.rc_context({"svg.hashsalt": "bonlib"}):
        write_atomically(folder / f"{name}.svg", lambda path: figure.savefig(path, metadata={"Date": None}))
    write_atomically(folder / f"{name}.png", lambda path: figure.savefig(path, dpi=150, metadata={"Software": None}))
    return folder / f"{name}.png"
