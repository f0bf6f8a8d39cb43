"""Smart mining: approximate nearest neighbours over the whole data set, with an adaptive control of hardness."""

from collections.abc import Iterator, Mapping
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bonlib.core.checks import check_indices, locked, needs_extra, real_number, whole_number
from bonlib.core.layout import Ids, Layout
from bonlib.core.tuples import steered
from bonlib.miners.base import Refreshing

_LINKS = 16  # of a node in the graph of neighbours


class SmartMining(Refreshing):
    """Negatives from an approximate index of the whole data set, as hard as keeps a target share of tuples active.

    Each look embeds the data set and builds an HNSW index (faiss). An anchor's neighbours of other identities, one
    sample each, are ranked by distance; a hardness between 0 and 1 says about which rank to draw from: 1 the nearest, 0
    the last of the list. After each batch it moves up where fewer tuples than the target are active, else down. A set
    is made of ``groups`` anchors and of such neighbours of each.

    Cost a step: O(B log N) searches, and every ``every`` steps a forward pass over all N samples and O(N log N) to
    build the index. Memory: N d floats and 2 · 16 links a sample.

    Args:
        labels: ``(num_samples,)`` integers.
        dim: width of the embeddings.
        target: share of active tuples to hold, 0 to 1.
        margin: a tuple is active where its negative is not farther than its positive by so much; as the loss's.
        nearest: samples of other classes that a search returns.
        groups: anchors of a set.
        every: batches between two looks; by default one pass.
        warm_up: batches before the first, drawn at random.
        **layout: as :class:`~bonlib.core.miner.Miner` takes them.

    Raises:
        ValueError: if an argument is out of its range.

    Source: Harwood et al., "Smart mining for deep metric learning", ICCV 2017: approximate neighbours of all the data,
    and a controller that adapts hardness to training. HNSW in place of their graph, the controller's rule, and the form
    set are our reading.
    """

    def __init__(
        self,
        labels: ArrayLike | Tensor,
        dim: int,
        *,
        target: float = 0.5,
        margin: float = 0.2,
        nearest: int = 256,
        groups: int = 1,
        every: int | None = None,
        warm_up: int = 0,
        **layout: Unpack[Layout],
    ) -> None:
        super().__init__(labels, dim, every=every, warm_up=warm_up, **layout)
        groups = self._check_groups(groups)
        if self.form == "set" and self.per_class == 1:
            raise ValueError("per_class is 1, so that no tuple is active and the hardness stays; give 2 or more.")
        self.target, self.margin = real_number("target", target, 0, 1), real_number("margin", margin, -np.inf)
        self.groups, self.nearest = groups, min(whole_number("nearest", nearest, 1), self.num_samples)
        with needs_extra("smart mining"):
            import faiss  # noqa: F401
        self._hardness = 0.0
        self._index: Any = None

    @locked
    def update(self, indices: ArrayLike | Tensor, embeddings: Tensor) -> None:
        """Adapt the hardness to the share of active tuples; arguments and errors are those of every miner."""
        ids, embeddings = self.checked(indices, embeddings)
        if self._index is None or len(ids) != self.batch_size:
            return
        labels = torch.from_numpy(self.class_of[ids])
        self._hardness = steered(self._hardness, self.target, embeddings, labels, self.index_tuple, self.margin)

    def stats(self) -> dict[str, float]:
        """``looks`` so far and ``hardness`` now."""
        return super().stats() | {"hardness": self._hardness}

    @locked
    def state_dict(self) -> dict[str, Any]:
        """Streams, generator, hardness and the index itself, as bytes."""
        import faiss

        index = {} if self._index is None else {"index": torch.from_numpy(faiss.serialize_index(self._index).copy())}
        return super().state_dict() | {"hardness": self._hardness} | index

    def _load(self, state: Mapping[str, Any]) -> None:
        import faiss

        super()._load(state)
        self._hardness = real_number("hardness", state["hardness"], 0, 1)
        self._index = faiss.deserialize_index(state["index"].numpy()) if "index" in state else None
        if self._index is not None and (self._index.ntotal, self._index.d) != (self.num_samples, self.dim):
            raise ValueError(
                f"state is damaged: its index is of {self._index.ntotal} samples of width {self._index.d}."
            )

    def draw_seeds(self, num_classes: int) -> Ids:
        """Anchors, and neighbours of each about the rank that the hardness says."""
        if self._index is None:
            return self.random_seeds(num_classes)
        return self.seeds_around(num_classes, self.draw_anchors(self.groups), self._neighbours)

    def draw_negatives(self, anchors: ArrayLike) -> Ids:
        """A neighbour of each anchor about the rank that the hardness says."""
        anchors = check_indices("anchors", anchors, self.num_samples)
        negatives = self.random_negatives(anchors)
        if self._index is not None:
            for i, anchor in enumerate(anchors):
                _, negatives[i] = next(self._neighbours(int(anchor)), (0, negatives[i]))
        return negatives

    def _neighbours(self, anchor: int) -> Iterator[tuple[int, int]]:
        """Classes near an anchor with their nearest samples: those about the rank wanted, then nearer ones."""
        query = np.asarray(self._index.reconstruct(anchor))[None]  # a tensor, where faiss's torch extras are loaded
        own = self.class_of[anchor]
        reach = min(self.nearest + int(self._classes.count[own]), self.num_samples)  # its own class is passed over
        found = self._index.search(query, reach)[1][0]
        found = found[(found >= 0) & (self.class_of[found] != own)][: self.nearest]
        classes, first = np.unique(self.class_of[found], return_index=True)
        order = first.argsort()
        classes, samples = classes[order], found[first[order]]  # by rank
        start = round((1 - self._hardness) * max(len(classes) - 1, 0))
        wanted = self.batch_size // self.per_class // self.groups if self.form == "set" else 1
        window = max(start, wanted, 1)  # wider where it is easier
        near, far = np.arange(len(classes))[start : start + window], np.arange(start)[::-1]
        for at in (*self._rng.permutation(near), *far):
            yield int(classes[at]), int(samples[at])

    def _look(self, embeddings: Tensor) -> None:
        import faiss

        index = faiss.IndexHNSWFlat(self.dim, _LINKS)
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)  # with several, the order of insertion and so the graph is left to chance
        try:
            index.add(np.ascontiguousarray(embeddings.numpy()))  # pyright: ignore[reportCallIssue]
        finally:
            faiss.omp_set_num_threads(threads)
        index.hnsw.efSearch = self.nearest
        self._index = index

    def _config(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("target", "margin", "nearest", "groups")}
        return super()._config() | own
