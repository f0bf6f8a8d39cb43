"""Codes to buckets: which samples share a code, exact, with O(1) work for each sample moved or drawn.

The members of all buckets lie in one pool of sample ids. A bucket owns a slab of the pool with room to grow; a
bucket that outgrows its slab gets one of half as much room again at the end of the pool, and when the pool is used up
it is packed anew. Both costs are amortised: a sample pays for a constant number of copies over its life in the table.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import ArrayLike, NDArray

MAX_BITS = 24
UNSEEN = -1
_SMALLEST_SLAB = 4
_SLACK = 8  # a packed pool has 1/8 of room to grow: more costs memory, less packs more often


class BucketTable:
    """Every sample is in exactly one bucket, or not yet seen.

    Moving a sample and drawing from a bucket are O(1) in the number of samples. Memory is some 13 bytes a
    sample and 16 bytes a bucket.

    Args:
        num_samples: number of samples, ids are ``0 .. num_samples - 1``.
        bits: length of a code, 1 to 24; there are ``2**bits`` buckets.

    Raises:
        ValueError: if ``num_samples`` is not positive or ``bits`` is out of range.

    Source: the lookup table of Bag of Negatives (Gajić, Amato, Gatta 2021); slabs in one pool are our design.

    Example:
        >>> table = BucketTable(num_samples=5, bits=2)
        >>> table.move([0, 3, 4], [2, 2, 1])
        >>> table.bucket(2).tolist(), table.codes([0, 1]).tolist()
        ([0, 3], [2, -1])
        >>> table.draw([1], 3, np.random.default_rng(0)).tolist()
        [[4, 4, 4]]
    """

    def __init__(self, num_samples: int, bits: int) -> None:
        if not 1 <= num_samples < 2**31:
            raise ValueError(f"num_samples is {num_samples}; allowed are 1 to {2**31 - 1}.")
        if not 1 <= bits <= MAX_BITS:
            raise ValueError(f"bits is {bits}; allowed are 1 to {MAX_BITS}, that is 2 to {2**MAX_BITS} buckets.")
        self.num_samples, self.bits = num_samples, bits
        self._code = np.full(num_samples, UNSEEN, dtype=np.int32)
        self._place = np.zeros(num_samples, dtype=np.int32)  # position of a sample inside its bucket
        self._start = np.zeros(2**bits, dtype=np.int64)
        self._size = np.zeros(2**bits, dtype=np.int32)
        self._room = np.zeros(2**bits, dtype=np.int32)
        self._pool = np.empty(_SMALLEST_SLAB * 2, dtype=np.int32)
        self._used = 0
        self.filled = 0

    def move(self, ids: ArrayLike, codes: ArrayLike) -> None:
        """Put samples into the buckets of their new codes, out of those they were in.

        Args:
            ids: ``(n,)`` integers, sample ids; of an id that stands twice the last code counts.
            codes: ``(n,)`` integers, ``0 .. 2**bits - 1``.

        Raises:
            ValueError: if an id or a code is out of range or the lengths differ; the table is then unchanged.
        """
        ids = _checked(ids, "ids", self.num_samples)
        codes = _checked(codes, "codes", 2**self.bits)
        if len(ids) != len(codes):
            raise ValueError(f"ids has length {len(ids)} and codes {len(codes)}; give one code for each id.")
        done = 0
        while True:  # leaves the compiled loop only to pack the pool, which is rare
            done, self._used, self.filled = _move(
                ids, codes, done, self._code, self._place, self._start, self._size, self._room, self._pool,
                self._used, self.filled,
            )  # fmt: skip
            if done == len(ids):
                return
            self._pack(spare=int(self._room[codes[done]]) * 2 + _SMALLEST_SLAB)

    def codes(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Codes of the samples ``ids``: ``(n,)`` int64, -1 for a sample not yet seen."""
        return self._code[_checked(ids, "ids", self.num_samples)].astype(np.int64)

    def bucket(self, code: int) -> NDArray[np.int64]:
        """Ids of the samples in bucket ``code``, in no particular order: ``(size,)`` int64."""
        code = int(_checked([code], "code", 2**self.bits)[0])
        start = self._start[code]
        return self._pool[start : start + self._size[code]].astype(np.int64)

    def draw(self, codes: ArrayLike, k: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw ``k`` samples from each of the buckets ``codes``, uniformly and with replacement.

        Args:
            codes: ``(n,)`` integers, ``0 .. 2**bits - 1``.
            k: number of draws from each.
            rng: source of randomness, the only one used.

        Returns:
            ``(n, k)`` int64 sample ids; -1 where the bucket is empty.
        """
        codes = _checked(codes, "codes", 2**self.bits)
        return _draw(codes, rng.random((len(codes), k)), self._start, self._size, self._pool)

    def sizes(self) -> NDArray[np.int64]:
        """Number of samples in each bucket: ``(2**bits,)`` int64."""
        return self._size.astype(np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes held by the table's arrays."""
        return sum(a.nbytes for a in (self._code, self._place, self._start, self._size, self._room, self._pool))

    @property
    def arrays(self) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
        """``(code of each sample, start, size of each bucket, pool)`` for compiled readers; not to be written."""
        return self._code, self._start, self._size, self._pool

    def state_dict(self) -> dict[str, Any]:
        """The buckets with their members in order (draws depend on it), as tensors."""
        order = np.repeat(self._start - (np.cumsum(self._size) - self._size), self._size)
        members = self._pool[order + np.arange(self.filled)]
        return {
            "num_samples": self.num_samples,
            "bits": self.bits,
            "sizes": torch.from_numpy(self._size.copy()),
            "members": torch.from_numpy(members),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state saved by :meth:`state_dict`.

        Raises:
            ValueError: if the state is of a table of another shape or damaged; the table is then unchanged.
        """
        for name in ("num_samples", "bits"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"state has {name}={state[name]}, this table has {getattr(self, name)}; "
                    "make the table with the arguments of the saved one."
                )
        sizes = np.asarray(state["sizes"], dtype=np.int32)
        members = np.asarray(state["members"], dtype=np.int32)
        if len(sizes) != 2**self.bits or sizes.min() < 0 or sizes.sum() != len(members):
            raise ValueError("state is damaged: the bucket sizes do not add up to the number of members.")
        if len(np.unique(_checked(members, "members", self.num_samples))) != len(members):
            raise ValueError("state is damaged: a sample is in two buckets.")
        self._pool, self._size, self._used = members.copy(), sizes.copy(), len(members)
        self._start = np.cumsum(sizes, dtype=np.int64) - sizes
        self._room = sizes.copy()
        self.filled = len(members)
        self._code = np.full(self.num_samples, UNSEEN, dtype=np.int32)
        self._code[members] = np.repeat(np.arange(2**self.bits, dtype=np.int32), sizes)
        self._place[members] = np.arange(len(members)) - np.repeat(self._start, sizes)

    def _pack(self, spare: int) -> None:
        """Copy all buckets to the front of a new pool, with some room for each, and some at its end."""
        room = np.where(self._size, self._size + np.maximum(self._size // _SLACK, 1), 0)
        start = np.cumsum(room, dtype=np.int64) - room
        used = int(room.sum())
        pool = np.empty(used + used // _SLACK + spare, dtype=np.int32)
        _copy(self._pool, self._start, self._size, pool, start)
        self._pool, self._start, self._room, self._used = pool, start, room.astype(np.int32), used


def _checked(values: ArrayLike, name: str, end: int) -> NDArray[np.int64]:
    """``values`` as a 1-D int64 array, all in ``0 .. end - 1``."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name} has shape {array.shape} and dtype {array.dtype}; give a 1-D array of integers.")
    if array.size and not (array.min() >= 0 and array.max() < end):
        raise ValueError(f"{name} holds values from {array.min()} to {array.max()}; allowed are 0 to {end - 1}.")
    return array.astype(np.int64)


@njit(cache=True)
def _move(ids, codes, done, code_of, place, start, size, room, pool, used, filled):  # pragma: no cover
    """Move samples from ``done`` on; returns early, before a sample that the pool has no room for."""
    for i in range(done, len(ids)):
        sample, new = ids[i], codes[i]
        old = code_of[sample]
        if old == new:
            continue
        if size[new] == room[new]:
            grown = room[new] + max(room[new] // 2, _SMALLEST_SLAB)
            if used + grown > len(pool):
                return i, used, filled
            for j in range(size[new]):
                pool[used + j] = pool[start[new] + j]
            start[new] = used
            room[new] = grown
            used += grown
        if old == UNSEEN:
            filled += 1
        else:  # the last member of the old bucket takes the place that becomes free
            size[old] -= 1
            last = pool[start[old] + size[old]]
            pool[start[old] + place[sample]] = last
            place[last] = place[sample]
        pool[start[new] + size[new]] = sample
        place[sample] = size[new]
        size[new] += 1
        code_of[sample] = new
    return len(ids), used, filled


@njit(cache=True)
def _copy(old_pool, old_start, size, pool, start):  # pragma: no cover
    for code in range(len(size)):
        for j in range(size[code]):
            pool[start[code] + j] = old_pool[old_start[code] + j]


@njit(cache=True)
def _draw(codes, uniform, start, size, pool):  # pragma: no cover
    drawn = np.full(uniform.shape, -1, dtype=np.int64)
    for i in range(len(codes)):
        n = size[codes[i]]
        if n:
            for j in range(uniform.shape[1]):
                drawn[i, j] = pool[start[codes[i]] + int(uniform[i, j] * n)]
    return drawn
