"""Bag of Negatives: a hash, a table and sketches, from which sets, triplets and pairs are drawn."""

import math
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bonlib.core.checks import all_or_nothing, as_array, check_indices, locked, own_state, real_number, whole_number
from bonlib.core.filling import fill
from bonlib.core.growth import grown, is_of_first, joined
from bonlib.core.hashed import WINDOW, HashedMiner, Unit
from bonlib.core.hashes import make_hasher
from bonlib.core.hashing import Hash
from bonlib.core.kernels import RANDOM, SOURCES, UNSEEN, draw_negatives, draw_seeds
from bonlib.core.layout import Form, Ids
from bonlib.core.means import RunningMeans
from bonlib.core.pool import draw_window_negatives, draw_window_seeds
from bonlib.core.table import BucketTable, default_bits

_OPTIONS = ("bags", "unit", "pool", "window", "target", "margin", "momentum", "random_share", "probe")  # of a bag alone
_BAGS, _MOMENTUM = 4, 0.5  # where nothing else is asked for
_AHEAD, _PATIENCE = 64, 200  # batches that workers draw ahead; those without an update, after which it was forgotten
_STRANGE, _REMEMBERED = 64, 1024  # updates of no batch that was drawn, before a warning; batches that they may be of


class BagOfNegatives(HashedMiner):
    """Batch sampler that draws hard negatives from hash buckets over the whole training set, at any size of it.

    **First stage.** A short binary code puts each identity into a bucket: on which sides of some hyperplanes the
    running mean of its embeddings lies. Random ones do as well here as those of an autoencoder that learns online. A
    step corrects the codes of the identities that it forwarded, all others stay stale.

    **Second stage.** Identities in the anchor's bucket, and in those one and two bits away, nearest hyperplane first,
    are its pool. They are ordered by sketches, the running means in eight bits a dimension, and drawn from a window of
    ranks: the dial of hardness. What is drawn, by ``form``:

    * ``"set"``: P classes of ``per_class`` samples, from the windows of ``bags`` anchors.
    * ``"triplet"``: anchors, positives, negatives, each a third of the batch; a negative is a sample of an identity in
      the anchor's window.
    * ``"pair"``: anchors and their positives, other anchors and their negatives, each a quarter of the batch.

    An anchor without a code gets random negatives. So sets are random for their first pass over the identities,
    ``identities * per_class / batch_size`` batches, and of windows from then on; triplets and pairs turn to windows as
    the table fills; :meth:`fill` begins at once. Cost a step: O(batch · pool), whatever the number of samples or
    classes. Memory: some 8 bytes a sample and 45 + ``dim`` a class. :meth:`as_published` has the first stage alone,
    over samples, as we read the paper. Workers of a ``DataLoader`` draw some steps ahead, so that codes are only that
    much staler; call ``update`` in the main process.

    Args:
        labels: ``(num_samples,)`` integers, the class of each sample of the dataset.
        dim: width of the embeddings.
        form: ``"set"``, ``"triplet"`` or ``"pair"``.
        batch_size: indices in a batch: a multiple of ``per_class``, 3 or 4 by form.
        per_class: samples of each class in a set; smaller classes are drawn with replacement.
        bags: anchors whose windows, or buckets, the classes of a set come from; by default four, more where these are
            too narrow, at most half of the classes. Where windows overlap, or are too few, ranks behind them are drawn
            too, and then those that they have slid past.
        unit: what the table holds: ``"identity"``, or ``"sample"`` with a code for each sample.
        pool: candidates at most, 0 to 4096; with 0 classes and negatives are drawn from buckets as they are, which is
            for ``unit="sample"``.
        window: ranks of the pool that are drawn from, ``(first, last)``, the last left out. A higher first skips the
            nearest, which may be wrong labels; a higher last is easier. A pool that does not reach to it gives none.
        target: share of active tuples to hold, 0 to 1: the dial turns by itself. After a batch with more of them the
            window slides toward higher ranks, up to the last that is found; after one with fewer it slides back. By
            default it stays. Sets need two samples of a class; of triplets and pairs only whole batches count.
        margin: what makes a tuple active, see :func:`~bonlib.core.tuples.active_share`: the margin of your loss; by
            default 0.2. It goes with ``target``.
        momentum: share of the old running mean in the new one, 0 to 0.99.
        random_share: share of the classes of a set, or of the negatives, that are drawn at random instead: 0 to 1.
        probe: whether a bucket with too few others is helped out by its Hamming neighbours, before random samples are.
        bits: length of the code, 1 to 24; by default so that a bucket of the filled table holds some 15 to 30 entries.
        hasher: name of a hash (:func:`~bonlib.core.hashes.list_hashers`), or a :class:`~bonlib.core.hashing.Hash`,
            which brings its own ``bits`` and is this bag's alone.
        steps: batches that one iteration yields; by default one pass, ``num_samples // batch_size``.
        seed: seed of the bag's own generator and of the hash.

    Raises:
        ValueError: if an argument is out of its range; the message says what is allowed.

    Source: Gajić, Amato, Gatta, "Fast hard negative mining for deep metric learning", Pattern Recognition 2021. How
    sets are filled, the start, and the fall-backs are our reading; identities and the second stage are ours.

    Example:
        >>> labels = np.repeat(np.arange(50), 4)
        >>> bag = BagOfNegatives(labels, dim=8, form="triplet", batch_size=12)
        >>> embeddings = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
        >>> for indices in bag:
        ...     bag.update(indices, embeddings[indices])
        >>> anchor, positive, negative = torch.tensor(indices)[torch.stack(bag.index_tuple)]
        >>> bool((labels[anchor] == labels[positive]).all() and (labels[anchor] != labels[negative]).all())
        True
    """

    def __init__(
        self,
        labels: ArrayLike | Tensor,
        dim: int,
        *,
        form: Form = "set",
        batch_size: int = 128,
        per_class: int = 4,
        bags: int | None = None,
        unit: Unit = "identity",
        pool: int = 64,
        window: tuple[int, int] = WINDOW,
        target: float | None = None,
        margin: float | None = None,
        momentum: float = _MOMENTUM,
        random_share: float = 0.0,
        probe: bool = True,
        bits: int | None = None,
        hasher: Hash | str = "hyperplanes",
        steps: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(labels, dim, form=form, batch_size=batch_size, per_class=per_class, steps=steps, seed=seed)
        if unit not in ("identity", "sample"):
            raise ValueError(f"unit is {unit!r}; allowed are 'identity' and 'sample'.")
        self.unit = unit
        self._set_dial(pool, window, target, margin)
        classes = self.batch_size // self.per_class if form == "set" else None
        if bags is None:
            bags, most = _BAGS, classes or 1
            if self.pool:  # each anchor brings itself and its window
                bags = max(bags, math.ceil(most / (1 + min(self.window[1], self.pool) - self.window[0])))
            bags = min(bags, max(most // 2, 1))  # for each brings a look-alike at least
        self.bags = whole_number("bags", bags, 1, classes, "A set has no more classes." if classes else "")
        self.momentum = real_number("momentum", momentum, 0, 0.99)
        if not self.pool and self.momentum != _MOMENTUM:
            raise ValueError(f"momentum is {momentum!r} and pool 0, which has no use for it; leave it out.")
        self.random_share, self.probe = real_number("random_share", random_share, 0, 1), bool(probe)
        self.num_entries = len(self.classes) if unit == "identity" else self.num_samples
        if isinstance(hasher, str):
            hasher = make_hasher(
                hasher, self.dim, default_bits(self.num_entries) if bits is None else bits, seed=self.seed
            )
        elif not isinstance(hasher, Hash):
            raise ValueError(f"hasher is {hasher!r}; give a name, such as 'hyperplanes', or an object of a Hash.")
        elif hasher.dim != self.dim or bits not in (None, hasher.bits):
            raise ValueError(
                f"hasher has dim={hasher.dim} and bits={hasher.bits}, the bag was given dim={self.dim} and "
                f"bits={bits}; give the same, or leave bits out."
            )
        self.hasher = hasher
        self.table = BucketTable(self.num_entries, self.bits)
        self._corrected = np.zeros(self.num_entries, dtype=np.int32)  # the update that last corrected an entry
        self._updates = self._batches = 0
        self._means = RunningMeans(len(self.classes), self.dim if self.pool else 0, self.momentum)
        self._tally = np.zeros(len(SOURCES), dtype=np.int64)
        self._churn = self._error = float("nan")
        self._hardness = 1.0  # where the window stands: 1 as it was given, 0 at the end of what is found
        self._latest: deque[set[int]] = deque(maxlen=_REMEMBERED)  # that were drawn, until an update is of one
        self._strange = 0  # updates before that

    @classmethod
    def as_published(cls, labels: ArrayLike | Tensor, dim: int, **options: Any) -> "BagOfNegatives":
        """BoN as we read the paper: a learned hash, buckets of samples, one bag a set, uniform draws from a bucket.

        Args:
            labels: as of the class.
            dim: as of the class.
            **options: as of the class, but what is of two stages alone.

        Raises:
            ValueError: if ``unit``, ``pool``, ``window``, ``target``, ``margin`` or ``momentum`` is given.
        """
        if given := sorted({"unit", "pool", "window", "target", "margin", "momentum"} & set(options)):
            raise ValueError(f"as_published has no {', '.join(given)}; make BagOfNegatives itself with it.")
        options |= {"bags": 1 if options.get("bags") is None else options["bags"], "unit": "sample", "pool": 0}
        return cls(labels, dim, **{"hasher": "autoencoder", **options})

    @locked
    def update(self, indices: ArrayLike | Tensor, embeddings: Any) -> None:
        """Learn from a batch and correct the codes of its samples. Never touches the encoder.

        Args:
            indices: ``(batch,)`` dataset indices, as the bag yielded them, or others of which it should learn.
            embeddings: ``(batch, dim)`` floating point on any device; or a tuple, dict or dataclass whose first such
                entry they are. Detached here.

        Raises:
            ValueError: if indices are out of range or of another length than the embeddings, or the embeddings of
                another width or not finite; table, hash and generator are then as before.
            FloatingPointError: if the hash would not be finite; all is then as before.
        """
        ids, embeddings = self.checked(indices, embeddings)
        self._recognise(ids)
        hardness, self._error = self._steered(ids, embeddings), self.hasher.partial_fit(embeddings)
        self._updates += 1
        before, codes = self._correct(ids, embeddings)
        if (seen := before != UNSEEN).any():
            churn = float((before != codes)[seen].mean())
            self._churn = churn if np.isnan(self._churn) else 0.98 * self._churn + 0.02 * churn
        self._hardness = hardness

    def _recognise(self, ids: Ids) -> None:
        """Warn where none of many updates is of a batch that was drawn, or a part, or several of them."""
        if not self._latest:
            return
        told = set(ids.tolist())
        known = any(told <= drawn or told >= drawn for drawn in self._latest)
        self._strange = _STRANGE if known else self._strange + 1
        if self._strange == _STRANGE:
            self._latest.clear()  # and is not filled again
        if self._strange == _STRANGE and not known:
            text = f"In {_STRANGE} updates there was no batch that the bag drew; update takes indices of the data set:"
            warnings.warn(f"{text} are these labels, or positions in the batch?", stacklevel=4)

    @locked
    def correct(self, indices: ArrayLike | Tensor, embeddings: Any) -> None:
        """Give samples the codes of their embeddings without learning from them; arguments as of :meth:`update`."""
        self._correct(*self.checked(indices, embeddings))

    @locked
    def fill(self, embed: Callable[[Ids], Tensor], *, per_class: int | None = None, at_once: int = 4096) -> None:
        """Give every entry its code at once: for an encoder that is trained already.

        The hash learns from some 25,000 samples, of identities evenly, then all get their codes; each is embedded once.

        Args:
            embed: dataset indices ``(n,)`` to embeddings ``(n, dim)``, without gradients.
            per_class: samples of each identity that are looked at, evenly spread over its samples; by default all. A
                table of identities needs few: a code is that of their mean.
            at_once: indices in a call of ``embed``, at most twice as many.

        Raises:
            ValueError: if ``embed`` returns what :meth:`update` refuses, or ``per_class`` is given to a table of
                samples, which needs them all; the bag is then as before.
        """
        at_once = whole_number("at_once", at_once, 1)
        if per_class is not None:
            if self.unit == "sample":
                raise ValueError(
                    f"per_class is {per_class!r}, but the table holds samples and needs all; leave it out."
                )
            per_class = whole_number("per_class", per_class, 1, 2**31 - 1)
        before, place = self.state_dict(), (self._drawn, self._resume, self._loaded)
        try:
            fill(self, embed, self._correct, per_class, at_once)
        except BaseException:
            self._load(before)
            self._drawn, self._resume, self._loaded = place
            raise

    def _correct(self, ids: Ids, embeddings: Tensor) -> tuple[Ids, Ids]:
        """Bring sketches and codes up to date with embeddings; returns the codes of their entries before and after."""
        entries, rows = ids, embeddings
        if self.pool:
            classes, means = self._means.learn(self.class_of[ids], embeddings, self.hasher.scale)
            if self.unit == "identity":
                entries, rows = classes, means
        codes, near = self.read(rows)
        before = self.table.codes(entries)
        self.table.move(entries, codes, near)
        self._corrected[entries] = self._updates
        return before, codes

    @locked
    def state_dict(self) -> dict[str, Any]:
        """Everything that influences the next batch: streams, generator, table, hash and counters."""
        return super().state_dict() | {
            "table": self.table.state_dict(),
            "hasher": self.hasher.state_dict(),
            "means": self._means.state_dict(),
            "corrected": torch.from_numpy(self._corrected.copy()),
            "updates": self._updates,
            "batches": self._batches,
            "tally": torch.from_numpy(self._tally.copy()),
            "churn": self._churn,
            "error": self._error,
            "hardness": self._hardness,
        }

    @locked
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, of these samples or of the first of them; the others are then unseen, and a pass begins.

        Raises:
            ValueError: if it is of a bag made with other labels or arguments, or damaged; nothing is changed then.
        """
        with all_or_nothing(self):
            super().load_state_dict(grown(state, self) if is_of_first(state, self) else state)

    @locked
    def extend(self, labels: ArrayLike | Tensor, *, steps: int | None = None) -> None:
        """Append samples to the data set, of old and of new identities; what is known of the others stays.

        The new samples are unseen until they are forwarded, and the next pass goes through all. With several processes
        all call it. Cost: a copy of what is held for the samples; nothing is hashed anew.

        Args:
            labels: ``(n,)`` integers, of the samples ``num_samples`` to ``num_samples + n - 1``.
            steps: batches of a pass from now on; by default as before, or one pass through all where that was so.

        Raises:
            ValueError: if the labels are no integers, or too many; the bag is then as before.
        """
        if type(self) is not BagOfNegatives:
            raise ValueError(f"bag is a {type(self).__name__}; make a larger one, and load this one's state into it.")
        if steps is None and self.steps != self.one_pass:
            steps = self.steps
        labels = joined(self, labels)
        if len(labels) == self.num_samples and steps in (None, self.steps):
            return  # and a pass that is under way goes on
        names = ("form", "batch_size", "per_class", "seed", "hasher", *_OPTIONS)
        options: dict[str, Any] = {name: getattr(self, name) for name in names}
        larger = BagOfNegatives(labels, self.dim, **options, steps=steps)
        state = self.state_dict()
        larger._load(grown(state, larger) if larger.num_samples > self.num_samples else state | {"drawn": 0})
        # Iterators that are still there are of another life; others may be waiting at the lock.
        larger._pass, larger._lock = self._pass + 1, self._lock
        vars(self).update(vars(larger))
        if (usual := default_bits(self.num_entries)) - self.bits > 1:
            text = (
                f"The bag has {self.num_entries:,} entries now, and codes of {self.bits} bits, made for fewer, so that"
            )
            warnings.warn(f"{text} its buckets are large; give bits={usual}, for what you expect.", stacklevel=3)

    def _load(self, state: Mapping[str, Any]) -> None:
        super()._load(state)
        table = BucketTable(self.num_entries, self.bits)
        table.load_state_dict(state["table"])
        means = RunningMeans(len(self.classes), self.dim if self.pool else 0, self.momentum)
        means.load_state_dict(state["means"])
        corrected, tally = as_array(state["corrected"]), as_array(state["tally"])
        if (corrected.shape, tally.shape) != (self._corrected.shape, self._tally.shape):
            raise ValueError(f"state is damaged: corrected has shape {corrected.shape}, tally {tally.shape}.")
        self.table, self._means = table, means
        self._corrected, self._tally = corrected.astype(np.int32), tally.astype(np.int64)
        self._updates = whole_number("updates", state["updates"], 0, 2**31 - 1)
        self._batches = whole_number("batches", state["batches"], 0)
        self._churn, self._error = float(state["churn"]), float(state["error"])
        hardness = real_number("hardness", state["hardness"], 0, 1)
        self._hardness = 1.0 if self.target is None else hardness
        self.hasher.load_state_dict(state["hasher"])

    def _check_state(self, state: Mapping[str, Any]) -> None:
        super()._check_state(state)
        parts = ("table", "hasher", "means", "corrected", "tally", "updates", "batches", "churn", "error", "hardness")
        own_state(state, "a bag", parts)

    def _config(self) -> dict[str, Any]:
        return super()._config() | {name: getattr(self, name) for name in ("bits", *_OPTIONS)}

    def _draw_batch(self) -> Ids:
        self._batches += 1
        if self._batches == min(self.one_pass, _PATIENCE) + _AHEAD and not self._updates and not self.table.filled:
            text = f"{self._batches} batches were drawn and the bag was told nothing, so that all are random; call"
            warnings.warn(f"{text} bag.update(indices, embeddings) after each forward pass.", stacklevel=3)
        batch = super()._draw_batch()
        if self._strange < _STRANGE:
            self._latest.append(set(batch.tolist()))
        return batch

    @locked
    def draw_seeds(self, num_classes: int) -> Ids:
        """One sample each of ``num_classes`` classes, from what is near ``bags`` anchors."""
        count = whole_number("num_classes", num_classes, 1, len(self.classes))
        share, more = divmod((1 - self.random_share) * count, 1)
        near = int(share) + int(more > 0 and self._rng.random() < more)  # right on average
        self._tally[RANDOM] += count - near
        if not near:
            return self.random_seeds(count)
        # Of identities, not samples: else those with many samples are in most batches, and some in none.
        draw = self.random_seeds if self.unit == "identity" else self.draw_anchors
        anchors, sketches = draw(min(self.bags, near)), self._means.sketches
        self._means.make_room(self.bags + 1)
        if self.pool:
            return draw_window_seeds(
                anchors, (count, near), self._dial, self.table.buckets, self._classes, sketches,
                self._streams, self._rng, self._tally,
            )  # fmt: skip
        return draw_seeds(
            anchors, (count, near), self._dial.bits, self.table.buckets, self._classes, sketches,
            self._streams, self._rng, self._tally,
        )  # fmt: skip

    @locked
    def draw_negatives(self, anchors: ArrayLike) -> Ids:
        """A sample of each anchor's window or bag, or of the fall-backs: ``(n,)`` to ``(n,)``."""
        ids = check_indices("anchors", anchors, self.num_samples)
        if not self.random_share:
            return self._near(ids)
        drawn, at_random = np.empty(len(ids), dtype=np.int64), self._rng.random(len(ids)) < self.random_share
        drawn[at_random], drawn[~at_random] = self.random_negatives(ids[at_random]), self._near(ids[~at_random])
        self._tally[RANDOM] += at_random.sum()
        return drawn

    def _near(self, ids: Ids) -> Ids:
        dial, buckets, classes = self._dial, self.table.buckets, self._classes
        self._means.make_room(len(ids))
        if self.pool:
            return draw_window_negatives(ids, dial, buckets, classes, self._means.sketches, self._rng, self._tally)
        return draw_negatives(ids, dial.bits, buckets, classes, self._rng, self._tally)
