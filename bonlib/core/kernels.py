"""What runs at every batch, compiled: fair streams of samples and classes; negatives and sets out of buckets.

A stream goes through all samples (or classes) in random order, then through all in another order, and so on. Draws from
buckets are uniform and bounded in tries. Every function is safe for any state that public methods can reach: what comes
from a user is checked before it gets here.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bonlib.core.permutation import compiled, permuted

UNSEEN = -1  # code of a sample that was never forwarded
ANCHORS, CLASSES = 0, 1  # rows of the streams
_POSITION, _KEY = 0, 1  # their columns

# Where a negative, or an identity of a set, came from: rows of the tally.
SOURCES = ("own", "hamming1", "hamming2", "random", "unseen")
OWN, HAMMING1, HAMMING2, RANDOM, CODELESS = range(len(SOURCES))
_NEAR, _NEAR_BITS = 6, 5  # nearest hyperplanes kept for a sample, bits of an int32 that each takes
_TRIES = 32  # draws from a bucket before it is searched
_SEARCHED = 1024  # samples of the largest bucket that is


class Classes(NamedTuple):
    """The samples of each class, and whose turn it is."""

    of: NDArray[np.int32]  # (num_samples,) class of each sample
    first: NDArray[np.int32]  # (num_classes,) where a class begins in order
    count: NDArray[np.int32]  # pyright: ignore[reportIncompatibleMethodOverride]  # (num_classes,) samples of a class
    order: NDArray[np.int32]  # (num_samples,) samples, class after class
    cursor: NDArray[np.int32]  # (num_classes,) next of a class, counted from its first


class Buckets(NamedTuple):
    """The members of each bucket, and the bits of a sample that are nearest to flipping."""

    code: NDArray[np.int32]  # (num_samples,) bucket of each sample, UNSEEN where it has none
    start: NDArray[np.int64]  # (2**bits,) where a bucket begins in the pool
    size: NDArray[np.int32]  # (2**bits,) members of a bucket
    pool: NDArray[np.int32]  # members of all buckets, with room between
    near: NDArray[np.int32]  # (num_samples,) up to six bits, the nearest hyperplane first, five bits of an int each


def new_streams() -> NDArray[np.int64]:
    """The state of both streams at their start: ``(2, 2)`` int64, position and key of each."""
    return np.zeros((2, 2), dtype=np.int64)


def grouped(class_of: NDArray[np.int32], num_classes: int) -> Classes:
    """Samples class after class, each class at its beginning."""
    count = np.bincount(class_of, minlength=num_classes).astype(np.int32)
    first = (np.cumsum(count, dtype=np.int64) - count).astype(np.int32)
    return Classes(class_of, first, count, _counting_sort(class_of, first), np.zeros(num_classes, dtype=np.int32))


@compiled
def _counting_sort(class_of, first):  # pragma: no cover
    order, following = np.empty(len(class_of), dtype=np.int32), first.copy()
    for i in range(len(class_of)):
        c = class_of[i]
        order[following[c]] = i
        following[c] += 1
    return order


def some_of_each(classes: Classes, most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """At most so many samples of each class, evenly spread over its own, class after class; and where each begins."""
    kept = np.minimum(classes.count.astype(np.int64), most)
    begins = np.cumsum(kept) - kept
    within = np.arange(kept.sum()) - np.repeat(begins, kept)
    places = np.repeat(classes.first, kept) + within * np.repeat(classes.count, kept) // np.repeat(kept, kept)
    return classes.order[places].astype(np.int64), begins


@compiled
def next_in_stream(which, n, streams, rng):  # pragma: no cover
    """The next of ``n`` in a stream: all of them in random order, then again in another."""
    if streams[which, _POSITION] == 0:
        streams[which, _KEY] = rng.integers(0, 1 << 62)
    drawn = permuted(streams[which, _POSITION], n, streams[which, _KEY])
    streams[which, _POSITION] = (streams[which, _POSITION] + 1) % n
    return drawn


@compiled
def next_anchors(count, num_samples, streams, rng):  # pragma: no cover
    """The next ``count`` samples of their stream."""
    drawn = np.empty(count, dtype=np.int64)
    for i in range(count):
        drawn[i] = next_in_stream(ANCHORS, num_samples, streams, rng)
    return drawn


@compiled
def next_in_class(c, classes, rng):  # pragma: no cover
    """Next sample of class ``c``: one step of a Fisher-Yates shuffle, begun anew when all had their turn."""
    here = classes.first[c] + classes.cursor[c]
    there = rng.integers(here, classes.first[c] + classes.count[c])
    order = classes.order
    order[here], order[there] = order[there], order[here]
    classes.cursor[c] = (classes.cursor[c] + 1) % classes.count[c]
    return order[here]


@compiled
def random_seeds(n, streams, classes, rng):  # pragma: no cover
    """A sample each of the next ``n`` different classes."""
    seeds = np.empty(n, dtype=np.int64)
    taken = np.empty(n, dtype=np.int64)
    found = 0
    while found < n:  # a class comes twice only where the stream begins anew
        c = next_in_stream(CLASSES, len(classes.first), streams, rng)
        if c not in taken[:found]:
            taken[found] = c
            seeds[found] = next_in_class(c, classes, rng)
            found += 1
    return seeds


@compiled
def random_negative(c, classes, rng):  # pragma: no cover
    """A uniform draw from the samples that are not of class ``c``: those before and after it in the order."""
    at = rng.integers(0, len(classes.order) - classes.count[c])
    return classes.order[at if at < classes.first[c] else at + classes.count[c]]


@compiled
def random_negatives(ids, classes, rng):  # pragma: no cover
    """A uniform draw from the samples of other classes, for each of ``ids``."""
    drawn = np.empty(len(ids), dtype=np.int64)
    for i in range(len(ids)):
        drawn[i] = random_negative(classes.of[ids[i]], classes, rng)
    return drawn


@compiled
def with_classmates(ids, n, classes, rng):  # pragma: no cover
    """Each sample followed by ``n`` others of its class, again and again the same where it has too few."""
    group = np.empty((len(ids), 1 + n), dtype=np.int64)
    for i in range(len(ids)):
        group[i, 0] = ids[i]
        c = classes.of[ids[i]]
        for j in range(1, 1 + n):
            group[i, j] = next_in_class(c, classes, rng)
            if j < classes.count[c]:  # there is still one that the group does not hold
                while group[i, j] in group[i, :j]:
                    group[i, j] = next_in_class(c, classes, rng)
    return group


def plain_order(num_samples: int) -> NDArray[np.int32]:
    """Hyperplanes in plain order, for samples of which no other is known: ``(num_samples,)`` as ``Buckets.near``."""
    return np.full(num_samples, sum(bit << (_NEAR_BITS * bit) for bit in range(_NEAR)), dtype=np.int32)


@compiled
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


@compiled
def probing_order(near, bits, order):  # pragma: no cover
    """Write all ``bits`` into ``order``, each once: those that ``near`` names, in its order, then the others."""
    known, flagged = 0, 0
    for j in range(_NEAR + bits):
        bit = (near >> (_NEAR_BITS * j)) & ((1 << _NEAR_BITS) - 1) if j < _NEAR else j - _NEAR
        if bit < bits and not (flagged >> bit) & 1:
            flagged |= 1 << bit
            order[known] = bit
            known += 1


@compiled
def _negative_in(bucket, c, class_of, buckets, rng):  # pragma: no cover
    """A uniform draw from the samples of ``bucket`` that are not of class ``c``; -1 where there is none.

    Rejection keeps it O(1). It fails often only where the class makes up most of the bucket; a small bucket is then
    searched, one too large for that counts as empty.
    """
    n, start = buckets.size[bucket], buckets.start[bucket]
    if n == 0:
        return -1
    for _ in range(_TRIES):
        sample = buckets.pool[start + rng.integers(0, n)]
        if class_of[sample] != c:
            return sample
    others = 0
    for j in range(n if n <= _SEARCHED else 0):
        others += class_of[buckets.pool[start + j]] != c
    if others == 0:
        return -1
    left = rng.integers(0, others)
    for j in range(n):
        sample = buckets.pool[start + j]
        if class_of[sample] != c:
            if left == 0:
                return sample
            left -= 1
    return -1


@compiled
def draw_negatives(anchors, bits, buckets, classes, rng, tally):  # pragma: no cover
    """A sample of each anchor's bag, or of the fall-backs: ``(n,)`` to ``(n,)``; ``tally`` counts where they are from.

    ``bits`` is how many of the code's bits are flipped in search of others, 0 or all.
    """
    drawn, flips = np.empty(len(anchors), dtype=np.int64), np.empty(bits, dtype=np.int64)
    for i in range(len(anchors)):
        anchor = anchors[i]
        c, code = classes.of[anchor], buckets.code[anchor]
        found, source = -1, CODELESS
        if code != UNSEEN:
            found, source = _negative_in(code, c, classes.of, buckets, rng), OWN
            if found == -1:
                probing_order(buckets.near[anchor], bits, flips)
            for bit in flips:
                if found != -1:
                    break
                found, source = _negative_in(code ^ (1 << bit), c, classes.of, buckets, rng), HAMMING1
        if found == -1:
            found = random_negative(c, classes, rng)
            source = RANDOM if code != UNSEEN else CODELESS
        drawn[i] = found
        tally[source] += 1
    return drawn


@compiled
def _take(bucket, seeds, found, wanted, stamp, mark, class_of, buckets, rng):  # pragma: no cover
    """Add samples of ``bucket`` to ``seeds``, of classes not in it yet, until ``wanted``; returns how many it holds.

    Twice the bucket's size in draws finds nearly all of its classes, and the bound keeps a huge bucket O(1).
    """
    n, start = buckets.size[bucket], buckets.start[bucket]
    for _ in range(min(2 * n, 8 * len(seeds))):
        if found == wanted:
            break
        sample = buckets.pool[start + rng.integers(0, n)]
        if mark[class_of[sample]] != stamp:
            mark[class_of[sample]] = stamp
            seeds[found] = sample
            found += 1
    return found


@compiled
def draw_seeds(anchors, shares, bits, buckets, classes, sketches, streams, rng, tally):  # pragma: no cover
    """One sample each of different classes, some from the buckets of the anchors and near, the others at random.

    Args:
        anchors: ``(n,)`` samples whose buckets are used.
        shares: classes in all, and how many of them come from buckets.
        bits: how many of the code's bits are flipped in search of others, 0 or all.
        buckets: of the table.
        classes: of the data set.
        sketches: whose marks say which classes are taken.
        streams: of anchors and of classes.
        rng: the bag's generator; in a tuple of arguments it would cost more than all else here.
        tally: ``(5,)`` counts where the classes are from.
    """
    num_classes, from_bags = shares
    sketches.stamp[0] += 1
    mark, stamp = sketches.mark, sketches.stamp[0]
    seeds, flips = np.empty(num_classes, dtype=np.int64), np.empty(bits, dtype=np.int64)
    found = 0
    for g in range(len(anchors)):
        anchor = anchors[g]
        code = buckets.code[anchor]
        wanted = from_bags * (g + 1) // len(anchors)
        if found < wanted and mark[classes.of[anchor]] != stamp:
            mark[classes.of[anchor]] = stamp
            seeds[found] = anchor
            found += 1
        if code != UNSEEN:
            before = found
            found = _take(code, seeds, found, wanted, stamp, mark, classes.of, buckets, rng)
            tally[OWN] += found - before
            before = found
            probing_order(buckets.near[anchor], bits, flips)
            for i in range(bits):
                if found == wanted:
                    break
                other = code ^ (1 << flips[i])
                found = _take(other, seeds, found, wanted, stamp, mark, classes.of, buckets, rng)
            tally[HAMMING1] += found - before
            before = found
            for j in range(1, bits):
                for i in range(j):
                    if found == wanted:
                        break
                    other = code ^ (1 << flips[i]) ^ (1 << flips[j])
                    found = _take(other, seeds, found, wanted, stamp, mark, classes.of, buckets, rng)
            tally[HAMMING2] += found - before
        tally[RANDOM if code != UNSEEN else CODELESS] += wanted - found
        if g == len(anchors) - 1:
            wanted = num_classes  # the share that is to be random
        while found < wanted:
            c = next_in_stream(CLASSES, len(classes.first), streams, rng)
            if mark[c] != stamp:
                mark[c] = stamp
                seeds[found] = next_in_class(c, classes, rng)
                found += 1
    return seeds
