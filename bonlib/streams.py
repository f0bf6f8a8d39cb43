"""Who comes next: fair streams of samples and classes, compiled, O(1) a draw and without an array to shuffle.

A stream goes through all samples (or classes) in random order, then through all in another order, and so on. The order
is computed, not stored: a keyed pseudo-random permutation, so that a hundred million anchors take no memory.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

ANCHORS, CLASSES = 0, 1  # rows of the streams
_POSITION, _KEY = 0, 1  # their columns
_ROUNDS = 4


def new_streams() -> NDArray[np.int64]:
    """The state of both streams at their start: ``(2, 2)`` int64, position and key of each."""
    return np.zeros((2, 2), dtype=np.int64)


def grouped(
    class_of: NDArray[np.int32], num_classes: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Samples class after class ``(num_samples,)``, and for each class where it begins and how many it has."""
    count = np.bincount(class_of, minlength=num_classes).astype(np.int32)
    first = (np.cumsum(count, dtype=np.int64) - count).astype(np.int32)
    return _counting_sort(class_of, first), first, count


@njit(cache=True)
def _counting_sort(class_of, first):  # pragma: no cover
    order, following = np.empty(len(class_of), dtype=np.int32), first.copy()
    for i in range(len(class_of)):
        c = class_of[i]
        order[following[c]] = i
        following[c] += 1
    return order


@njit(cache=True)
def permuted(i, n, key):  # pragma: no cover
    """Where a pseudo-random permutation of ``0 .. n - 1`` takes ``i``; another key is another permutation.

    A Feistel network permutes the next power of four; what falls outside is sent through again until it is inside,
    which ends because a permutation is made of cycles: after four rounds on average. At least 256 numbers are permuted,
    so that few samples are shuffled as well as many.

    Source: Black, Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002 (cycle walking); the mixing function is
    that of SplitMix64 (Steele, Lea, Flood 2014).
    """
    half = 4
    while 1 << (2 * half) < n:
        half += 1
    mask = np.uint64((1 << half) - 1)
    while True:
        left, right = np.uint64(i >> half), np.uint64(i) & mask
        for r in range(_ROUNDS):
            mixed = right + np.uint64(key) + np.uint64(r + 1) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) & mask)
        i = np.int64(left << np.uint64(half) | right)
        if i < n:
            return i


@njit(cache=True)
def next_in_stream(which, n, streams, rng):  # pragma: no cover
    """The next of ``n`` in a stream: all of them in random order, then again in another."""
    if streams[which, _POSITION] == 0:
        streams[which, _KEY] = rng.integers(0, 1 << 62)
    drawn = permuted(streams[which, _POSITION], n, streams[which, _KEY])
    streams[which, _POSITION] = (streams[which, _POSITION] + 1) % n
    return drawn


@njit(cache=True)
def next_class(num_classes, streams, rng):  # pragma: no cover
    """The next class of its stream."""
    return next_in_stream(CLASSES, num_classes, streams, rng)


@njit(cache=True)
def next_anchors(count, num_samples, streams, rng):  # pragma: no cover
    """The next ``count`` samples of their stream."""
    drawn = np.empty(count, dtype=np.int64)
    for i in range(count):
        drawn[i] = next_in_stream(ANCHORS, num_samples, streams, rng)
    return drawn


@njit(cache=True)
def next_in_class(c, first, count, order, cursor, rng):  # pragma: no cover
    """Next sample of class ``c``: one step of a Fisher-Yates shuffle, begun anew when all had their turn."""
    here = first[c] + cursor[c]
    there = rng.integers(here, first[c] + count[c])
    order[here], order[there] = order[there], order[here]
    cursor[c] = (cursor[c] + 1) % count[c]
    return order[here]


@njit(cache=True)
def random_seeds(n, streams, first, count, order, cursor, rng):  # pragma: no cover
    """A sample each of the next ``n`` different classes."""
    seeds = np.empty(n, dtype=np.int64)
    taken = np.empty(n, dtype=np.int64)
    found = 0
    while found < n:  # a class comes twice only where the stream begins anew
        c = next_class(len(first), streams, rng)
        if c not in taken[:found]:
            taken[found] = c
            seeds[found] = next_in_class(c, first, count, order, cursor, rng)
            found += 1
    return seeds


@njit(cache=True)
def random_negative(c, first, count, order, rng):  # pragma: no cover
    """A uniform draw from the samples that are not of class ``c``: those before and after it in ``order``."""
    at = rng.integers(0, len(order) - count[c])
    return order[at if at < first[c] else at + count[c]]


@njit(cache=True)
def random_negatives(ids, class_of, first, count, order, rng):  # pragma: no cover
    """A uniform draw from the samples of other classes, for each of ``ids``."""
    drawn = np.empty(len(ids), dtype=np.int64)
    for i in range(len(ids)):
        drawn[i] = random_negative(class_of[ids[i]], first, count, order, rng)
    return drawn


@njit(cache=True)
def with_classmates(ids, n, class_of, first, count, order, cursor, rng):  # pragma: no cover
    """Each sample followed by ``n`` others of its class, again and again the same where it has too few."""
    group = np.empty((len(ids), 1 + n), dtype=np.int64)
    for i in range(len(ids)):
        group[i, 0] = ids[i]
        c = class_of[ids[i]]
        for j in range(1, 1 + n):
            group[i, j] = next_in_class(c, first, count, order, cursor, rng)
            if j < count[c]:  # there is still one that the group does not hold
                while group[i, j] in group[i, :j]:
                    group[i, j] = next_in_class(c, first, count, order, cursor, rng)
    return group
