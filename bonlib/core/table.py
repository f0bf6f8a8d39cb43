"""Codes to buckets: which samples share a code, exact, with O(1) work for each sample moved or drawn.

The members of all buckets lie in one pool of sample ids. A bucket owns a slab of the pool with room to grow; a
bucket that outgrows its slab gets one of half as much room again at the end of the pool, and when the pool is used up
it is packed anew. Both costs are amortised: a sample pays for a constant number of copies over its life in the table.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from bonlib.core.checks import MAX_SAMPLES, as_array, check_indices, own_state, whole_number
from bonlib.core.kernels import UNSEEN, Buckets, plain_order
from bonlib.core.permutation import compiled

MAX_BITS = 24
_SMALLEST_SLAB = 4
_SLACK = 8  # a packed pool has 1/8 of room to grow: more costs memory, less packs more often


class BucketTable:
    """Every sample is in exactly one bucket, or not yet seen.

    Moving a sample and drawing from a bucket are O(1) in the number of samples. Memory is some 17 bytes a
    sample and 16 bytes a bucket.

    Args:
        num_samples: number of samples, 1 to 2³⁰; ids are ``0 .. num_samples - 1``.
        bits: length of a code, 1 to 24; there are ``2**bits`` buckets.

    Raises:
        ValueError: if ``num_samples`` is not positive or ``bits`` is out of range.

    Source: the lookup table of Bag of Negatives (Gajić, Amato, Gatta 2021); slabs in one pool are our design.

    Example:
        >>> table = BucketTable(num_samples=5, bits=2)
        >>> table.move([0, 3, 4], [2, 2, 1])
        >>> table.bucket(2).tolist(), table.codes([0, 1]).tolist()
        ([0, 3], [2, -1])
    """

    def __init__(self, num_samples: int, bits: int) -> None:
        self.num_samples = num_samples = whole_number("num_samples", num_samples, 1, MAX_SAMPLES)
        self.bits = bits = whole_number("bits", bits, 1, MAX_BITS, f"That is 2 to {2**MAX_BITS} buckets.")
        # For each sample its least certain bits, nearest hyperplane first: where probing begins.
        self._near = plain_order(num_samples)
        self._code = np.full(num_samples, UNSEEN, dtype=np.int32)
        self._place = np.zeros(num_samples, dtype=np.int32)  # position of a sample inside its bucket
        self._start = np.zeros(2**bits, dtype=np.int64)
        self._size = np.zeros(2**bits, dtype=np.int32)
        self._room = np.zeros(2**bits, dtype=np.int32)
        self._pool = np.empty(_SMALLEST_SLAB * 2, dtype=np.int32)
        self._used = 0
        self.filled = 0

    def move(self, ids: ArrayLike, codes: ArrayLike, near: NDArray[np.int32] | None = None) -> None:
        """Put samples into the buckets of their new codes, out of those they were in.

        Args:
            ids: ``(n,)`` integers, sample ids; of an id that stands twice the last code counts.
            codes: ``(n,)`` integers, ``0 .. 2**bits - 1``.
            near: ``(n,)`` bits nearest to flipping, as :func:`~bonlib.core.kernels.read_codes` packs them; by default
                the bits in plain order.

        Raises:
            ValueError: if an id or a code is out of range or the lengths differ; the table is then unchanged.
        """
        ids = check_indices("ids", ids, self.num_samples)
        codes = check_indices("codes", codes, 2**self.bits)
        near = plain_order(len(ids)) if near is None else np.asarray(near)
        if near.ndim != 1 or near.dtype.kind not in "iu":
            raise ValueError(f"near has shape {near.shape} and dtype {near.dtype}; give a 1-D array of integers.")
        if not len(ids) == len(codes) == len(near):
            lengths = f"ids has length {len(ids)} and codes {len(codes)}"
            raise ValueError(f"{lengths}, near {len(near)}; give one of each for each id.")
        self._near[ids] = near
        done = 0
        while True:  # leaves the compiled loop only to pack the pool, which is rare
            counts = done, self._used, self.filled
            done, self._used, self.filled = _move(ids, codes, self.buckets, self._place, self._room, counts)
            if done == len(ids):
                return
            self._pack(spare=int(self._room[codes[done]]) * 2 + _SMALLEST_SLAB)

    def codes(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Codes of the samples ``ids``: ``(n,)`` int64, -1 for a sample not yet seen."""
        return self._code[check_indices("ids", ids, self.num_samples)].astype(np.int64)

    def bucket(self, code: int) -> NDArray[np.int64]:
        """Ids of the samples in bucket ``code``, in no particular order: ``(size,)`` int64."""
        code = int(check_indices("code", [code], 2**self.bits)[0])
        start = self._start[code]
        return self._pool[start : start + self._size[code]].astype(np.int64)

    def sizes(self) -> NDArray[np.int64]:
        """Number of samples in each bucket: ``(2**bits,)`` int64."""
        return self._size.astype(np.int64)

    def stats(self) -> dict[str, float]:
        """How full the buckets are.

        Returns:
            ``bits``; ``filled`` share of entries with a code; ``entropy_bits`` of their distribution over buckets (at
            most ``bits``); ``balance`` of the bits, 1 where each is set for half of the entries, 0 where each is always
            the same; ``buckets_used`` share of buckets that are not empty; ``bucket_mean`` size of those;
            ``bucket_max``.
        """
        sizes = self.sizes()
        used = sizes[sizes > 0]
        share, filled = used / max(used.sum(), 1), max(self.filled, 1)
        ones = [sizes.reshape(-1, 2, 1 << bit)[:, 1].sum() / filled for bit in range(self.bits)]  # share of each bit
        return {
            "bits": self.bits,
            "filled": self.filled / self.num_samples,
            "entropy_bits": float(-(share * np.log2(share)).sum()) + 0.0,
            "balance": float(np.mean([2 * min(one, 1 - one) for one in ones])),
            "buckets_used": len(used) / len(sizes),
            "bucket_mean": float(used.mean()) if len(used) else 0.0,
            "bucket_max": int(sizes.max()),
        }

    @property
    def nbytes(self) -> int:
        """Bytes held by the table's arrays."""
        return sum(array.nbytes for array in (*self.buckets, self._place, self._room))

    @property
    def buckets(self) -> Buckets:
        """The table's own arrays, for compiled readers; not to be written."""
        return Buckets(self._code, self._start, self._size, self._pool, self._near)

    def state_dict(self) -> dict[str, Any]:
        """The buckets with their members in order (draws depend on it), as tensors."""
        order = np.repeat(self._start - (np.cumsum(self._size) - self._size), self._size)
        members = self._pool[order + np.arange(self.filled)]
        return {
            "num_samples": self.num_samples,
            "bits": self.bits,
            "sizes": torch.from_numpy(self._size.copy()),
            "members": torch.from_numpy(members),
            "near": torch.from_numpy(self._near.copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state saved by :meth:`state_dict`.

        Raises:
            ValueError: if the state is of a table of another shape or damaged; the table is then unchanged.
        """
        own_state(state, "a table", ("num_samples", "bits", "sizes", "members", "near"))
        for name in ("num_samples", "bits"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"state has {name}={state[name]}, this table has {getattr(self, name)}; "
                    "make the table with the arguments of the saved one."
                )
        sizes = check_indices("sizes", state["sizes"], self.num_samples + 1).astype(np.int32)
        members = check_indices("members", state["members"], self.num_samples).astype(np.int32)
        near = as_array(state["near"]).astype(np.int32)
        if sizes.shape != (2**self.bits,) or sizes.sum() != len(members):
            raise ValueError("state is damaged: the bucket sizes do not add up to the number of members.")
        if near.shape != (self.num_samples,):
            raise ValueError(f"state is damaged: near has shape {near.shape}, not {(self.num_samples,)}.")
        code = np.full(self.num_samples, UNSEEN, dtype=np.int32)
        code[members] = np.repeat(np.arange(2**self.bits, dtype=np.int32), sizes)
        if np.count_nonzero(code != UNSEEN) != len(members):
            raise ValueError("state is damaged: a sample is in two buckets.")
        self._pool, self._size, self._used = members, sizes, len(members)
        self._start = np.cumsum(sizes, dtype=np.int64) - sizes
        self._room = sizes.copy()
        self.filled, self._near, self._code = len(members), near, code
        self._place[members] = np.arange(len(members)) - np.repeat(self._start, sizes)

    def _pack(self, spare: int) -> None:
        """Copy all buckets to the front of a new pool, with some room for each, and some at its end."""
        room = np.where(self._size, self._size + np.maximum(self._size // _SLACK, 1), 0)
        start = np.cumsum(room, dtype=np.int64) - room
        used = int(room.sum())
        pool = np.empty(used + used // _SLACK + spare, dtype=np.int32)
        _copy(self._pool, self._start, self._size, pool, start)
        self._pool, self._start, self._room, self._used = pool, start, room.astype(np.int32), used


def ages(corrected: NDArray[np.int32], codes: NDArray[np.int32], now: int) -> dict[str, float]:
    """Mean and largest number of updates since entries that have a code were corrected; NaN where there are none."""
    seen = codes != UNSEEN
    if not seen.any():
        return {"age_mean": math.nan, "age_max": math.nan}
    newest = corrected.mean(where=seen, dtype=np.float64)
    return {"age_mean": float(now - newest), "age_max": float(now - corrected.min(where=seen, initial=now))}


def default_bits(num_samples: int) -> int:
    """Bits for which a bucket of the filled table holds 15 to 30 samples on average, within 1 to 24.

    Example:
        >>> default_bits(38_000), default_bits(10), default_bits(10**9)
        (11, 1, 24)
    """
    return min(max(int(math.log2(max(num_samples / 15, 1))), 1), MAX_BITS)


@compiled
def _move(ids, codes, buckets, place, room, counts):  # pragma: no cover
    """Move samples from ``done`` on; returns early, before a sample that the pool has no room for."""
    code_of, start, size, pool, _ = buckets
    done, used, filled = counts
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


@compiled
def _copy(old_pool, old_start, size, pool, start):  # pragma: no cover
    for code in range(len(size)):
        for j in range(size[code]):
            pool[start[code] + j] = old_pool[old_start[code] + j]
