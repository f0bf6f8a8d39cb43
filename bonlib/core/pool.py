"""The second stage: identities in an anchor's bucket and near it, ordered by what is remembered of each identity.

What is remembered is a sketch: the running mean of an identity's embeddings, in eight bits a dimension. The order is
exact for the sketches, the candidates are those of the hash. A window of ranks of the order is the dial of hardness.
All functions are O(pool) a draw, whatever the number of samples or identities.
"""

from typing import NamedTuple

import numpy as np

from bonlib.core.kernels import (
    CLASSES,
    CODELESS,
    HAMMING1,
    HAMMING2,
    OWN,
    RANDOM,
    UNSEEN,
    next_in_class,
    next_in_stream,
    probing_order,
    random_negative,
)
from bonlib.core.permutation import compiled

_LOOKED = 8  # members of a bucket that are looked at for each place in the pool that is free


class Dial(NamedTuple):
    """How many candidates there are, and which ranks of their order are drawn from."""

    pool: int  # candidates at most
    first: int  # rank from which
    last: int  # rank up to which, itself left out
    bits: int  # of the code that are flipped in search of candidates, 0 or all
    by_class: int  # 1 where the table holds identities, 0 where it holds samples
    eased: float  # how far both ranks slide toward the end of the candidates: 0 not at all, 1 up to it


@compiled
def _gather(bucket, found, classes_found, dial, of, buckets, sketches, rng):  # pragma: no cover
    """Add identities of a bucket to the candidates, from a random member on; returns how many there are."""
    n, start = buckets.size[bucket], buckets.start[bucket]
    if n == 0:
        return found
    at = rng.integers(0, n)
    for _ in range(min(n, _LOOKED * (dial.pool - found))):
        entry = buckets.pool[start + at]
        at = at + 1 if at + 1 < n else 0
        c = entry if dial.by_class else of[entry]
        if sketches.mark[c] != sketches.stamp[0]:
            sketches.mark[c] = sketches.stamp[0]
            classes_found[found] = c
            found += 1
            if found == dial.pool:
                break
    return found


@compiled
def pool_around(c, place, dial, buckets, of, sketches, rng, candidates, ends):  # pragma: no cover
    """The candidates around a place, in the order in which they are found; returns how many.

    Args:
        c: an identity that is none, -1 where there is none.
        place: a code, and its bits nearest to flipping.
        dial: how many, and what the table holds.
        buckets: of the table.
        of: ``(num_samples,)`` identity of each sample.
        sketches: of the identities.
        rng: where in a bucket to begin.
        candidates: ``(pool,)`` int64, is written to: identities.
        ends: ``(2,)`` int64, is written to: how many came from the own bucket, and from those one bit away.
    """
    code, near = place
    sketches.stamp[0] += 1
    if c >= 0:
        sketches.mark[c] = sketches.stamp[0]
    bits = dial.bits
    flips = np.empty(bits, dtype=np.int64)
    probing_order(near, bits, flips)
    found = _gather(code, 0, candidates, dial, of, buckets, sketches, rng)
    ends[0] = found
    for i in range(bits):
        if found == dial.pool:
            break
        found = _gather(code ^ (1 << flips[i]), found, candidates, dial, of, buckets, sketches, rng)
    ends[1] = found
    for j in range(1, bits):
        for i in range(j):
            if found == dial.pool:
                break
            other = code ^ (1 << flips[i]) ^ (1 << flips[j])
            found = _gather(other, found, candidates, dial, of, buckets, sketches, rng)
    return found


@compiled
def pool_of(anchor, dial, buckets, classes, sketches, rng, candidates, ends):  # pragma: no cover
    """The candidates of an anchor, a sample, as of :func:`pool_around`; returns how many, -1 where it has no code."""
    c = classes.of[anchor]
    entry = c if dial.by_class else anchor
    if buckets.code[entry] == UNSEEN:
        return -1
    place = (buckets.code[entry], buckets.near[entry])
    return pool_around(c, place, dial, buckets, classes.of, sketches, rng, candidates, ends)


@compiled
def pools_around(own, codes, near, dial, buckets, of, sketches, rng):  # pragma: no cover
    """The candidates around each of ``(n,)`` places, without the identity ``own``: ``(n, pool)``, -1 where none."""
    found, ends = np.full((len(codes), dial.pool), -1, dtype=np.int64), np.empty(2, dtype=np.int64)
    for i in range(len(codes)):
        pool_around(own[i], (codes[i], near[i]), dial, buckets, of, sketches, rng, found[i], ends)
    return found


@compiled
def ordered(c, candidates, found, sketches):  # pragma: no cover
    """Positions of the candidates, nearest first; of equals the one that was found first."""
    apart = np.empty(found, dtype=np.int64)
    rows = sketches.rows
    for i in range(found):
        total = np.int32(0)
        for d in range(rows.shape[1]):
            step = np.int32(rows[c, d]) - np.int32(rows[candidates[i], d])
            total += step * step
        apart[i] = np.int64(total) * len(candidates) + i  # no two are equal
    return np.sort(apart) % len(candidates)


@compiled
def _source(place, ends):  # pragma: no cover
    return OWN if place < ends[0] else HAMMING1 if place < ends[1] else HAMMING2


@compiled
def _slid(dial, found):  # pragma: no cover
    """The first and last rank of the window among so many candidates."""
    by = int(np.rint(dial.eased * max(found - dial.last, 0)))
    return min(dial.first + by, found), min(dial.last + by, found)


@compiled
def draw_window_seeds(anchors, shares, dial, buckets, classes, sketches, streams, rng, tally):  # pragma: no cover
    """One sample each of different classes, some from windows around the anchors, the others at random.

    Args:
        anchors: ``(n,)`` samples whose windows are used.
        shares: classes in all, and how many of them come from windows.
        dial: of hardness.
        buckets: of the table.
        classes: of the data set.
        sketches: of the identities.
        streams: of anchors and of classes.
        rng: the bag's generator.
        tally: ``(5,)`` counts where the classes are from.
    """
    num_classes, from_windows = shares
    seeds, taken = np.empty(num_classes, dtype=np.int64), np.empty(num_classes, dtype=np.int64)
    candidates, ends = np.empty(dial.pool, dtype=np.int64), np.empty(2, dtype=np.int64)
    found = 0
    for g in range(len(anchors)):
        anchor = anchors[g]
        c = classes.of[anchor]
        wanted = from_windows * (g + 1) // len(anchors)
        if found < wanted and c not in taken[:found]:
            seeds[found], taken[found] = anchor, c
            found += 1
        n = pool_of(anchor, dial, buckets, classes, sketches, rng, candidates, ends) if found < wanted else 0
        if n > 0:
            order = ordered(c, candidates, n, sketches)
            first, last = _slid(dial, n)
            # The window in random order, behind it the next ranks in theirs, then those that it has slid past.
            for t in range(n - min(dial.first, n)):
                if found == wanted:
                    break
                i = first + t if first + t < n else n - 1 - t
                if first <= i < last:
                    j = rng.integers(i, last)
                    order[i], order[j] = order[j], order[i]
                other = candidates[order[i]]
                if other not in taken[:found]:
                    seeds[found], taken[found] = next_in_class(other, classes, rng), other
                    found += 1
                    tally[_source(order[i], ends)] += 1
        tally[RANDOM if n >= 0 else CODELESS] += wanted - found
        if g == len(anchors) - 1:
            wanted = num_classes  # the share that is to be random
        while found < wanted:
            c = next_in_stream(CLASSES, len(classes.first), streams, rng)
            if c not in taken[:found]:
                seeds[found], taken[found] = next_in_class(c, classes, rng), c
                found += 1
    return seeds


@compiled
def draw_window_negatives(anchors, dial, buckets, classes, sketches, rng, tally):  # pragma: no cover
    """A sample of an identity in each anchor's window, or a random negative: ``(n,)`` to ``(n,)``."""
    drawn = np.empty(len(anchors), dtype=np.int64)
    candidates, ends = np.empty(dial.pool, dtype=np.int64), np.empty(2, dtype=np.int64)
    for i in range(len(anchors)):
        c = classes.of[anchors[i]]
        n = pool_of(anchors[i], dial, buckets, classes, sketches, rng, candidates, ends)
        if n > dial.first:
            order = ordered(c, candidates, n, sketches)
            first, last = _slid(dial, n)
            place = order[rng.integers(first, last)]
            drawn[i] = next_in_class(candidates[place], classes, rng)
            tally[_source(place, ends)] += 1
        else:
            drawn[i] = random_negative(c, classes, rng)
            tally[RANDOM if n >= 0 else CODELESS] += 1
    return drawn
