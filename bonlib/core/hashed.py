"""A miner with a hash table of samples or identities: what it holds, and what can be asked of it."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bonlib.core.checks import check_indices, locked, real_number, whole_number
from bonlib.core.hashing import Hash
from bonlib.core.kernels import CODELESS, OWN, SOURCES, UNSEEN, read_codes
from bonlib.core.layout import Ids
from bonlib.core.means import RunningMeans
from bonlib.core.miner import Miner
from bonlib.core.pool import Dial, ordered, pool_of, pools_around
from bonlib.core.table import BucketTable, ages
from bonlib.core.tuples import steered

Unit = Literal["identity", "sample"]
WINDOW = (0, 8)  # ranks that are drawn from
_MARGIN = 0.2  # that makes a tuple active


class HashedMiner(Miner):
    """What a bag holds; see :class:`~bonlib.bag.BagOfNegatives`.

    Once made, nothing here changes the next batch.

    Attributes:
        unit: what the entries of the table are: ``"identity"`` or ``"sample"``.
        num_entries: how many there are.
        hasher: embeddings to codes.
        table: codes to buckets.
        pool, window, probe: how candidates are gathered, and which of them are drawn.
        target: share of active tuples that the window follows, ``None`` where it stays.
    """

    unit: Unit
    num_entries: int
    hasher: Hash
    table: BucketTable
    pool: int
    window: tuple[int, int]
    probe: bool
    target: float | None
    margin: float | None
    _means: RunningMeans
    _corrected: NDArray[np.int32]  # the update that last corrected an entry
    _tally: NDArray[np.int64]  # where what was drawn came from
    _updates: int
    _batches: int
    _churn: float
    _error: float
    _hardness: float

    def _set_dial(self, pool: int, window: tuple[int, int], target: float | None, margin: float | None) -> None:
        """Check and keep how many candidates there are, which ranks are drawn from, and what turns the dial."""
        self.pool = whole_number("pool", pool, 0, 4096, "0 draws from buckets as they are.")
        if self.unit == "identity" and not self.pool:
            raise ValueError("unit is 'identity' and pool 0; buckets of identities need a pool of at least 1.")
        if not isinstance(window, tuple | list | np.ndarray) or len(window) != 2:
            raise ValueError(f"window is {window!r}; give two ranks, such as (0, 8).")
        first = whole_number("window[0]", window[0], 0, self.pool - 1 if self.pool else None, "It is below pool.")
        self.window = first, whole_number("window[1]", window[1], first + 1, 4096)
        if not self.pool and (self.window, target) != (WINDOW, None):
            raise ValueError("pool is 0, which has no use for window and target; leave them out, or give a pool.")
        if target is None and margin is not None:
            raise ValueError(f"margin is {margin!r} and target None; margin goes with target, leave it out.")
        self.target = self.margin = None
        if target is not None:
            self.target = real_number("target", target, 0, 1)
            if self.form == "set" and self.per_class == 1:
                raise ValueError(f"target is {target!r} and per_class 1, so that no tuple is active; leave it out.")
            self.margin = real_number("margin", _MARGIN if margin is None else margin, -np.inf)
            if self.window[1] >= self.pool:
                raise ValueError(
                    f"target is {target!r}, but window {self.window} reaches to the end of the pool of {self.pool}; "
                    "give a larger pool, in which it can slide."
                )

    def _steered(self, ids: Ids, embeddings: Tensor) -> float:
        """The hardness after a batch, see ``target`` of :class:`~bonlib.bag.BagOfNegatives`."""
        if self.target is None or self.margin is None:
            return self._hardness
        labels = torch.from_numpy(self.class_of[ids])
        return steered(self._hardness, self.target, embeddings, labels, self.index_tuple, self.margin)

    @property
    def bits(self) -> int:
        """Length of the code."""
        return self.hasher.bits

    @property
    @locked
    def means(self) -> Tensor:
        """What is remembered of each identity: ``(num_classes, dim)`` float32, zero before anything is.

        In eight bits a dimension: entries beyond four times what a usual embedding has in each are cut there, so for
        sparse embeddings it is not much like the mean.
        """
        return self._means.values()

    @locked
    def means_of(self, identities: Ids) -> Tensor:
        """What is remembered of some identities, positions in :attr:`classes`: ``(…)`` to ``(…, dim)`` float32."""
        return self._means.values(identities)

    def read(self, rows: Tensor) -> tuple[Ids, NDArray[np.int32]]:
        """Codes ``(n,)`` of embeddings ``(n, dim)``, and the bits nearest to flipping, as the table takes them."""
        projections = self.hasher.project(rows)  # (n, bits)
        return read_codes(projections.to("cpu", torch.float32).numpy())

    @locked
    def _pools_near(self, rows: Tensor, own: Ids) -> Ids:
        """Identities near embeddings ``(n, dim)``, unordered, without ``own`` ``(n,)``: ``(n, pool)``, -1 for none."""
        self._means.make_room(len(rows))
        codes, near = self.read(rows)
        rng, sketches = np.random.default_rng(self.seed), self._means.sketches
        return pools_around(own, codes, near, self._dial, self.table.buckets, self._classes.of, sketches, rng)

    @locked
    def codes(self, ids: ArrayLike | Tensor) -> Ids:
        """Codes of samples, or of their identities where these are hashed: ``(n,)``, -1 where there is none yet."""
        ids = check_indices("ids", ids, self.num_samples)
        return self.table.codes(self.class_of[ids] if self.unit == "identity" else ids)

    @locked
    def members(self, code: int) -> Ids:
        """Samples in a bucket, or of the identities in it: ``(n,)`` dataset indices."""
        entries = self.table.bucket(code)
        if self.unit == "sample":
            return entries
        return np.concatenate([np.empty(0, dtype=np.int64), *map(self.samples_of, entries)])

    @locked
    def candidates(self, i: int) -> Ids:
        """The pool of sample ``i``: identities near it, nearest first.

        Args:
            i: dataset index.

        Returns:
            ``(n,)`` positions in :attr:`classes`, at most ``pool``; empty where the sample has no code yet.
        """
        i = int(check_indices("i", [i], self.num_samples)[0])
        found, ends = np.empty(self.pool, dtype=np.int64), np.empty(2, dtype=np.int64)
        self._means.make_room(1)
        rng, sketches = np.random.default_rng(self.seed), self._means.sketches
        n = pool_of(i, self._dial, self.table.buckets, self._classes, sketches, rng, found, ends)
        return found[ordered(int(self.class_of[i]), found, max(n, 0), sketches)]

    @locked
    def negatives(self, i: int, k: int | None = None) -> Ids:
        """The bag of sample ``i``: dataset indices of the samples of other classes in its bucket.

        Args:
            i: dataset index.
            k: number of uniform draws with replacement, the same at each call; by default the whole bag.

        Returns:
            ``(size of the bag,)`` or ``(k,)`` int64; empty where the sample has no code yet or the bag is empty.
        """
        i = int(check_indices("i", [i], self.num_samples)[0])
        code = int(self.codes([i])[0])
        bucket = self.members(code) if code != UNSEEN else np.empty(0, dtype=np.int64)
        bag = bucket[self.class_of[bucket] != self.class_of[i]]
        return bag if k is None or not len(bag) else np.random.default_rng([self.seed, i]).choice(bag, size=k)

    @locked
    def stats(self) -> dict[str, float]:
        """The state of hash and table in numbers.

        Returns:
            Those of :meth:`BucketTable.stats <bonlib.core.table.BucketTable.stats>`; ``churn`` share of codes that
            change at the next visit and ``reconstruction_error`` relative to the embeddings' size (both of late);
            ``from_own``, ``from_hamming1``, ``from_hamming2``, ``from_random``, ``from_unseen`` shares of the negatives
            (triplets, pairs) or classes (sets) drawn so far by where they came from; ``empty_bag_rate`` share of those
            whose anchor had a code but that its own bucket did not give, ``random_share`` included; ``age_mean`` and
            ``age_max`` of the codes, in updates since they were corrected; ``batches_missed`` drawn so far without an
            update; ``hardness`` where a ``target`` is given: 1 for the window as it was given, 0 at the end of what is
            found.
        """
        drawn, coded = self._tally.sum(), self._tally[:CODELESS].sum()
        steered = {} if self.target is None else {"hardness": self._hardness}
        return (
            self.table.stats()
            | steered
            | {
                "churn": self._churn,
                "reconstruction_error": self._error,
                **ages(self._corrected, self.table.buckets.code, self._updates),
                "batches_missed": max(self._batches - self._updates, 0),
                "empty_bag_rate": float(1 - self._tally[OWN] / coded) if coded else 0.0,
                **{f"from_{name}": float(n / max(drawn, 1)) for name, n in zip(SOURCES, self._tally, strict=True)},
            }
        )

    @property
    def nbytes(self) -> int:
        """Bytes held for samples, classes and buckets: table, labels, class index, sketches."""
        arrays = (self.classes, *self._classes, self._corrected)
        return self.table.nbytes + self._means.nbytes + sum(array.nbytes for array in arrays)

    @property
    def _dial(self) -> Dial:
        bits, eased = self.bits if self.probe else 0, 1 - self._hardness
        return Dial(self.pool, *self.window, bits, int(self.unit == "identity"), eased)
