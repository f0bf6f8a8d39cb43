"""What every miner shares: the protocol, the layout of a batch, and fair streams of anchors, classmates and classes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bonlib.checks import check_embeddings
from bonlib.streams import (
    grouped,
    new_streams,
    next_anchors,
    next_class,
    next_in_class,
    random_negatives,
    random_seeds,
    with_classmates,
)

Form = Literal["set", "triplet", "pair"]
FORMS: dict[str, int] = {"set": 0, "triplet": 3, "pair": 4}  # blocks in a batch; a set has none
Ids = NDArray[np.int64]


class Layout(TypedDict, total=False):
    """Arguments that all miners share; see :class:`Miner`."""

    form: Form
    batch_size: int
    per_class: int
    steps: int | None
    seed: int


class Miner:
    """A batch sampler with one line of feedback, the protocol that all miners obey.

    Iterating yields batches of dataset indices; after the forward pass ``update(indices, embeddings)`` tells the
    miner what the encoder made of them. A subclass says which identities meet in a set (:meth:`draw_seeds`) and
    which negative an anchor gets (:meth:`draw_negatives`); without these two it draws at random.

    Anchors come from an endless shuffled stream: every sample is an anchor once before any is twice. Classmates
    come from such a stream for each class, so that all samples are forwarded about equally often. Both cost O(1) a
    draw, with no pause at the end of a pass. Classes smaller than ``per_class`` are drawn with replacement; the only
    sample of a class is its own positive. Memory: 8 bytes a sample and 16 a class.

    Args:
        labels: ``(num_samples,)`` integers, the class of each sample of the dataset.
        dim: width of the embeddings.
        form: ``"set"`` (P classes of ``per_class`` samples each), ``"triplet"`` or ``"pair"``.
        batch_size: indices in a batch.
        per_class: samples of each class in a batch of form ``"set"``; the other forms ignore it.
        steps: batches that one iteration yields; by default one pass, ``num_samples // batch_size``.
        seed: seed of the miner's own generator.

    Raises:
        ValueError: if an argument is out of its range; the message says what is allowed.
    """

    def __init__(
        self,
        labels: ArrayLike | Tensor,
        dim: int,
        *,
        form: Form = "set",
        batch_size: int = 128,
        per_class: int = 4,
        steps: int | None = None,
        seed: int = 0,
    ) -> None:
        self.classes, self.class_of = _checked_labels(labels)
        _check_layout(form, batch_size, per_class, len(self.classes))
        if steps is not None and steps < 1:
            raise ValueError(f"steps is {steps}; give at least 1, or None for one pass over the samples.")
        if dim < 1:
            raise ValueError(f"dim is {dim}; give the width of the embeddings, at least 1.")
        self.dim, self.num_samples = dim, len(self.class_of)
        self.form, self.batch_size, self.per_class, self.seed = form, batch_size, per_class, seed
        self.steps = steps or max(self.num_samples // batch_size, 1)
        self._rng = np.random.default_rng(seed)
        self._order, self._first, self._count = grouped(self.class_of, len(self.classes))
        self._cursor = np.zeros(len(self.classes), dtype=np.int32)  # next of each class
        self._streams = new_streams()  # of anchors and of classes
        self._drawn = 0  # batches of this pass
        self._resume = 0

    @property
    def index_tuple(self) -> tuple[Tensor, ...] | None:
        """Positions in the batch that make tuples, as pytorch-metric-learning's losses take them.

        ``None`` for sets (the loss mines inside the batch), ``(anchor, positive, negative)`` for triplets,
        ``(anchor, positive, anchor, negative)`` for pairs: constant, because the layout is fixed.
        """
        blocks = FORMS[self.form]
        return tuple(torch.arange(self.batch_size).chunk(blocks)) if blocks else None

    def __len__(self) -> int:
        """Batches that one iteration yields."""
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        """Yield batches of dataset indices; after ``load_state_dict`` the rest of the pass, else a whole one."""
        self._drawn, self._resume = self._resume, 0
        while self._drawn < self.steps:
            self._drawn += 1
            yield self._draw_batch().tolist()

    def set_epoch(self, epoch: int) -> None:
        """Begin a pass, with the generator seeded by ``seed`` and ``epoch``: for loops that number their epochs."""
        self._rng = np.random.default_rng([self.seed, epoch])
        self._drawn = self._resume = 0

    def update(self, indices: ArrayLike | Tensor, embeddings: Tensor) -> None:
        """Tell the miner what the encoder made of a batch; random sampling learns nothing from it.

        Args:
            indices: ``(batch,)`` dataset indices.
            embeddings: ``(batch, dim)`` floating point on any device; detached here.

        Raises:
            ValueError: if indices are out of range or of another length than the embeddings, or the embeddings of
                another width or not finite.
        """
        self._checked_update(indices, embeddings)

    @property
    def due(self) -> bool:
        """Whether :meth:`refresh` is to be called before the next batch; never, where a miner needs none."""
        return False

    def refresh(self, embed: Callable[[Ids], Tensor]) -> None:
        """Let the miner look at the data set through the encoder as it is now; most need no such look.

        Args:
            embed: dataset indices ``(n,)`` to embeddings ``(n, dim)``, without gradients.
        """

    def stats(self) -> dict[str, float]:
        """Numbers that describe the miner's state; random sampling has none."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything that influences the next batch, as tensors and plain values (loads with ``weights_only=True``)."""
        return {
            "config": self._config(),
            "drawn": self._drawn,
            "rng": self._rng.bit_generator.state,
            **{name: torch.from_numpy(getattr(self, "_" + name).copy()) for name in _STREAMS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; iterating then goes on in the middle of the pass where it was saved.

        Raises:
            ValueError: if the state is of a miner made with other arguments; nothing is changed then.
        """
        self._check_config(state)
        self._drawn = self._resume = state["drawn"]
        self._rng.bit_generator.state = state["rng"]
        for name in _STREAMS:
            setattr(self, "_" + name, state[name].numpy().copy())

    def _check_config(self, state: Mapping[str, Any]) -> None:
        for name, value in self._config().items():
            if state["config"].get(name) != value:
                raise ValueError(
                    f"state has {name}={state['config'].get(name)!r}, this miner has {value!r}; "
                    "make it with the labels and arguments of the saved one."
                )

    def _config(self) -> dict[str, Any]:
        """Arguments that a saved state must share."""
        return {
            "miner": type(self).__name__,
            "num_samples": self.num_samples,
            "num_classes": len(self.classes),
            "dim": self.dim,
            "form": self.form,
            "batch_size": self.batch_size,
            "per_class": self.per_class,
            "steps": self.steps,
        }

    def _draw_batch(self) -> Ids:
        if self.form == "set":
            return self._with_classmates(self.draw_seeds(self.batch_size // self.per_class), self.per_class - 1).ravel()
        tuples = self.batch_size // FORMS[self.form]
        anchors = self.draw_anchors(tuples)
        positives = self._with_classmates(anchors, 1)[:, 1]
        if self.form == "triplet":
            return np.concatenate([anchors, positives, self.draw_negatives(anchors)])
        others = self.draw_anchors(tuples)
        return np.concatenate([anchors, positives, others, self.draw_negatives(others)])

    def draw_seeds(self, num_classes: int) -> Ids:
        """One sample each of ``num_classes`` different classes: ``(num_classes,)``; they get their classmates later."""
        return random_seeds(num_classes, self._streams, self._first, self._count, self._order, self._cursor, self._rng)

    def draw_negatives(self, anchors: Ids) -> Ids:
        """A sample of another class for each anchor: ``(n,)`` to ``(n,)``."""
        return random_negatives(anchors, self.class_of, self._first, self._count, self._order, self._rng)

    def draw_anchors(self, count: int) -> Ids:
        """The next ``count`` samples of the endless shuffled stream: ``(count,)``."""
        return next_anchors(count, self.num_samples, self._streams, self._rng)

    def _with_classmates(self, ids: Ids, count: int) -> Ids:
        """Each sample followed by ``count`` others of its class: ``(n,)`` to ``(n, 1 + count)``."""
        return with_classmates(
            ids, count, self.class_of, self._first, self._count, self._order, self._cursor, self._rng
        )

    def seeds_around(self, num_classes: int, anchors: Ids, nearby: Callable[[int], Iterable[tuple[int, int]]]) -> Ids:
        """One sample each of ``num_classes`` classes: the anchors, each with classes that are near it.

        Args:
            num_classes: classes in all.
            anchors: ``(n,)`` samples, of which each brings its share of the classes.
            nearby: for an anchor, pairs of a class and a sample of it (-1: the next one), in order of preference; where
                they are too few, random classes fill up.

        Returns:
            ``(num_classes,)``.
        """
        seeds: dict[int, int] = {}
        for g, anchor in enumerate(anchors):
            wanted = num_classes * (g + 1) // len(anchors)
            for c, sample in chain([(int(self.class_of[anchor]), int(anchor))], nearby(int(anchor))):
                if len(seeds) == wanted:
                    break
                if c not in seeds:
                    seeds[c] = self._next_of(c) if sample < 0 else sample
            while len(seeds) < wanted:
                c = int(next_class(len(self.classes), self._streams, self._rng))
                seeds.setdefault(c, -1)
        return np.array([self._next_of(c) if sample < 0 else sample for c, sample in seeds.items()], dtype=np.int64)

    def _next_of(self, c: int) -> int:
        """The next sample of the stream of class ``c``."""
        return int(next_in_class(c, self._first, self._count, self._order, self._cursor, self._rng))

    def _check_groups(self, groups: int) -> None:
        """Refuse a number of anchors that a set has no room for."""
        if self.form == "set" and not 1 <= groups <= self.batch_size // self.per_class:
            raise ValueError(
                f"groups is {groups}; allowed are 1 to {self.batch_size // self.per_class}, the classes of a batch."
            )

    def _checked_update(self, indices: ArrayLike | Tensor, embeddings: Tensor) -> tuple[Ids, Tensor]:
        """Both arguments of :meth:`update`, checked: ``(batch,)`` and finite float32 ``(batch, dim)``."""
        embeddings = check_embeddings(embeddings, self.dim)
        return self._checked_indices(indices, len(embeddings)), embeddings

    def _checked_indices(self, indices: ArrayLike | Tensor, length: int) -> Ids:
        array = indices.cpu().numpy() if isinstance(indices, Tensor) else np.asarray(indices)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(f"indices has shape {array.shape} and dtype {array.dtype}; give a 1-D array of integers.")
        if len(array) != length:
            raise ValueError(f"indices has length {len(array)} and embeddings {length}; give one row for each index.")
        if array.size and not (array.min() >= 0 and array.max() < self.num_samples):
            raise ValueError(
                f"indices holds values from {array.min()} to {array.max()}; allowed are 0 to {self.num_samples - 1}, "
                "positions in the labels that the miner was made with."
            )
        return array.astype(np.int64)


_STREAMS = ("order", "cursor", "streams")


def _checked_labels(labels: ArrayLike | Tensor) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """The distinct labels, sorted, and for each sample the position of its label among them."""
    array = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"labels has shape {array.shape} and dtype {array.dtype}; give a 1-D array of integers, "
            "one for each sample (numpy.unique(names, return_inverse=True)[1] makes them from names)."
        )
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if high - low < 4 * array.size and high < 2**31 and low >= -(2**31):  # dense: no need to sort 100 million labels
        shifted = array.astype(np.int64) - low
        present = np.zeros(high - low + 1, dtype=bool)
        present[shifted] = True
        classes = (np.flatnonzero(present) + low).astype(np.int32)
        class_of = (np.cumsum(present, dtype=np.int32) - 1)[shifted]
    else:
        classes, class_of = np.unique(array, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"labels has {len(classes)} class(es); a negative needs at least 2.")
    return classes, class_of.astype(np.int32, copy=False)


def _check_layout(form: str, batch_size: int, per_class: int, num_classes: int) -> None:
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; allowed are {', '.join(map(repr, FORMS))}.")
    if form == "set" and per_class < 1:
        raise ValueError(f"per_class is {per_class}; give at least 1 (2 or more for a loss that needs positives).")
    unit, name = (per_class, "per_class") if form == "set" else (FORMS[form], f"{FORMS[form]} for form {form!r}")
    least = 2 * per_class if form == "set" else unit
    if batch_size % unit or batch_size < least:
        below, above = max(batch_size // unit * unit, least), max((batch_size // unit + 1) * unit, least)
        near = f"{below} or {above}" if below != above else f"{below}"
        raise ValueError(
            f"batch_size is {batch_size}; it must be a multiple of {unit} ({name}), at least {least}. Near are {near}."
        )
    if form == "set" and batch_size // per_class > num_classes:
        raise ValueError(
            f"batch_size {batch_size} with per_class {per_class} asks for {batch_size // per_class} classes a batch, "
            f"but labels has {num_classes}; lower batch_size to {num_classes * per_class} or raise per_class."
        )
