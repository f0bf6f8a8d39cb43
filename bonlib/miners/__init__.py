"""Miners by name, all under the protocol of :class:`~bonlib.core.miner.Miner`."""

from collections.abc import Callable
from typing import Any

from numpy.typing import ArrayLike
from torch import Tensor

from bonlib.bag import BagOfNegatives
from bonlib.core.checks import known_options
from bonlib.core.miner import Miner, RandomSampling
from bonlib.miners.class_based import ClassBased
from bonlib.miners.exact import ExactNeighbours
from bonlib.miners.graph import GraphSampling
from bonlib.miners.refreshed_bag import RefreshedBag
from bonlib.miners.smart import SmartMining
from bonlib.miners.subspaces import Subspaces

_MINERS: dict[str, Callable[..., Miner]] = {
    "bag": BagOfNegatives.as_published,
    "two-stage-bag": BagOfNegatives,
    "random": RandomSampling,
    "class-based": ClassBased,
    "smart": SmartMining,
    "subspaces": Subspaces,
    "graph": GraphSampling,
    "exact": ExactNeighbours,
    "refreshed-bag": RefreshedBag,
}


def list_miners() -> list[str]:
    """Names that :func:`make_miner` takes."""
    return sorted(_MINERS)


def make_miner(name: str, labels: ArrayLike | Tensor, dim: int, **options: Any) -> Miner:
    """A miner by name.

    Args:
        name: one of :func:`list_miners`; ``"bag"`` is BoN as we read the paper, ``"two-stage-bag"`` what
            :class:`~bonlib.bag.BagOfNegatives` is by default.
        labels: ``(num_samples,)`` integers.
        dim: width of the embeddings.
        **options: what :class:`~bonlib.core.miner.Miner` takes, and the miner's own.

    Raises:
        ValueError: if there is no such miner.
    """
    if name not in _MINERS:
        raise ValueError(f"miner is {name!r}; allowed are {', '.join(map(repr, list_miners()))}.")
    with known_options(f"miner {name!r}"):
        return _MINERS[name](labels, dim, **options)
