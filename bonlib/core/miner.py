"""What every miner shares: the protocol, the layout of a batch, and fair streams of anchors, classmates and classes."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain
from threading import RLock
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bonlib.core.checks import all_or_nothing, as_array, check_indices, locked, own_state, rows_of, whole_number
from bonlib.core.kernels import (
    CLASSES,
    grouped,
    new_streams,
    next_anchors,
    next_in_class,
    next_in_stream,
    random_negatives,
    random_seeds,
    with_classmates,
)
from bonlib.core.layout import FORMS, Form, Ids, check_layout, checked_labels, label_fingerprint, tuple_positions
from bonlib.core.processes import world_size


class Miner(ABC):
    """A batch sampler with one line of feedback, the protocol that all miners obey.

    Iterating yields batches of dataset indices; after the forward pass ``update(indices, embeddings)`` tells the
    miner what the encoder made of them. A miner says which identities meet in a set (:meth:`draw_seeds`) and which
    negative an anchor gets (:meth:`draw_negatives`); :class:`RandomSampling` is the plainest. Arrays in which it keeps
    what it learns are named in ``learned``: they are saved and loaded with the rest of the state.

    Anchors come from an endless shuffled stream, of samples, or of classes where sets are of look-alike identities:
    each has its turn, as an anchor or where random classes fill up, before any has it twice. Classmates come from such
    a stream for each class. All cost O(1) a draw, with no pause at the end of a pass. Small classes are drawn with
    replacement; the only sample of a class is its own positive. Memory: 8 bytes a sample and 16 a class.

    Iterating goes through one pass of ``steps`` batches; each iterator is a pass of its own, of which the latest counts
    for the state. A state saved in the middle of a pass goes on there; one saved at its end begins the next pass.

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

    learned: tuple[str, ...] = ()  # names of the attributes, NumPy arrays, that a subclass learns
    ranked = False  # whether a RankMiner parts its batches

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
        self._lock = RLock()
        self.classes, class_of = checked_labels(labels)
        self.form: Form = form
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.per_class = whole_number("per_class", per_class, 1, hint="A loss that needs positives wants 2 or more.")
        self._classes = grouped(class_of, len(self.classes))
        check_layout(form, self.batch_size, self.per_class, self._classes.count)
        self.dim = whole_number("dim", dim, 1, hint="It is the width of the embeddings.")
        self.num_samples, self.seed = len(class_of), whole_number("seed", seed, 0)
        self.steps = self.one_pass if steps is None else whole_number("steps", steps, 1, hint="None is one pass.")
        self._rng = np.random.default_rng(self.seed)
        self._streams = new_streams()  # of anchors and of classes
        self._drawn = 0  # batches of this pass
        self._resume = 0  # batches of a saved pass that the next one leaves out
        self._pass = 0  # iterators so far; the latest one's place is the state's
        self._epoch: int | None = None  # as set_epoch was told
        self._loaded = False  # whether nothing was drawn since a state was loaded

    def __getstate__(self) -> dict[str, Any]:  # for copies: each has a lock of its own
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=RLock())

    @property
    def class_of(self) -> NDArray[np.int32]:
        """``(num_samples,)`` position of each sample's label in :attr:`classes`; not to be written to."""
        return self._classes.of

    @property
    def one_pass(self) -> int:
        """Batches that go through about as many samples as there are."""
        return max(self.num_samples // self.batch_size, 1)

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that stand for the labels, sample by sample."""
        return label_fingerprint(self.classes, self.class_of)

    @property
    def index_tuple(self) -> tuple[Tensor, ...] | None:
        """Positions in the batch that make tuples, as pytorch-metric-learning's losses take them.

        ``None`` for sets (the loss mines inside the batch), ``(anchor, positive, negative)`` for triplets,
        ``(anchor, positive, anchor, negative)`` for pairs: constant, because the layout is fixed.
        """
        return tuple_positions(self.form, self.batch_size)

    def __len__(self) -> int:
        """Batches that one iteration yields."""
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        """Yield batches of dataset indices; after ``load_state_dict`` the rest of the pass, else a whole one."""
        if not self.ranked and world_size() > 1:
            text = "All processes get the same batches; wrap the miner: bonlib.core.distributed.RankMiner(miner)."
            warnings.warn(text, stacklevel=2)
        self._pass += 1
        mine, drawn = self._pass, self._resume
        self._resume, self._loaded = 0, False
        while drawn < self.steps:
            drawn += 1
            with self._lock:
                if mine == self._pass:
                    self._drawn = drawn
                batch = self._draw_batch().tolist()
            yield batch

    @locked
    def set_epoch(self, epoch: int) -> None:
        """Begin a pass, with the generator seeded by ``seed`` and ``epoch``: for loops that number their epochs.

        Right after a state was loaded, the epoch that it was saved in keeps its place; any other begins anew.
        """
        epoch = whole_number("epoch", epoch, 0)
        if self._loaded and self._resume:
            if epoch == self._epoch:
                return
            if self._epoch is not None:
                warnings.warn(
                    f"set_epoch({epoch}) begins anew, though the state that was loaded is in the middle of epoch "
                    f"{self._epoch}; to go on there, let the loop begin with that epoch: set_epoch({self._epoch}).",
                    stacklevel=3,
                )
        self._rng, self._epoch, self._loaded = np.random.default_rng([self.seed, epoch]), epoch, False
        self._drawn = self._resume = 0
        self._pass += 1

    def update(self, indices: ArrayLike | Tensor, embeddings: Any) -> None:
        """Tell the miner what the encoder made of a batch; random sampling learns nothing from it.

        Args:
            indices: ``(batch,)`` dataset indices.
            embeddings: ``(batch, dim)`` floating point on any device, or what holds them; detached here.

        Raises:
            ValueError: if indices are out of range or of another length than the embeddings, or the embeddings of
                another width or not finite.
        """
        self.checked(indices, embeddings)

    @property
    def due(self) -> bool:
        """Whether :meth:`refresh` is to be called before the next batch; never, where a miner needs none."""
        return False

    def refresh(self, embed: Callable[[Ids], Tensor]) -> None:  # noqa: B027
        """Let the miner look at the data set through the encoder as it is now; most need no such look.

        Args:
            embed: dataset indices ``(n,)`` to embeddings ``(n, dim)``, without gradients.
        """

    def stats(self) -> dict[str, float]:
        """Numbers that describe the miner's state; random sampling has none."""
        return {}

    @locked
    def state_dict(self) -> dict[str, Any]:
        """Everything that influences the next batch, as tensors and plain values (loads with ``weights_only=True``)."""
        return {
            "config": self._config(),
            "seed": self.seed,
            "drawn": self._drawn,
            "epoch": self._epoch,
            "rng": self._rng.bit_generator.state,
            "order": torch.from_numpy(self._classes.order.copy()),
            "cursor": torch.from_numpy(self._classes.cursor.copy()),
            "streams": torch.from_numpy(self._streams.copy()),
            "learned": {name: torch.from_numpy(getattr(self, name).copy()) for name in self.learned},
        }

    @locked
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; iterating then goes on in the middle of the pass where it was saved.

        Raises:
            ValueError: if the state is of a miner made with other labels or arguments, or damaged; nothing is changed
                then.
        """
        with all_or_nothing(self):
            self._check_state(state)
            self._load(state)
            self._pass += 1  # iterators that are still there are of another life

    def _load(self, state: Mapping[str, Any]) -> None:
        """Bind the parts of a state; a subclass loads objects of its own last, for these cannot be put back."""
        steps = whole_number("steps", state["config"]["steps"], 1)
        drawn, seed = whole_number("drawn", state["drawn"], 0, steps), whole_number("seed", state["seed"], 0)
        epoch = None if state["epoch"] is None else whole_number("epoch", state["epoch"], 0)
        rng = np.random.default_rng()
        rng.bit_generator.state = state["rng"]
        order, cursor, streams = (as_array(state[name]).copy() for name in ("order", "cursor", "streams"))
        self._check_streams(order, cursor, streams)
        self._rng, self._streams = rng, streams.astype(np.int64)
        self._classes = self._classes._replace(order=order.astype(np.int32), cursor=cursor.astype(np.int32))
        for name in self.learned:
            array = as_array(state["learned"][name]).copy()
            self._check_learned(name, array)
            setattr(self, name, array)
        self.seed, self._epoch, self._loaded = seed, epoch, True  # the seed counts in each epoch that is set
        self._resume = drawn % steps if drawn < self.steps else 0  # what ended, or would have, is followed by a whole
        self._drawn = self._resume or (self.steps if drawn else 0)

    def _check_learned(self, name: str, array: NDArray[Any]) -> None:
        """Refuse a learned array that cannot be this miner's: of another type or shape."""
        own = getattr(self, name)
        if array.dtype != own.dtype or array.shape != own.shape:
            raise ValueError(f"state is damaged: {name} has dtype {array.dtype} and shape {array.shape}.")

    def _check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse what is no state of this miner, before anything is changed."""
        parts = ("config", "seed", "drawn", "epoch", "rng", "order", "cursor", "streams", "learned")
        own_state(state, type(self).__name__, parts)
        wanted = self._config()
        if state["config"].get("miner") == wanted["miner"]:
            own_state(state["config"], type(self).__name__, wanted)
        for name, value in wanted.items():
            saved = state["config"].get(name)
            if saved == value or name == "steps":  # a training may become longer
                continue
            if name == "labels":
                raise ValueError(
                    f"state has the labels {saved}, this miner {value} (fingerprints): as many samples and classes, "
                    "but another order or other classes. Load it with the labels that it was saved with, or begin anew."
                )
            cure = "make it with the labels and arguments of the saved one"
            raise ValueError(f"state has {name}={saved!r}, this miner has {value!r}; {cure}.")
        own_state(state["learned"], type(self).__name__, self.learned)

    def _check_streams(self, order: NDArray[Any], cursor: NDArray[Any], streams: NDArray[Any]) -> None:
        """Compiled code trusts these: samples class after class, and positions inside their streams."""
        classes, ends = self._classes, np.array([[self.num_samples], [len(self.classes)]])
        sound = (
            all(array.dtype.kind in "iu" for array in (order, cursor, streams))
            and (order.shape, cursor.shape, streams.shape) == (classes.order.shape, classes.cursor.shape, (2, 2))
            and bool(((cursor >= 0) & (cursor < classes.count)).all())
            and bool(((streams[:, :1] >= 0) & (streams[:, :1] < ends)).all())
            and bool(((order >= 0) & (order < self.num_samples)).all())
            and bool((np.bincount(order, minlength=self.num_samples) == 1).all())
            and bool((classes.of[order] == classes.of[classes.order]).all())
        )
        if not sound:
            raise ValueError("state is damaged: its streams are not those of these labels; take an older one.")

    def _config(self) -> dict[str, Any]:
        """Arguments that a saved state must share."""
        return {
            "miner": type(self).__name__,
            "num_samples": self.num_samples,
            "num_classes": len(self.classes),
            "labels": self.fingerprint,
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

    @abstractmethod
    def draw_seeds(self, num_classes: int) -> Ids:
        """One sample each of ``num_classes`` different classes: ``(num_classes,)``; they get their classmates later."""

    @abstractmethod
    def draw_negatives(self, anchors: ArrayLike) -> Ids:
        """A sample of another class for each anchor: ``(n,)`` to ``(n,)``."""

    def random_seeds(self, num_classes: int) -> Ids:
        """One sample each of the next ``num_classes`` classes of an endless shuffled stream: ``(num_classes,)``."""
        count = whole_number("num_classes", num_classes, 1, len(self.classes))
        return random_seeds(count, self._streams, self._classes, self._rng)

    def random_negatives(self, anchors: ArrayLike) -> Ids:
        """A uniform draw from the samples of other classes for each anchor: ``(n,)`` to ``(n,)``."""
        return random_negatives(check_indices("anchors", anchors, self.num_samples), self._classes, self._rng)

    def draw_anchors(self, count: int) -> Ids:
        """The next ``count`` samples of the endless shuffled stream: ``(count,)``."""
        return next_anchors(whole_number("count", count, 0), self.num_samples, self._streams, self._rng)

    def _with_classmates(self, ids: Ids, count: int) -> Ids:
        """Each sample followed by ``count`` others of its class: ``(n,)`` to ``(n, 1 + count)``."""
        return with_classmates(check_indices("seeds", ids, self.num_samples), count, self._classes, self._rng)

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
        whole_number("num_classes", num_classes, 1, len(self.classes))
        seeds: dict[int, int] = {}
        for g, anchor in enumerate(check_indices("anchors", anchors, self.num_samples)):
            wanted = num_classes * (g + 1) // len(anchors)
            for c, sample in chain([(int(self.class_of[anchor]), int(anchor))], nearby(int(anchor))):
                if len(seeds) == wanted:
                    break
                if c not in seeds:
                    seeds[c] = self.next_of(c) if sample < 0 else sample
            while len(seeds) < wanted:
                c = int(next_in_stream(CLASSES, len(self.classes), self._streams, self._rng))
                seeds.setdefault(c, -1)
        return np.array([self.next_of(c) if sample < 0 else sample for c, sample in seeds.items()], dtype=np.int64)

    def samples_of(self, c: int) -> Ids:
        """The samples of class ``c``, its position in :attr:`classes`: ``(n,)`` dataset indices."""
        c = int(check_indices("c", [c], len(self.classes))[0])
        first, count = self._classes.first[c], self._classes.count[c]
        return self._classes.order[first : first + count].astype(np.int64)

    def next_of(self, c: int) -> int:
        """The next sample of the stream of class ``c``, its position in :attr:`classes`."""
        if not 0 <= c < len(self.classes):
            raise ValueError(f"c is {c}; allowed are 0 to {len(self.classes) - 1}, positions in classes.")
        return int(next_in_class(c, self._classes, self._rng))

    def _check_groups(self, groups: int) -> int:
        """A number of anchors that a set has room for."""
        if self.form != "set":
            return whole_number("groups", groups, 1)
        most = self.batch_size // self.per_class
        return whole_number("groups", groups, 1, most, f"A batch has {most} classes.")

    def checked(self, indices: ArrayLike | Tensor, embeddings: Any) -> tuple[Ids, Tensor]:
        """Both arguments of :meth:`update`, checked: ``(batch,)`` and finite float32 ``(batch, dim)``, on the CPU."""
        embeddings = rows_of(embeddings, self.dim)
        return check_indices("indices", indices, self.num_samples, length=len(embeddings)), embeddings


class RandomSampling(Miner):
    """Random classes and random negatives: what every miner is measured against.

    Takes the arguments of :class:`Miner`. Cost a step: O(batch). Memory: 8 bytes a sample and 16 a class.

    Source: P×K batches as in Hermans, Beyer, Leibe, "In defense of the triplet loss", 2017.

    Example:
        >>> miner = RandomSampling([0, 0, 1, 1, 2, 2], dim=8, batch_size=4, per_class=2)
        >>> len(next(iter(miner)))
        4
    """

    def draw_seeds(self, num_classes: int) -> Ids:
        """One sample each of ``num_classes`` random classes: ``(num_classes,)``."""
        return self.random_seeds(num_classes)

    def draw_negatives(self, anchors: ArrayLike) -> Ids:
        """A random sample of another class for each anchor: ``(n,)`` to ``(n,)``."""
        return self.random_negatives(anchors)
