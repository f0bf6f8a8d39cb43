"""The exact oracle: nearest negatives over the whole data set, by brute force."""

from collections.abc import Iterator
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bonlib.core.checks import centred, check_indices, whole_number
from bonlib.core.layout import Ids, Layout
from bonlib.miners.base import Refreshing

_SPARE = 16  # identities whose distances are measured again beyond those that are asked for


class ExactNeighbours(Refreshing):
    """Negatives of chosen ranks among the exact nearest of the whole data set: what search without a budget can give.

    An identity's rank for an anchor is by its nearest sample. A set is made of ``groups`` anchors and of identities
    drawn from the ranks for each, every one entering with that nearest sample; so does a negative for triplets and
    pairs. The very nearest are often mislabelled or not to be told apart, hence the ranks.

    Cost a step: O(groups N d) for sets, O(B N d) for the other forms, and every ``every`` steps a forward pass over all
    N samples. Memory: N d floats.

    Args:
        labels: ``(num_samples,)`` integers.
        dim: width of the embeddings.
        ranks: first and last rank, from 1, that identities are drawn from.
        groups: anchors of a set.
        every: batches between two looks at the data set; by default one pass.
        warm_up: batches before the first, drawn at random.
        **layout: as :class:`~bonlib.core.miner.Miner` takes them.

    Raises:
        ValueError: if an argument is out of its range.

    Source: our control, the upper bound in cost.
    """

    learned = ("_embeddings", "_half_norms")

    def __init__(
        self,
        labels: ArrayLike | Tensor,
        dim: int,
        *,
        ranks: tuple[int, int] = (1, 32),
        groups: int = 1,
        every: int | None = None,
        warm_up: int = 0,
        **layout: Unpack[Layout],
    ) -> None:
        super().__init__(labels, dim, every=every, warm_up=warm_up, **layout)
        groups = self._check_groups(groups)
        if not isinstance(ranks, tuple | list) or len(ranks) != 2:
            raise ValueError(f"ranks is {ranks!r}; give the first and the last, counted from 1.")
        first, last = (whole_number("ranks", rank, 1, hint="Ranks are counted from 1.") for rank in ranks)
        if not 1 <= first <= last:
            raise ValueError(f"ranks is {ranks}; give the first and the last, counted from 1.")
        if first >= len(self.classes):
            raise ValueError(f"ranks is {ranks}; there are {len(self.classes) - 1} other classes.")
        self.ranks, self.groups = (first, min(last, len(self.classes) - 1)), groups
        self._by_class = np.argsort(self.class_of, kind="stable")  # samples, class after class
        self._row_of = np.argsort(self._by_class)  # of each sample among these
        self._make_room()

    def draw_seeds(self, num_classes: int) -> Ids:
        """Anchors, and identities of the chosen ranks for each with their nearest sample."""
        if not self._looks:
            return self.random_seeds(num_classes)
        return self.seeds_around(num_classes, self.draw_anchors(self.groups), self._near)

    def draw_negatives(self, anchors: ArrayLike) -> Ids:
        """For each anchor the nearest sample of an identity of the chosen ranks."""
        anchors = check_indices("anchors", anchors, self.num_samples)
        if not self._looks:
            return self.random_negatives(anchors)
        drawn = np.empty(len(anchors), dtype=np.int64)
        for part in np.array_split(np.arange(len(anchors)), -(-len(anchors) // 64)):  # memory: 64 N distances
            near = self._ranked(anchors[part])
            drawn[part] = [next(pairs)[1] for pairs in near]
        return drawn

    def _near(self, anchor: int) -> Iterator[tuple[int, int]]:
        return next(self._ranked(np.array([anchor])))

    def _ranked(self, anchors: Ids) -> Iterator[Iterator[tuple[int, int]]]:
        """For each anchor the classes of the chosen ranks with their nearest samples, in random order."""
        own, (first, last) = self.class_of[anchors], self.ranks
        rows = self._embeddings[self._row_of[anchors]]
        # Half the squared distances less a constant for each anchor: (anchors, num_samples), class after class.
        distances = self._half_norms - rows @ self._embeddings.T
        nearest = np.minimum.reduceat(distances, self._classes.first, axis=1)  # (anchors, num_classes)
        nearest[np.arange(len(own)), own] = np.inf
        most = min(last + _SPARE, len(self.classes) - 1)
        order = np.argpartition(nearest, most - 1, axis=1)[:, :most]
        for row, classes in zip(rows, order, strict=True):
            pairs = self._sorted(row, classes)[first - 1 : last]
            yield ((int(c), int(sample)) for c, sample in self._rng.permutation(pairs))

    def _sorted(self, row: NDArray[np.float32], classes: Ids) -> Ids:
        """Classes, nearest first, with their nearest samples: ``(n, 2)``; near duplicates vanish in a product."""
        count = self._classes.count[classes]
        begin = np.cumsum(count) - count
        places = np.arange(count.sum()) + np.repeat(self._classes.first[classes] - begin, count)
        apart = np.square(self._embeddings[places] - row).sum(axis=1)  # of all samples of these classes
        by_distance = apart.argsort(kind="stable")
        of = np.repeat(classes, count)[by_distance]
        firsts = np.sort(np.unique(of, return_index=True)[1])  # of each class, in the order of their distances
        return np.stack([of[firsts], self._by_class[places[by_distance[firsts]]]], axis=1)

    def _make_room(self) -> None:
        rows = self.num_samples if self._looks else 0
        self._embeddings = np.empty((rows, self.dim), dtype=np.float32)  # class after class
        self._half_norms = np.empty(rows, dtype=np.float32)

    def _look(self, embeddings: Tensor) -> None:
        self._embeddings = centred(embeddings).float().numpy()[self._by_class]
        self._half_norms = np.square(self._embeddings).sum(axis=1) / 2

    def _config(self) -> dict[str, Any]:
        return super()._config() | {"ranks": list(self.ranks), "groups": self.groups}
