"""A control: BoN without stale codes, at the price that BoN avoids."""

from typing import Any

from torch import Tensor

from bonlib.bag import BagOfNegatives
from bonlib.miners.refreshing import Refreshing


class RefreshedBag(Refreshing, BagOfNegatives):
    """Bag of Negatives whose whole table is hashed anew every ``every`` batches; what a stale code costs.

    Between two looks it is corrected like BoN's. Cost a step: that of BoN, and a forward pass over all N samples
    every ``every`` steps. Memory: that of BoN.

    Source: our control. Takes the arguments of :class:`~bonlib.bag.BagOfNegatives`, ``every`` and ``warm_up``.
    """

    def __init__(self, *arguments: Any, every: int | None = None, warm_up: int = 0, **options: Any) -> None:
        super().__init__(*arguments, every=every, warm_up=warm_up, **options)

    def stats(self) -> dict[str, float]:
        """Those of BoN, and ``looks``."""
        return BagOfNegatives.stats(self) | Refreshing.stats(self)

    def _look(self, embeddings: Tensor) -> None:
        self._correct(self._wanted(), embeddings)
