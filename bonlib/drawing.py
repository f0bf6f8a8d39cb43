"""Buckets to negatives and to the classes of a set: compiled, uniform, bounded in tries."""

import numpy as np
from numba import njit

from bonlib.streams import next_class, next_in_class, random_negative
from bonlib.table import UNSEEN

# Where a negative, or an identity of a set, came from: rows of the tally.
SOURCES = ("own", "hamming1", "hamming2", "random", "unseen")
OWN, HAMMING1, HAMMING2, RANDOM, CODELESS = range(len(SOURCES))
_NEAR, _NEAR_BITS = 6, 5  # nearest hyperplanes kept for a sample, bits of an int32 that each takes
_TRIES = 32  # draws from a bucket before it is searched
_SEARCHED = 1024  # samples of the largest bucket that is


@njit(cache=True)
def read_codes(projections):  # pragma: no cover
    """Codes ``(batch,)`` of projections ``(batch, bits)``, and the bits nearest to flipping, five bits each."""
    codes = np.zeros(len(projections), dtype=np.int64)
    near = np.zeros(len(projections), dtype=np.int32)
    for i in range(len(projections)):
        row, taken = projections[i], 0
        for bit in range(len(row)):
            codes[i] |= np.int64(row[bit] > 0) << bit
        for place in range(min(_NEAR, len(row))):
            least = -1
            for bit in range(len(row)):
                if not (taken >> bit) & 1 and (least < 0 or abs(row[bit]) < abs(row[least])):
                    least = bit
            taken |= 1 << least
            near[i] |= least << (_NEAR_BITS * place)
    return codes, near


@njit(cache=True)
def _negative_in(bucket, c, class_of, start, size, pool, rng):  # pragma: no cover
    """A uniform draw from the samples of ``bucket`` that are not of class ``c``; -1 where there is none.

    Rejection keeps it O(1). It fails often only where the class makes up most of the bucket; a small bucket is then
    searched, one too large for that counts as empty.
    """
    n = size[bucket]
    if n == 0:
        return -1
    for _ in range(_TRIES):
        sample = pool[start[bucket] + rng.integers(0, n)]
        if class_of[sample] != c:
            return sample
    others = 0
    for j in range(n if n <= _SEARCHED else 0):
        others += class_of[pool[start[bucket] + j]] != c
    if others == 0:
        return -1
    left = rng.integers(0, others)
    for j in range(n):
        sample = pool[start[bucket] + j]
        if class_of[sample] != c:
            if left == 0:
                return sample
            left -= 1
    return -1


@njit(cache=True)
def _probing_order(near, bits, order):  # pragma: no cover
    """Write all ``bits`` into ``order``: those of the nearest hyperplanes, which ``near`` holds, then the others."""
    known, flagged = min(bits, _NEAR), 0
    for j in range(known):
        order[j] = (near >> (_NEAR_BITS * j)) & ((1 << _NEAR_BITS) - 1)
        flagged |= 1 << order[j]
    for bit in range(bits):
        if not (flagged >> bit) & 1:
            order[known] = bit
            known += 1


@njit(cache=True)
def draw_negatives(
    anchors, class_of, code_of, start, size, pool, near, bits, first, count, order, rng, tally
):  # pragma: no cover
    """A sample of each anchor's bag, or of the fall-backs: ``(n,)`` to ``(n,)``; ``tally`` counts whence."""
    drawn, flips = np.empty(len(anchors), dtype=np.int64), np.empty(bits, dtype=np.int64)
    for i in range(len(anchors)):
        anchor = anchors[i]
        c, code = class_of[anchor], code_of[anchor]
        found, source = -1, CODELESS
        if code != UNSEEN:
            found, source = _negative_in(code, c, class_of, start, size, pool, rng), OWN
            if found == -1:
                _probing_order(near[anchor], bits, flips)
            for bit in flips:
                if found != -1:
                    break
                found, source = (
                    _negative_in(code ^ (1 << bit), c, class_of, start, size, pool, rng),
                    HAMMING1,
                )
        if found == -1:
            found = random_negative(c, first, count, order, rng)
            source = RANDOM if code != UNSEEN else CODELESS
        drawn[i] = found
        tally[source] += 1
    return drawn


@njit(cache=True)
def _take(bucket, seeds, found, wanted, stamp, mark, class_of, start, size, pool, rng):  # pragma: no cover
    """Add samples of ``bucket`` to ``seeds``, of classes not in it yet, until ``wanted``; returns how many it holds.

    Twice the bucket's size in draws finds nearly all of its classes, and the bound keeps a huge bucket O(1).
    """
    n = size[bucket]
    for _ in range(min(2 * n, 8 * len(seeds))):
        if found == wanted:
            break
        sample = pool[start[bucket] + rng.integers(0, n)]
        if mark[class_of[sample]] != stamp:
            mark[class_of[sample]] = stamp
            seeds[found] = sample
            found += 1
    return found


@njit(cache=True)
def draw_seeds(
    anchors, num_classes, from_bags, stamp, mark, class_of, code_of, start, size, pool, near, bits, streams,
    first, count, order, cursor, rng, tally,
):  # fmt: skip  # pragma: no cover
    """One sample each of ``num_classes`` classes, ``from_bags`` of them from the buckets of the anchors and near."""
    seeds, flips = np.empty(num_classes, dtype=np.int64), np.empty(bits, dtype=np.int64)
    found = 0
    for g in range(len(anchors)):
        anchor = anchors[g]
        code = code_of[anchor]
        wanted = from_bags * (g + 1) // len(anchors)
        if found < wanted and mark[class_of[anchor]] != stamp:
            mark[class_of[anchor]] = stamp
            seeds[found] = anchor
            found += 1
        if code != UNSEEN:
            before = found
            found = _take(code, seeds, found, wanted, stamp, mark, class_of, start, size, pool, rng)
            tally[OWN] += found - before
            before = found
            _probing_order(near[anchor], bits, flips)
            for i in range(bits):
                if found == wanted:
                    break
                other = code ^ (1 << flips[i])
                found = _take(other, seeds, found, wanted, stamp, mark, class_of, start, size, pool, rng)
            tally[HAMMING1] += found - before
            before = found
            for j in range(1, bits):
                for i in range(j):
                    if found == wanted:
                        break
                    other = code ^ (1 << flips[i]) ^ (1 << flips[j])
                    found = _take(other, seeds, found, wanted, stamp, mark, class_of, start, size, pool, rng)
            tally[HAMMING2] += found - before
        tally[RANDOM if code != UNSEEN else CODELESS] += wanted - found
        if g == len(anchors) - 1:
            wanted = num_classes  # the share that is to be random
        while found < wanted:
            c = next_class(len(first), streams, rng)
            if mark[c] != stamp:
                mark[c] = stamp
                seeds[found] = next_in_class(c, first, count, order, cursor, rng)
                found += 1
    return seeds
