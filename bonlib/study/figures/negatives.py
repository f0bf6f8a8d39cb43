"""How hard negatives are: zero loss, active tuples, distances."""
# pandas is typed more loosely than it behaves:
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportIndexIssue=false

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from bonlib.study.figures.style import ACCENTS, FORM_DASHES, INK, MINER_COLOURS, MUTED

if TYPE_CHECKING:
    import pandas as pd


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
        history: as :func:`~bonlib.study.records.load_history` gives it.
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
