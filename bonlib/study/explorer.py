"""Look into buckets: an anchor, its code, its bag and the truth by exact search, as a figure or to click through."""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from itertools import islice
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from bonlib.bag import BagOfNegatives
from bonlib.core.kernels import UNSEEN
from bonlib.datasets.labelled import LabelledSet
from bonlib.study.analysis import bag_of, embed_all
from bonlib.study.experiment import Experiment
from bonlib.study.figures.images import image_grid, show_image
from bonlib.study.figures.style import INK, MINER_COLOURS, MUTED, use_style
from bonlib.study.sheet import data_uri, picture, png

if TYPE_CHECKING:
    from ipywidgets import VBox

use_style()
_MOST_NAMES = 3000  # that the search field offers
_WIDEST = 11  # characters below an image of a figure
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Moment:
    """Codes and embeddings of all samples at one step of a training."""

    step: int
    codes: NDArray[np.int32]  # (num_samples,) as the table had them, -1 for a sample not yet seen
    embeddings: Tensor  # (num_samples, dim), of the encoder as it was


class Story:
    """What a training with BoN looked like at some of its steps, for the explorer.

    Args:
        experiment: a run whose miner is a :class:`~bonlib.bag.BagOfNegatives`.

    Attributes:
        moments: what was remembered, in order of the steps.

    Raises:
        ValueError: if the run's miner has no buckets.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment  # which makes encoder and miner anew where it is run again
        self.dataset, self.bits = experiment.train, self.bag.bits
        self.moments: list[Moment] = []

    def remember(self, step: int, embeddings: Tensor | None = None) -> None:
        """Keep codes and embeddings as they are now; embeds the whole data set where they are not given.

        What was remembered of this step or later ones is of an earlier run, and is forgotten.
        """
        codes = self.bag.codes(np.arange(len(self.dataset)))
        known = embed_all(self._experiment.encoder, self.dataset) if embeddings is None else embeddings
        before = [moment for moment in self.moments if moment.step < step]
        self.moments = [*before, Moment(step, codes.astype(np.int32), known)]

    @property
    def bag(self) -> BagOfNegatives:
        """The bag of the run, as it is now."""
        bag = bag_of(self._experiment.miner)
        if bag is None:
            raise ValueError(
                f"miner is {self._experiment.config.miner!r}, which has no buckets; explore a run of 'bag'."
            )
        return bag


@dataclass(frozen=True)
class View:
    """The bag of one anchor at one moment, nearest first, beside what an exact search finds."""

    anchor: int
    step: int
    code: str  # bits, the highest first; empty where the anchor has none yet
    bag: Ids  # negatives in the anchor's bucket
    bag_ranks: Ids  # place of each among all negatives by distance, from 1
    positives: Ids  # of the anchor's class in its bucket
    nearest: Ids  # the exact nearest negatives
    negatives: int  # of the whole data set


def look(story: Story, anchor: int, moment: int = -1, *, nearest: int = 12) -> View:
    """The bucket of an anchor at a moment, against exact search over the whole data set.

    Args:
        story: moments of a training.
        anchor: dataset index.
        moment: which of the story's moments.
        nearest: how many exact nearest negatives to find.

    Raises:
        ValueError: if there is no such sample or no moment is remembered.
    """
    if not story.moments:
        raise ValueError("story has no moments; call story.remember(step) while training, or after it.")
    if not 0 <= anchor < len(story.dataset):
        raise ValueError(f"anchor is {anchor}; allowed are 0 to {len(story.dataset) - 1}.")
    seen, labels = story.moments[moment], story.dataset.labels.numpy()
    distances = (seen.embeddings - seen.embeddings[anchor]).norm(dim=1).numpy()
    others = np.flatnonzero(labels != labels[anchor])
    order = others[np.argsort(distances[others], kind="stable")]
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    code = int(seen.codes[anchor])
    members = np.flatnonzero(seen.codes == code) if code != UNSEEN else np.empty(0, dtype=np.int64)
    bag, own = members[labels[members] != labels[anchor]], members[labels[members] == labels[anchor]]
    bag, own = bag[np.argsort(rank[bag])], own[own != anchor]
    own = own[np.argsort(distances[own])]
    bits = f"{code:0{story.bits}b}" if code != UNSEEN else ""
    return View(anchor, seen.step, bits, bag, rank[bag], own, order[:nearest], len(order))


def over_time(story: Story, *, anchors: int = 200, margin: float = 0.2, seed: int = 0) -> pd.DataFrame:
    """What bags are worth at each moment: a negative is drawn from the bag of some anchors, and one at random.

    Args:
        story: moments of a training.
        anchors: how many, drawn with ``seed`` from the samples that have a code; those with an empty bag are left out.
        margin: of the triplet loss.
        seed: of anchors, positives and negatives.

    Returns:
        A row a moment, by ``step``: ``negatives``, the mean size of a bag; ``rank``, the median place of a drawn
        negative among all by distance, from 1, and ``rank by chance``; the share of triplets with a random positive
        that are ``active``, and the same with random negatives, ``active by chance``.
    """
    labels, rows = story.dataset.labels.numpy(), []
    columns = ["negatives", "rank", "rank by chance", "active", "active by chance"]
    for moment, seen in enumerate(story.moments):
        rng, drawn = np.random.default_rng(seed), []
        for anchor in rng.permutation(np.flatnonzero(seen.codes != UNSEEN))[:anchors].tolist():
            view, same = look(story, anchor, moment, nearest=0), labels == labels[anchor]
            positives = np.flatnonzero(same)[np.flatnonzero(same) != anchor]
            if not (len(view.bag) and len(positives)):
                continue
            place = int(rng.integers(len(view.bag)))
            others = [rng.choice(positives), view.bag[place], rng.choice(np.flatnonzero(~same))]
            to = (seen.embeddings[others] - seen.embeddings[anchor]).norm(dim=1).numpy()
            active = to[1:] < to[0] + margin
            drawn.append([len(view.bag), view.bag_ranks[place], view.negatives / 2, *active])
        table = pd.DataFrame(drawn, columns=columns).astype(float)
        rows.append({"step": seen.step} | table.mean().to_dict() | {"rank": table["rank"].median()})
    return pd.DataFrame(rows).set_index("step")


def telling_anchor(story: Story, *, of: int = 100, seed: int = 0) -> int:
    """An anchor to look at: of some whose last bag is crowded, the one whose bag holds most of the exact nearest.

    Args:
        story: moments of a training.
        of: how many to choose from; all have eight negatives of three classes or more. Where none has, any sample.
        seed: of those to choose from.
    """
    codes, labels = story.moments[-1].codes, story.dataset.labels.numpy()
    rng = np.random.default_rng(seed)
    views = (look(story, anchor) for anchor in rng.permutation(np.flatnonzero(codes != UNSEEN))[: 5 * of].tolist())
    crowded = list(islice((v for v in views if len(v.bag) >= 8 and len(np.unique(labels[v.bag])) >= 3), of))
    held = [len(np.intersect1d(view.bag, view.nearest)) for view in crowded]
    return crowded[int(np.argmax(held))].anchor if crowded else int(rng.integers(0, len(labels)))


def draw_view(story: Story, view: View, *, columns: int = 12) -> Figure:
    """A view as a figure: the anchor framed, positives, of the bag the nearest and some by chance, the exact nearest.

    Args:
        story: where the images are from.
        view: as :func:`look` gives it.
        columns: images in a row.
    """
    rows: list[tuple[str, list[tuple[int, str, str]]]] = []
    names = _names(story.dataset)
    first = [(view.anchor, _label(names[view.anchor]), INK)]
    first += [(int(i), _label(names[i]), MINER_COLOURS["random"]) for i in view.positives[: columns - 1]]
    rows.append(("the anchor; same class,\nsame bucket", first))
    of = len(view.bag)
    by_chance = np.sort(np.random.default_rng(view.anchor).permutation(of)[:columns])
    for title, places in (
        (f"its bag of {of}:\nthe nearest", range(min(of, columns))),
        ("its bag:\nby chance", by_chance),
    ):
        shown = [(int(view.bag[i]), _label(names[view.bag[i]], f"{view.bag_ranks[i]}.")) for i in places]
        rows.append((title, [(i, name, MINER_COLOURS["bag"]) for i, name in shown]))
    in_bag = set(view.bag.tolist())
    exact = [(int(i), _label(names[i]), MINER_COLOURS["bag"] if i in in_bag else MUTED) for i in view.nearest[:columns]]
    rows.append(("exact nearest\n(orange: in the bag)", exact))
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(0.72 * columns + 1.7, 0.95 * len(rows) + 0.5), squeeze=False
    )
    for r, (title, cells) in enumerate(rows):
        axes[r, 0].text(
            -0.25, 0.5, title, transform=axes[r, 0].transAxes, ha="right", va="center", fontsize=8, color=INK
        )
        for c, ax in enumerate(axes[r]):
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
            ax.spines[:].set(visible=c < len(cells), linewidth=2)
            if c < len(cells):
                sample, name, colour = cells[c]
                show_image(ax, story.dataset.pixels([sample])[0])
                ax.spines[:].set_color(colour)
                ax.set_xlabel(name, fontsize=7, labelpad=2, parse_math=False)
    figure.suptitle(_title(view), x=0.01, ha="left", fontsize=10)
    return figure


class Explorer:
    """The same view to click through in JupyterLab: choose an anchor, move through time, click an image to go there.

    Args:
        story: moments of a training.
        anchor: sample to begin with.
        most: images of the bag.

    Attributes:
        box: the widget to display.
        view: what is shown.
    """

    def __init__(self, story: Story, anchor: int | None = None, *, most: int = 24) -> None:
        import ipywidgets as widgets

        self._story, self._most, self._rng = story, most, np.random.default_rng(0)
        self._names = _names(story.dataset)
        self._prefix = f"bonlib-{uuid4().hex[:8]}"  # JupyterLab shows the explorers of all notebooks on one page
        steps = [(f"step {moment.step}", i) for i, moment in enumerate(story.moments)]
        self.time = widgets.SelectionSlider(
            options=steps, value=len(steps) - 1, description="time", continuous_update=False
        )
        self.search = widgets.Combobox(
            placeholder="type a class name, press Enter", options=story.dataset.class_names[:_MOST_NAMES],
            description="class", continuous_update=False,
        )  # fmt: skip
        self.random = widgets.Button(description="random anchor", icon="random")
        self.heading = widgets.HTML()
        self.images = widgets.VBox()
        self._style = widgets.HTML()
        controls = widgets.HBox([self.time, self.search, self.random], layout={"flex_flow": "row wrap"})
        self.box: VBox = widgets.VBox([controls, self.heading, self._style, self.images])
        self.view: View
        self.time.observe(lambda change: self.show(), "value")
        self.search.observe(lambda change: self._find(change["new"]), "value")
        self.random.on_click(lambda button: self.show(int(self._rng.integers(0, len(story.dataset)))))
        self.show(telling_anchor(story) if anchor is None else anchor)

    def show(self, anchor: int | None = None) -> None:
        """Show an anchor, by default the same as before, at the time that the slider tells."""
        self.view = look(self._story, self.view.anchor if anchor is None else anchor, self.time.value)
        view = self.view
        self.heading.value = f"<b>{_title(view)}</b>"
        own = np.r_[view.anchor, view.positives[:11]]
        bag = view.bag[: self._most]
        shown = {int(i) for ids in (own, bag, view.nearest) for i in ids}
        self._style.value = "<style>" + "".join(map(self._rule, sorted(shown))) + "</style>"
        self.images.children = [
            *self._row("anchor, then its class in the bucket", own, {view.anchor}),
            *self._row("its bag: class and rank by exact search", bag, set()),
            *self._row("exact nearest negatives; thick frame: in the bag", view.nearest, set(view.bag.tolist())),
        ]

    def _row(self, title: str, ids: Ids, framed: set[int]) -> list[Any]:
        import ipywidgets as widgets

        ranks, buttons = dict(zip(self.view.bag.tolist(), self.view.bag_ranks.tolist(), strict=True)), []
        for i in ids.tolist():
            told = f"{self._names[i]}  {ranks[i]:,}." if i in ranks else self._names[i]
            # A button whose background is the image: a click on the image makes it the anchor.
            colour = INK if i == self.view.anchor else MINER_COLOURS["bag"]
            border = f"3px solid {colour}" if i in framed else f"1px solid {MUTED}"
            button = widgets.Button(tooltip=told, layout={"width": "56px", "height": "56px", "border": border})
            button.add_class(f"{self._prefix}-{i}")
            button.on_click(lambda button, i=i: self.show(i))
            label = widgets.HTML(f'<div style="width:84px;text-align:center;line-height:1.2">{escape(told)}</div>')
            buttons.append(widgets.VBox([button, label], layout={"align_items": "center"}))
        empty = [] if buttons else [widgets.Label("none: this bucket holds no other class")]
        return [widgets.HTML(f"<i>{title}</i>"), widgets.HBox(buttons or empty, layout={"flex_flow": "row wrap"})]

    def _rule(self, sample: int) -> str:
        picture = f"url({data_uri(png(self._story.dataset.pixels([sample])[0]))})"
        return f".{self._prefix}-{sample}{{background:{picture} center/contain no-repeat !important}}"

    def _find(self, name: str) -> None:
        """Make a random sample of the class of that name the anchor; a name that is none is left alone."""
        names = self._story.dataset.class_names
        if name in names:
            members = np.flatnonzero(self._story.dataset.labels.numpy() == names.index(name))
            self.show(int(self._rng.choice(members)))


def draw_windows(dataset: LabelledSet, bag: BagOfNegatives, anchor: int, windows: Iterable[tuple[int, int]]) -> Figure:
    """The identities that windows of ranks draw from, a row a window: the anchor, then one sample of each by rank.

    Beside each row stand its ranks, counted from 1, and the mean distance of its identities from that of the anchor.

    Args:
        dataset: what the bag is over.
        bag: of two stages.
        anchor: dataset index.
        windows: first rank, and the one after the last, as in a slice.
    """
    pool, rows, names = bag.candidates(anchor), [], []
    own = bag.means_of(bag.class_of[[anchor]].astype(np.int64))
    for first, last in windows:
        drawn = pool[first:last]
        rows.append(np.r_[anchor, [bag.samples_of(c)[0] for c in drawn]].astype(np.int64))
        apart = f"\ndistance {float((bag.means_of(drawn) - own).norm(dim=1).mean()):.2f}" if len(drawn) else ""
        names.append(f"ranks {first + 1} to {last}{apart}")
    return image_grid(
        [dataset.pixels(row) for row in rows], names, f"the anchor, then identities of its pool of {len(pool)}"
    )


class Dial:
    """The dial of hardness to move: which identities a window of ranks draws from, for an anchor.

    Args:
        dataset: what the bag is over.
        bag: of two stages, filled.
        anchor: dataset index to begin with.

    Attributes:
        window: the slider.
        box: the widget to display.
    """

    def __init__(self, dataset: LabelledSet, bag: BagOfNegatives, anchor: int) -> None:
        import ipywidgets as widgets

        self._dataset, self._bag, self.anchor, self._rng = dataset, bag, anchor, np.random.default_rng(0)
        self.window = widgets.IntRangeSlider(
            value=bag.window, min=0, max=bag.pool, description="window", continuous_update=False
        )
        self.random = widgets.Button(description="random anchor", icon="random")
        self.image = widgets.Image(format="png", layout={"max_width": "100%"})
        self.box: VBox = widgets.VBox([widgets.HBox([self.window, self.random]), self.image])
        self.window.observe(lambda change: self.show(), "value")
        self.random.on_click(lambda button: self.show(int(self._rng.integers(0, len(dataset)))))
        self.show()

    def show(self, anchor: int | None = None) -> None:
        """Show an anchor, by default the same as before, in the window that the slider tells."""
        self.anchor = self.anchor if anchor is None else anchor
        figure = draw_windows(self._dataset, self._bag, self.anchor, [self.window.value])
        self.image.value = picture(figure)
        plt.close(figure)


def _title(view: View) -> str:
    code = f"code {view.code}" if view.code else "no code yet"
    bag = f"{len(view.bag)} negatives in its bag"
    best = f", the nearest is number {view.bag_ranks[0]} of {view.negatives:,}" if len(view.bag) else ""
    return f"step {view.step} · {code} · {bag}{best}"


def _label(name: str, rank: str = "") -> str:
    """A name, and a rank, as wide as an image at most: beside each other where they fit, else one below the other."""
    if len(name) + len(rank) <= _WIDEST:
        return f"{name}  {rank}".rstrip()
    return f"{name if len(name) <= _WIDEST else name[: _WIDEST - 1] + '…'}\n{rank}".rstrip()


def _names(dataset: LabelledSet) -> list[str]:
    """The class name of each sample."""
    return [dataset.class_names[label] for label in dataset.labels.tolist()]
