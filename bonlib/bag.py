"""Bag of Negatives: a hasher and a table, from which sets, triplets and pairs are drawn."""

from collections.abc import Mapping
from math import log2
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bonlib.core.checks import as_array, check_indices, own_state, real_number, whole_number
from bonlib.core.hashes import make_hasher
from bonlib.core.hashing import Hash
from bonlib.core.kernels import CODELESS, OWN, SOURCES, UNSEEN, draw_negatives, draw_seeds, read_codes
from bonlib.core.layout import Form, Ids
from bonlib.core.miner import Miner
from bonlib.core.table import MAX_BITS, BucketTable

_STAMPS = 2**31 - 1  # sets until the marks of classes begin anew


class BagOfNegatives(Miner):
    """Batch sampler that draws hard negatives from hash buckets over the whole training set, O(1) a step.

    Each sample has a short binary code from a linear autoencoder that learns online; samples of other classes in the
    anchor's bucket are its bag of negatives. A step corrects the codes of the samples that it forwarded, all others
    stay stale. What is drawn, by ``form``:

    * ``"set"``: P classes of ``per_class`` samples. The classes come from the bucket of an anchor (or of ``bags``
      anchors), and where it has too few from its Hamming-1 and Hamming-2 neighbours, nearest hyperplane first.
    * ``"triplet"``: anchors, positives, negatives, each a third of the batch; a negative is a uniform draw from the
      bag. An empty bag falls back on Hamming-1 neighbours, nearest hyperplane first, then on a random negative.
    * ``"pair"``: anchors and their positives, other anchors and their negatives, each a quarter of the batch.

    An anchor that has no code yet gets random negatives, so that training starts as random sampling and turns to
    bags as the table fills, which one pass does. Cost a step: O(batch), whatever the number of samples or
    classes. Memory: some 30 bytes a sample and 20 a class, table, labels and class index together.

    Through a ``DataLoader`` with workers, batches are drawn some steps ahead of the updates; that is harmless, their
    codes are only that much staler. Call ``update`` in the main process.

    Args:
        labels: ``(num_samples,)`` integers, the class of each sample of the dataset.
        dim: width of the embeddings.
        form: ``"set"``, ``"triplet"`` or ``"pair"``.
        batch_size: indices in a batch: a multiple of ``per_class``, 3 or 4 by form.
        per_class: samples of each class in a set; smaller classes are drawn with replacement.
        bags: buckets that the classes of a set come from.
        random_share: share of the classes of a set, or of the negatives, that are drawn at random instead: 0 to 1.
        probe: whether a bucket with too few others is helped out by its Hamming neighbours, before random samples are.
        bits: length of the code, 1 to 24; by default so that a bucket of the filled table holds some 15 to 30 samples.
        hasher: name of a hash (:func:`~bonlib.core.hashes.list_hashers`), or a :class:`~bonlib.core.hashing.Hash`,
            which brings its own ``bits``.
        steps: batches that one iteration yields; by default one pass, ``num_samples // batch_size``.
        seed: seed of the bag's own generator and of the hash.

    Raises:
        ValueError: if an argument is out of its range; the message says what is allowed.

    Source: Gajić, Amato, Gatta, "Fast hard negative mining for deep metric learning", Pattern Recognition 2021. How
    sets are filled, the start, and the fall-backs are our reading.

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
        bags: int = 1,
        random_share: float = 0.0,
        probe: bool = True,
        bits: int | None = None,
        hasher: Hash | str = "autoencoder",
        steps: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(labels, dim, form=form, batch_size=batch_size, per_class=per_class, steps=steps, seed=seed)
        most = self.batch_size // self.per_class if form == "set" else None
        self.bags = whole_number("bags", bags, 1, most, "A set has no more classes." if most else "")
        self.random_share, self.probe = real_number("random_share", random_share, 0, 1), bool(probe)
        if isinstance(hasher, str):
            bits = default_bits(self.num_samples) if bits is None else whole_number("bits", bits, 1, MAX_BITS)
            hasher = make_hasher(hasher, self.dim, bits, seed=self.seed)
        elif hasher.dim != self.dim or bits not in (None, hasher.bits):
            raise ValueError(
                f"hasher has dim={hasher.dim} and bits={hasher.bits}, the bag was given dim={dim} and bits={bits}; "
                "give the same, or leave bits out."
            )
        self.hasher = hasher
        self.table = BucketTable(self.num_samples, hasher.bits)
        self._corrected = np.zeros(self.num_samples, dtype=np.int32)  # the update that last corrected a sample
        self._updates = self._batches = 0
        self._mark = np.zeros(len(self.classes), dtype=np.int32)  # scratch: the last set that a class was put in
        self._sets = 0
        self._tally = np.zeros(len(SOURCES), dtype=np.int64)
        self._churn = self._error = float("nan")

    @property
    def bits(self) -> int:
        """Length of the code."""
        return self.hasher.bits

    def update(self, indices: ArrayLike | Tensor, embeddings: Any) -> None:
        """Learn from a batch and correct the codes of its samples. Never touches the encoder.

        Args:
            indices: ``(batch,)`` dataset indices, as the bag yielded them (or any others).
            embeddings: ``(batch, dim)`` floating point on any device; or a tuple, dict or dataclass whose first such
                entry they are. Detached here.

        Raises:
            ValueError: if indices are out of range or of another length than the embeddings, or the embeddings of
                another width or not finite; table, hash and generator are then as before.
            FloatingPointError: if the hash would not be finite; all is then as before.
        """
        ids, embeddings = self.checked(indices, embeddings)
        self._error = self.hasher.partial_fit(embeddings)
        self._updates += 1
        before = self.table.codes(ids)
        changed = before != self._correct(ids, embeddings)
        if (seen := before != UNSEEN).any():
            churn = float(changed[seen].mean())
            self._churn = churn if np.isnan(self._churn) else 0.98 * self._churn + 0.02 * churn

    def correct(self, indices: ArrayLike | Tensor, embeddings: Any) -> None:
        """Give samples the codes of their embeddings without learning from them; arguments as of :meth:`update`."""
        self._correct(*self.checked(indices, embeddings))

    def _correct(self, ids: Ids, embeddings: Tensor) -> Ids:
        """Give samples the codes of their embeddings, and return these."""
        projections = self.hasher.project(embeddings)  # (batch, bits)
        codes, near = read_codes(projections.to(torch.float32).cpu().numpy())
        self.table.move(ids, codes, near)
        self._corrected[ids] = self._updates
        return codes

    def negatives(self, i: int, k: int | None = None) -> Ids:
        """The bag of sample ``i``: dataset indices of the samples of other classes in its bucket.

        Args:
            i: dataset index.
            k: number of uniform draws with replacement; by default the whole bag.

        Returns:
            ``(size of the bag,)`` or ``(k,)`` int64; empty where the sample has no code yet or the bag is empty.
        """
        i = int(check_indices("i", [i], self.num_samples)[0])
        code = self.table.codes([i])[0]
        bucket = self.table.bucket(code) if code != UNSEEN else np.empty(0, dtype=np.int64)
        bag = bucket[self.class_of[bucket] != self.class_of[i]]
        return bag if k is None or not len(bag) else self._rng.choice(bag, size=k)

    def stats(self) -> dict[str, float]:
        """The state of hash and table in numbers.

        Returns:
            ``bits``; ``filled`` share of samples with a code; ``entropy_bits`` of the distribution of samples over
            buckets (at most ``bits``); ``balance`` of the bits, 1 where each is set for half of the samples, 0 where
            each is always the same; ``buckets_used`` share of buckets that are not empty; ``bucket_mean`` size of
            those; ``bucket_max``; ``churn`` share of codes that change when a sample is forwarded again and
            ``reconstruction_error`` relative to the embeddings' size (both of late); ``from_own``, ``from_hamming1``,
            ``from_hamming2``, ``from_random``, ``from_unseen`` shares of the negatives (triplets, pairs) or classes
            (sets) drawn so far by where they came from; ``empty_bag_rate`` share of those whose anchor had a code but
            that its own bucket could not give; ``age_mean`` and ``age_max`` of the codes, in steps (updates) since they
            were corrected; ``batches_missed`` drawn so far without an update: drawn ahead by workers, or skipped.
        """
        sizes = self.table.sizes()
        used = sizes[sizes > 0]
        share = used / max(used.sum(), 1)
        drawn, coded = self._tally.sum(), self._tally[:CODELESS].sum()
        return {
            "bits": self.bits,
            "filled": self.table.filled / self.num_samples,
            "entropy_bits": float(-(share * np.log2(share)).sum()) + 0.0,
            "balance": self._balance(),
            "buckets_used": len(used) / len(sizes),
            "bucket_mean": float(used.mean()) if len(used) else 0.0,
            "bucket_max": int(sizes.max()),
            "churn": self._churn,
            "reconstruction_error": self._error,
            **self._ages(),
            "batches_missed": self._batches - self._updates,
            "empty_bag_rate": float(1 - self._tally[OWN] / coded) if coded else 0.0,
            **{f"from_{name}": float(n / max(drawn, 1)) for name, n in zip(SOURCES, self._tally, strict=True)},
        }

    def _balance(self) -> float:
        """Mean over the bits of twice the share of samples on the smaller side."""
        if not self.table.filled:
            return 0.0
        sizes, codes = self.table.sizes(), np.arange(2**self.bits)
        shares = [sizes[(codes >> bit) & 1 == 1].sum() / self.table.filled for bit in range(self.bits)]
        return float(np.mean([2 * min(share, 1 - share) for share in shares]))

    def _ages(self) -> dict[str, float]:
        """Mean and largest number of updates since the codes were corrected; NaN where there are none."""
        if not self.table.filled:
            return {"age_mean": float("nan"), "age_max": float("nan")}
        seen = self.table.buckets.code != UNSEEN
        newest = self._corrected.mean(where=seen, dtype=np.float64)
        oldest = self._corrected.min(where=seen, initial=self._updates)
        return {"age_mean": float(self._updates - newest), "age_max": float(self._updates - oldest)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that influences the next batch: streams, generator, table, hash and counters."""
        return super().state_dict() | {
            "table": self.table.state_dict(),
            "hasher": self.hasher.state_dict(),
            "corrected": torch.from_numpy(self._corrected.copy()),
            "updates": self._updates,
            "batches": self._batches,
            "tally": torch.from_numpy(self._tally.copy()),
            "churn": self._churn,
            "error": self._error,
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        super()._load(state)
        table = BucketTable(self.num_samples, self.bits)
        table.load_state_dict(state["table"])
        corrected, tally = as_array(state["corrected"]), as_array(state["tally"])
        if (corrected.shape, tally.shape) != (self._corrected.shape, self._tally.shape):
            raise ValueError(f"state is damaged: corrected has shape {corrected.shape}, tally {tally.shape}.")
        self.table, self._corrected, self._tally = table, corrected.astype(np.int32), tally.astype(np.int64)
        self._updates = whole_number("updates", state["updates"], 0, 2**31 - 1)
        self._batches = whole_number("batches", state["batches"], 0)
        self._churn, self._error = float(state["churn"]), float(state["error"])
        self.hasher.load_state_dict(state["hasher"])

    def _check_state(self, state: Mapping[str, Any]) -> None:
        super()._check_state(state)
        own_state(state, "a bag", ("table", "hasher", "corrected", "tally", "updates", "batches", "churn", "error"))

    def _config(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("bits", "bags", "random_share", "probe")}
        return super()._config() | own

    @property
    def nbytes(self) -> int:
        """Bytes held for samples, classes and buckets: table, labels, class index."""
        arrays = (self.classes, *self._classes, self._corrected, self._mark)
        return self.table.nbytes + sum(array.nbytes for array in arrays)

    def _draw_batch(self) -> Ids:
        self._batches += 1
        return super()._draw_batch()

    @property
    def _probed(self) -> int:
        """How many bits to flip in search of others."""
        return self.bits if self.probe else 0

    def draw_seeds(self, num_classes: int) -> Ids:
        """One sample each of ``num_classes`` classes, from the buckets of ``bags`` anchors and those near them."""
        count = whole_number("num_classes", num_classes, 1, len(self.classes))
        if self._sets == _STAMPS:
            self._sets = 0
            self._mark[:] = 0
        self._sets += 1
        shares = count, round((1 - self.random_share) * count)
        chance = self._streams, self._rng
        return draw_seeds(
            self.draw_anchors(self.bags), shares, self._sets, self._mark, self._probed, self.table.buckets,
            self._classes, chance, self._tally,
        )  # fmt: skip

    def draw_negatives(self, anchors: ArrayLike) -> Ids:
        """A sample of each anchor's bag, or of the fall-backs: ``(n,)`` to ``(n,)``."""
        ids = check_indices("anchors", anchors, self.num_samples)
        drawn = draw_negatives(ids, self._probed, self.table.buckets, self._classes, self._rng, self._tally)
        if self.random_share:
            drawn = np.where(self._rng.random(len(ids)) < self.random_share, self.random_negatives(ids), drawn)
        return drawn


def default_bits(num_samples: int) -> int:
    """Bits for which a bucket of the filled table holds 15 to 30 samples on average, within 1 to 24.

    Example:
        >>> default_bits(38_000), default_bits(10), default_bits(10**9)
        (11, 1, 24)
    """
    return min(max(int(log2(max(num_samples / 15, 1))), 1), MAX_BITS)
