"""How hard negatives are: zero loss, active tuples, distances."""
# pandas is typed more loosely than it behaves:
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportIndexIssue=false

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from bonlib.study.figures.style import ACCENTS, FORM_DASHES, INK, MINER_COLOURS, MUTED


def zero_loss(shares: pd.DataFrame) -> Figure:
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
        xscale="log", ylim=(-0.02, 1.02), xlabel="identities to draw negatives from", ylabel="triplets with zero loss"
    )
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.legend(loc="center right", bbox_to_anchor=(1, 0.66), fontsize=9)
    return figure


def active_over_training(history: pd.DataFrame) -> Figure:
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


def distances_drawn(distances: Mapping[str, pd.DataFrame], margin: float) -> Figure:
    """Densities of the distances from anchors to their positives and, a line a miner, to their negatives.

    Args:
        distances: by the name of the miner, as :func:`~bonlib.study.analysis.drawn_distances` gives them.
        margin: of the loss: the vertical line stands at the median positive and the margin.
    """
    figure, ax = plt.subplots(figsize=(6.4, 3.4))
    positives = next(iter(distances.values()))["positive"]
    reach = positives.median() + margin
    sns.kdeplot(x=positives, color=MUTED, fill=True, alpha=0.3, linewidth=0, cut=0, label="positives", ax=ax)
    colours = (MINER_COLOURS["random"], ACCENTS[3], MINER_COLOURS["bag"], MINER_COLOURS["two-stage-bag"], INK)
    dashes = ("-", ":", "-", "-", "--")
    for (name, of), colour, dash in zip(distances.items(), colours, dashes, strict=False):
        sns.kdeplot(x=of["negative"], color=colour, linestyle=dash, linewidth=2, cut=0, label=name, ax=ax)
    ax.axvline(reach, color=INK, linewidth=1)
    ax.text(reach, ax.get_ylim()[1], " positive + margin", va="top", fontsize=8)
    ax.set(xlabel="distance from the anchor", ylabel="density", yticks=[], xlim=(0, None))
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    return figure
