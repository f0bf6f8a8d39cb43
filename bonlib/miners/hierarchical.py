"""Hierarchical triplet loss: a tree of classes gives the batches and the margins."""

from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bonlib.core.checks import centred, needs_extra, real_number, whole_number
from bonlib.core.layout import Ids, Layout
from bonlib.core.means import class_means
from bonlib.miners.base import NearClasses


class Hierarchical(NearClasses):
    """Classes merged bottom-up into a tree; batches of neighbouring classes, margins by the level where two meet.

    The distance of two classes is the mean squared distance of their samples. A set is made of ``groups`` random
    classes with the nearest to each; a negative for triplets and pairs is a sample of one of the anchor's nearest
    classes. The loss ``hierarchical`` takes its margins from :meth:`margins`.

    Cost a step: O(B), and every ``every`` steps a forward pass over all N samples, O(K² d) for the distances and O(K²)
    for the tree. Memory: K²/2 floats, which rules it out beyond some 50,000 classes.

    Args:
        labels: ``(num_samples,)`` integers.
        dim: width of the embeddings.
        groups: random classes of a set, each with its neighbours.
        levels: of the tree.
        constant: the part of the margin that is the same for all.
        every: batches between two trees; by default one pass.
        warm_up: batches before the first, drawn at random.
        **layout: as :class:`~bonlib.core.miner.Miner` takes them.

    Raises:
        ValueError: if an argument is out of its range.

    Source: Ge, Huang, Dong, Scott, "Deep metric learning with hierarchical triplet loss", ECCV 2018: class distances,
    levels, anchor-neighbourhood sampling, the dynamic margin. Average linkage for the tree, the warm-up, the margin's
    bounds and the forms triplet and pair are our reading.
    """

    learned = ("_meeting", "_spread", "_neighbours")

    def __init__(
        self,
        labels: ArrayLike | Tensor,
        dim: int,
        *,
        groups: int = 1,
        levels: int = 16,
        constant: float = 0.1,
        every: int | None = None,
        warm_up: int = 0,
        **layout: Unpack[Layout],
    ) -> None:
        super().__init__(labels, dim, every=every, warm_up=warm_up, **layout)
        groups = self._check_groups(groups)
        self.groups, self.levels = groups, whole_number("levels", levels, 1)
        self.constant = real_number("constant", constant, 0)
        with needs_extra("hierarchical triplets"):
            import scipy  # noqa: F401
        classes = self.batch_size // self.per_class if self.form == "set" else 2 * groups
        self._nearest = min(max(-(-classes // groups) - 1, 1), len(self.classes) - 1)
        self._meeting = np.empty(0, dtype=np.float32)  # of each pair of classes: threshold of the level where they meet
        self._spread = np.empty(0, dtype=np.float32)  # of each class: mean squared distance of its samples

    def margins(self, anchors: Tensor, negatives: Tensor) -> Tensor:
        """Margin of a triplet on squared distances, from the classes of anchor and negative.

        Args:
            anchors: ``(n,)`` labels of the anchors, as they were given to the miner.
            negatives: ``(n,)`` labels of the negatives.

        Returns:
            ``(n,)``: the constant, plus the threshold where the two meet, less the spread of the anchor's class; never
            below the constant. The constant alone before the first look.
        """
        if not self._looks:
            return torch.full(anchors.shape, self.constant, device=anchors.device)
        a, b = (np.searchsorted(self.classes, labels.cpu().numpy()) for labels in (anchors, negatives))
        low, high = np.minimum(a, b), np.maximum(a, b)
        at = low * len(self.classes) - low * (low + 1) // 2 + high - low - 1  # in scipy's condensed order
        more = np.maximum(self._meeting[at] - self._spread[a], 0)
        return self.constant + torch.from_numpy(more).to(anchors.device)

    def draw_seeds(self, num_classes: int) -> Ids:
        """Random classes, each with its nearest."""
        if not self._looks:
            return self.random_seeds(num_classes)
        return self.seeds_around(num_classes, self.random_seeds(self.groups), self._near)

    def _look(self, embeddings: Tensor) -> None:
        from scipy.cluster.hierarchy import cophenet, linkage
        from scipy.spatial.distance import squareform

        embeddings = centred(embeddings)
        means = class_means(embeddings, self.class_of, len(self.classes))
        squares = class_means(embeddings.square().sum(dim=1, keepdim=True), self.class_of, len(self.classes))  # (K, 1)
        distances = (squares + squares.T - 2 * means @ means.T).clamp_min(0)  # means over all pairs of samples
        # Over the pairs of different samples of a class.
        count = torch.from_numpy(self._classes.count).clamp_min(2)
        self._spread = (distances.diagonal() * count / (count - 1)).float().numpy()
        np.fill_diagonal(between := distances.numpy().copy(), 0)
        condensed = squareform(between, checks=False)
        self._meeting = self._thresholds(np.asarray(cophenet(linkage(condensed, "average"))))
        np.fill_diagonal(between, np.inf)
        nearest = np.argpartition(between, self._nearest - 1, axis=1)[:, : self._nearest]
        order = np.take_along_axis(between, nearest, axis=1).argsort(axis=1)
        self._neighbours = np.take_along_axis(nearest, order, axis=1)

    def _thresholds(self, heights: NDArray[np.float64]) -> NDArray[np.float32]:
        """Heights where classes merge, rounded up to the levels: equal steps from the mean spread to the top."""
        low = float(self._spread.mean())
        step = max(float(heights.max()) - low, 1e-6) / self.levels
        return (low + step * np.ceil((heights - low).clip(0) / step)).astype(np.float32)

    def _config(self) -> dict[str, Any]:
        return super()._config() | {name: getattr(self, name) for name in ("groups", "levels", "constant")}
