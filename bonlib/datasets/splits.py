"""Identities, not images, are split: train, validation and test are disjoint in identity."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bonlib.core.checks import whole_number

Split = Literal["train", "validation", "test", "all"]
SPLITS: dict[str, float] = {"train": 0.5, "validation": 0.1, "test": 0.4}  # shares of the identities


def check_split(split: str) -> None:
    """Refuse what is no split.

    Raises:
        ValueError: if it is none.
    """
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split is {split!r}; allowed are {', '.join(map(repr, (*SPLITS, 'all')))}.")


def seed_of_split(seed: int, split_seed: int | None) -> int:
    """The seed that decides which identities are for training: one of its own, or that of all else."""
    return whole_number("seed", seed, 0) if split_seed is None else whole_number("split_seed", split_seed, 0)


def split_identities(count: int, seed: int) -> dict[str, NDArray[np.int64]]:
    """Identities of each split, sorted: disjoint, together all, in the shares of ``SPLITS``."""
    order = np.random.default_rng(seed).permutation(count)
    ends = np.round(np.cumsum(list(SPLITS.values())) * count).astype(int)
    if count > 4 and ends[0] == ends[1]:  # of seven
        ends[0] -= 1
    parts = np.split(order, ends[:-1])
    return {name: np.sort(part) for name, part in zip(SPLITS, parts, strict=True)} | {"all": np.arange(count)}


def split_groups(sizes: NDArray[np.int64], seed: int) -> dict[str, NDArray[np.int64]]:
    """Whole groups of identities, such as alphabets, so that each split comes near its share of the identities.

    Args:
        sizes: ``(groups,)`` identities in each group.
        seed: of the order in which the groups are given out, each to the split that lacks most of its share.

    Returns:
        Groups of each split, sorted: disjoint, together all.
    """
    order = np.random.default_rng(seed).permutation(len(sizes))
    taken: dict[str, list[int]] = {name: [] for name in SPLITS}
    for group in order:
        lacking = {name: 1 - sizes[taken[name]].sum() / (share * sizes.sum()) for name, share in SPLITS.items()}
        taken[max(lacking, key=lambda name: lacking[name])].append(int(group))
    parts = {name: np.sort(np.array(groups, dtype=np.int64)) for name, groups in taken.items()}
    return parts | {"all": np.arange(len(sizes))}
