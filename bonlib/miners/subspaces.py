"""Batches from one subspace of look-alike identities: how triplet networks were trained with 100K identities."""

from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bonlib.core.checks import check_indices, needs_extra, whole_number
from bonlib.core.layout import FORMS, Ids, Layout
from bonlib.core.means import class_means
from bonlib.miners.base import Refreshing


class Subspaces(Refreshing):
    """Identities clustered by k-means into subspaces; the classes of a batch all come from one of them.

    A subspace is drawn by its number of samples (it is that of the next anchor), its classes uniformly; where it has
    too few, random classes fill up. A negative for triplets and pairs is a random sample of the anchor's subspace. Hard
    instances are mined inside the batch, by the loss.

    Cost a step: O(B), and every ``every`` steps a forward pass over all N samples and k-means over K means, O(K d
    subspaces). Memory: K integers, and K d floats during a look.

    Args:
        labels: ``(num_samples,)`` integers.
        dim: width of the embeddings.
        subspaces: number of clusters; by default so that one holds about two batches of classes.
        every: batches between two clusterings; by default one pass.
        warm_up: batches before the first, drawn at random.
        **layout: as :class:`~bonlib.core.miner.Miner` takes them.

    Raises:
        ValueError: if an argument is out of its range.

    Source: Wang et al., "How to train triplet networks with 100K identities?", ICCV workshops 2017: subspaces by
    k-means over identities, batches from one of them, online hard mining inside. There the means come from a network
    trained as a classifier before; clustering anew by the network in training is our reading.
    """

    learned = ("_subspace_of",)

    def __init__(
        self,
        labels: ArrayLike | Tensor,
        dim: int,
        *,
        subspaces: int | None = None,
        every: int | None = None,
        warm_up: int = 0,
        **layout: Unpack[Layout],
    ) -> None:
        super().__init__(labels, dim, every=every, warm_up=warm_up, **layout)
        if subspaces is None:
            classes = self.batch_size // (FORMS[self.form] or self.per_class)
            subspaces = max(len(self.classes) // (2 * classes), 1)
        self.subspaces = whole_number("subspaces", subspaces, 1, len(self.classes), "There are no more classes.")
        with needs_extra("100K identities"):
            import faiss  # noqa: F401
        self._subspace_of = np.zeros(len(self.classes), dtype=np.int64)  # of each class; one for all before a look

    def _check_learned(self, name: str, array: NDArray[Any]) -> None:
        super()._check_learned(name, array)
        if array.min() < 0 or array.max() >= self.subspaces:
            raise ValueError(f"state is damaged: it has subspaces from {array.min()} to {array.max()}.")

    def draw_seeds(self, num_classes: int) -> Ids:
        """Classes of the subspace of one anchor."""
        return self.seeds_around(
            num_classes, self.draw_anchors(1), lambda anchor: ((int(c), -1) for c in self._others(anchor))
        )

    def draw_negatives(self, anchors: ArrayLike) -> Ids:
        """A random sample of another class of each anchor's subspace."""
        anchors = check_indices("anchors", anchors, self.num_samples)
        negatives = self.random_negatives(anchors)
        for i, anchor in enumerate(anchors):
            others = self._others(int(anchor))
            if len(others):
                negatives[i] = self.next_of(int(others[0]))
        return negatives

    def _others(self, anchor: int) -> Ids:
        """The other classes of an anchor's subspace, in random order."""
        own = self.class_of[anchor]
        inside = np.flatnonzero(self._subspace_of == self._subspace_of[own])
        return self._rng.permutation(inside[inside != own])

    def _look(self, embeddings: Tensor) -> None:
        import faiss

        means = class_means(embeddings, self.class_of, len(self.classes)).numpy()
        kmeans = faiss.Kmeans(
            self.dim, self.subspaces, seed=int(self._aside().integers(2**31)), min_points_per_centroid=1
        )
        kmeans.train(means)
        self._subspace_of = kmeans.index.search(means, 1)[1][:, 0]  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]

    def _config(self) -> dict[str, Any]:
        return super()._config() | {"subspaces": self.subspaces}
