"""Graph sampling: each batch is a class and its nearest classes."""

from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bonlib.core.checks import centred, check_indices, needs_extra, whole_number
from bonlib.core.layout import FORMS, Ids, Layout
from bonlib.miners.base import Refreshing


class GraphSampling(Refreshing):
    """A graph of nearest classes, made anew every so often; a batch is a class and its neighbours.

    The graph is of one random sample a class. Every class has its turn, as the centre of a batch or where neighbours
    are too few, before any has it twice. A negative for triplets and pairs is a sample of a random neighbour of the
    anchor's class.

    Cost a step: O(B), and every ``every`` steps a forward pass over K samples and O(K² d) for the graph. Memory: K
    times ``nearest`` integers.

    Args:
        labels: ``(num_samples,)`` integers.
        dim: width of the embeddings.
        nearest: neighbours of a class; by default as many as a set holds besides the centre.
        every: batches between two graphs; by default one pass.
        warm_up: batches before the first, drawn at random.
        **layout: as :class:`~bonlib.core.miner.Miner` takes them.

    Raises:
        ValueError: if an argument is out of its range.

    Source: Liao, Shao, "Graph sampling based deep metric learning for generalizable person re-identification", CVPR
    2022. There a graph lasts until each class was a centre once; ``every``, the warm-up, and the forms triplet and pair
    are our reading.
    """

    learned = ("_neighbours",)

    def __init__(
        self,
        labels: ArrayLike | Tensor,
        dim: int,
        *,
        nearest: int | None = None,
        every: int | None = None,
        warm_up: int = 0,
        **layout: Unpack[Layout],
    ) -> None:
        super().__init__(labels, dim, every=every, warm_up=warm_up, **layout)
        groups = self.batch_size // (self.per_class if self.form == "set" else FORMS[self.form])
        nearest = max(groups - 1, 1) if nearest is None else nearest
        self.nearest = min(whole_number("nearest", nearest, 1), len(self.classes) - 1)
        with needs_extra("graph sampling"):
            import faiss  # noqa: F401
        self._make_room()

    def _make_room(self) -> None:
        rows = len(self.classes) if self._looks else 0
        self._neighbours = np.empty((rows, self.nearest), dtype=np.int64)  # of each class, nearest first

    def _check_learned(self, name: str, array: NDArray[Any]) -> None:
        super()._check_learned(name, array)
        own, count = np.arange(len(array))[:, None], len(self.classes)
        if array.size and (array.min() < 0 or array.max() >= count or (array == own).any()):
            raise ValueError("state is damaged: its near classes are not those of these labels.")

    def draw_seeds(self, num_classes: int) -> Ids:
        """The next class and its neighbours, nearest first."""
        if not self._looks:
            return self.random_seeds(num_classes)
        centre = self.random_seeds(1)
        near = self._neighbours[self.class_of[centre[0]]]
        return self.seeds_around(num_classes, centre, lambda _: ((int(c), -1) for c in near))

    def draw_negatives(self, anchors: ArrayLike) -> Ids:
        """A sample of a random neighbour of each anchor's class."""
        if not self._looks:
            return self.random_negatives(anchors)
        ids = check_indices("anchors", anchors, self.num_samples)
        chosen = self._neighbours[self.class_of[ids], self._rng.integers(0, self.nearest, len(ids))]
        return np.array([self.next_of(int(c)) for c in chosen])

    def _wanted(self) -> Ids:
        """One random sample a class."""
        return self._classes.order[self._classes.first + self._aside().integers(0, self._classes.count)].astype(
            np.int64
        )

    def _look(self, embeddings: Tensor) -> None:
        import faiss

        rows = np.ascontiguousarray(centred(embeddings).float().numpy())
        index = faiss.IndexFlatL2(self.dim)
        index.add(rows)  # pyright: ignore[reportCallIssue]
        _, near = index.search(rows, self.nearest + 1)  # pyright: ignore[reportCallIssue]
        own = near == np.arange(len(rows))[:, None]
        own[:, -1] |= ~own.any(axis=1)  # where equal embeddings have pushed a class out of its own list
        self._neighbours = near[~own].reshape(len(rows), self.nearest)

    def _config(self) -> dict[str, Any]:
        return super()._config() | {"nearest": self.nearest}
