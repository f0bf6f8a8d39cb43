"""Miners by name, all under the protocol of :class:`~bonlib.sampling.Miner`."""

from typing import Any

from numpy.typing import ArrayLike
from torch import Tensor

from bonlib.bag import BagOfNegatives
from bonlib.sampling import Miner


def _random(labels: ArrayLike | Tensor, dim: int, **options: Any) -> Miner:
    """Random P×K sets, random triplets, random pairs: O(batch) a step however many classes there are."""
    return Miner(labels, **options)


_MINERS = {"bag": BagOfNegatives, "random": _random}


def list_miners() -> list[str]:
    """Names that :func:`make_miner` takes."""
    return sorted(_MINERS)


def make_miner(name: str, labels: ArrayLike | Tensor, dim: int, **options: Any) -> Miner:
    """A miner by name.

    Args:
        name: one of :func:`list_miners`.
        labels: ``(num_samples,)`` integers.
        dim: width of the embeddings.
        **options: what :class:`~bonlib.sampling.Miner` takes, and the miner's own.

    Raises:
        ValueError: if there is no such miner.
    """
    if name not in _MINERS:
        raise ValueError(f"miner is {name!r}; allowed are {', '.join(map(repr, list_miners()))}.")
    return _MINERS[name](labels, dim, **options)
