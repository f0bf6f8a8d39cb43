"""A random order that is computed, not stored: a keyed permutation of ``0 .. n - 1``, O(1) a number and no memory."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

_ROUNDS = 4


def _sources() -> str:
    """What stands for all that is compiled here: code of one file is compiled into that of others."""
    texts = (file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(b"".join(text for text in texts if b"compiled" in text)).hexdigest()[:12]


_SOURCES = _sources()


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """Compile with numba; kept on the disk for the next process, where there is a place that can be written.

    What is kept is known by name and line of the function, and by the time of its own file. So the name says of which
    sources it is: else an edit of one file would leave its old code in what others have compiled in.
    """
    function.__qualname__ += f"_{_SOURCES}"
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written
        return njit(**options)(function)


@compiled
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
