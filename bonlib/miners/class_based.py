"""Stochastic class-based hard example mining: hard classes by their signatures, hard instances among them."""

from collections.abc import Iterator, Mapping
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from bonlib.core.checks import check_indices, locked, real_number, whole_number
from bonlib.core.layout import Ids, Layout
from bonlib.core.means import class_means
from bonlib.core.miner import Miner


class ClassBased(Miner):
    """Hard classes by the distance of class signatures, then hard instances among them.

    Each class has a signature, the running mean of its embeddings. A set is made of the classes of ``groups`` anchors
    and of classes drawn from the ``nearest`` signatures to each; the loss finds the hard instances among them. A
    negative for triplets and pairs is, in one such class, the nearest to the anchor by the embeddings last seen.

    Cost a step: O(groups K d) for sets, O(B K d) for the other forms, without any extra forward pass. Memory: K d
    floats, and N d more for triplets and pairs.

    Args:
        labels: ``(num_samples,)`` integers.
        dim: width of the embeddings.
        nearest: hard classes of an anchor, from which one is drawn at random.
        groups: anchors of a set.
        momentum: of the running mean, 0 to 1; how much of the old signature a batch leaves.
        **layout: as :class:`~bonlib.core.miner.Miner` takes them.

    Raises:
        ValueError: if an argument is out of its range.

    Source: Suh, Han, Kim, Lee, "Stochastic class-based hard example mining for deep metric learning", CVPR 2019:
    signatures, the stochastic choice of hard classes, instances within them. Running means (the paper learns its
    signatures), groups, and the last seen embeddings are our reading.
    """

    learned = ("signatures", "last")

    def __init__(
        self,
        labels: ArrayLike | Tensor,
        dim: int,
        *,
        nearest: int = 32,
        groups: int = 1,
        momentum: float = 0.5,
        **layout: Unpack[Layout],
    ) -> None:
        super().__init__(labels, dim, **layout)
        groups = self._check_groups(groups)
        self.momentum = real_number("momentum", momentum, 0)
        if self.momentum >= 1:
            raise ValueError(f"momentum is {momentum}; allowed are 0 up to 1, without 1.")
        self.nearest, self.groups = min(whole_number("nearest", nearest, 1), len(self.classes) - 1), groups
        self.signatures = np.full((len(self.classes), self.dim), np.nan, dtype=np.float32)  # NaN: not seen yet
        self._half_norms = np.full(len(self.classes), np.nan, dtype=np.float32)  # half of the squared ones
        rows = 0 if self.form == "set" else self.num_samples
        self.last = np.full((rows, self.dim), np.nan, dtype=np.float32)  # embedding last seen of each sample

    @locked
    def update(self, indices: ArrayLike | Tensor, embeddings: Tensor) -> None:
        """Move the signatures of the classes in the batch; arguments and errors are those of every miner."""
        ids, embeddings = self.checked(indices, embeddings)
        rows = embeddings.numpy()
        of, inverse = np.unique(self.class_of[ids], return_inverse=True)
        means = class_means(embeddings, inverse, len(of)).numpy()
        old = np.where(np.isnan(self.signatures[of]), means, self.signatures[of])
        self.signatures[of] = self.momentum * old + (1 - self.momentum) * means
        self._half_norms[of] = np.square(self.signatures[of]).sum(axis=1) / 2
        if len(self.last):
            self.last[ids] = rows

    def stats(self) -> dict[str, float]:
        """``classes_seen``: share of the classes that have a signature."""
        return {"classes_seen": float((~np.isnan(self.signatures[:, 0])).mean())}

    def draw_seeds(self, num_classes: int) -> Ids:
        """Classes of ``groups`` anchors and hard ones for each."""
        return self.seeds_around(num_classes, self.draw_anchors(self.groups), self._hard_classes)

    def draw_negatives(self, anchors: ArrayLike) -> Ids:
        """For each anchor the nearest last seen sample of one of its hard classes."""
        anchors = check_indices("anchors", anchors, self.num_samples)
        negatives = self.random_negatives(anchors)  # for anchors of which nothing is known yet
        for i, anchor in enumerate(anchors):
            for c, _ in self._hard_classes(int(anchor)):
                members = self.samples_of(c)
                distances = np.square(self.last[members] - self.last[anchor]).sum(axis=1)
                if not np.isnan(distances).all():
                    negatives[i] = members[np.nanargmin(distances)]
                    break
        return negatives

    def _hard_classes(self, anchor: int) -> Iterator[tuple[int, int]]:
        """The classes whose signatures are nearest to that of the anchor's, in random order."""
        own = int(self.class_of[anchor])
        # Half of the squared distances, but for a constant: one product rather than a difference of all signatures.
        distances = self._half_norms - self.signatures @ self.signatures[own]  # (num_classes,)
        distances[own] = np.nan
        distances = np.where(np.isnan(distances), np.inf, distances)  # own and unseen classes last
        near = np.argpartition(distances, self.nearest - 1)[: self.nearest]
        near = near[np.isfinite(distances[near])]
        return ((int(c), -1) for c in self._rng.permutation(near))

    def _load(self, state: Mapping[str, Any]) -> None:
        super()._load(state)
        self._half_norms = np.square(self.signatures).sum(axis=1) / 2

    def _config(self) -> dict[str, Any]:
        return super()._config() | {name: getattr(self, name) for name in ("nearest", "groups", "momentum")}
