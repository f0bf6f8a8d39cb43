"""A control: BoN without stale codes, at the price that BoN avoids."""

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bonlib.bag import BagOfNegatives
from bonlib.core.checks import locked, own_state
from bonlib.core.layout import Ids
from bonlib.miners.base import Refreshing


class RefreshedBag(Refreshing):
    """Bag of Negatives whose whole table is hashed anew every ``every`` batches; what a stale code costs.

    Between two looks it is corrected like BoN's. Cost a step: that of BoN, and a forward pass over all N samples
    every ``every`` steps. Memory: that of BoN, and of the streams once more.

    Source: our control. Takes ``every``, ``warm_up``, and of :meth:`~bonlib.bag.BagOfNegatives.as_published` ``bags``,
    ``bits``, ``hasher`` and the layout.
    """

    def __init__(
        self,
        labels: ArrayLike | Tensor,
        dim: int,
        *,
        every: int | None = None,
        warm_up: int = 0,
        bags: int = 1,
        bits: int | None = None,
        hasher: Any = "autoencoder",
        **layout: Any,
    ) -> None:
        super().__init__(labels, dim, every=every, warm_up=warm_up, **layout)
        self.bag = BagOfNegatives.as_published(labels, dim, bags=bags, bits=bits, hasher=hasher, **layout)

    def set_epoch(self, epoch: int) -> None:
        """That of :meth:`~bonlib.core.miner.Miner.set_epoch`, for the bag too, which draws."""
        before = self._rng
        super().set_epoch(epoch)
        if self._rng is not before:  # else a loaded state keeps its place
            self.bag.set_epoch(epoch)

    def update(self, indices: ArrayLike | Tensor, embeddings: Any) -> None:
        """That of :meth:`~bonlib.bag.BagOfNegatives.update`."""
        self.bag.update(indices, embeddings)

    def draw_seeds(self, num_classes: int) -> Ids:
        """One sample each of ``num_classes`` classes, out of the bag."""
        return self.bag.draw_seeds(num_classes)

    def draw_negatives(self, anchors: ArrayLike) -> Ids:
        """A sample of each anchor's bag, or of the fall-backs: ``(n,)`` to ``(n,)``."""
        return self.bag.draw_negatives(anchors)

    def _draw_batch(self) -> Ids:
        self.bag._batches += 1  # its own draws are parts of ours
        return super()._draw_batch()

    def stats(self) -> dict[str, float]:
        """Those of BoN, and ``looks``."""
        return self.bag.stats() | super().stats()

    @locked
    def state_dict(self) -> dict[str, Any]:
        """Everything that influences the next batch, the bag's state included."""
        return super().state_dict() | {"bag": self.bag.state_dict()}

    def _load(self, state: Mapping[str, Any]) -> None:
        super()._load(state)
        self.bag.load_state_dict(state["bag"])

    def _check_state(self, state: Mapping[str, Any]) -> None:
        super()._check_state(state)
        own_state(state, type(self).__name__, ("bag",))

    def _look(self, embeddings: Tensor) -> None:
        if self.bag._updates:
            self.bag.correct(self._wanted(), embeddings)
        else:  # the hash has seen nothing, so that it is not centred
            self.bag.fill(lambda ids: embeddings[torch.from_numpy(ids)])
