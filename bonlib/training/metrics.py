"""How good embeddings are at retrieval: one formula a function, composed by the two protocols of the field.

Distances are Euclidean, computed in float64 from centred embeddings, so that half precision, a far origin and nearly
collapsed vectors rank as they should. **Ties**: gallery samples that are equally far from a query, as far as float64
can tell, stand in no order; each formula is the exact mean over all orders of them. So a collapsed encoder scores as
chance does, and no measure depends on how the samples are sorted.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from bonlib.core.checks import as_array, check_embeddings, whole_number
from bonlib.training.embed import embed
from bonlib.training.ranking import Hits, Points, nearest_hits, ranked, squared_distances

GALLERIES = (1000, 3000, 10_000, 30_000, 100_000, 300_000)  # sizes at which recall is looked at


def recall_at(hits: Hits, k: int) -> Tensor:
    """Recall at k: whether any of the k nearest is of the query's class, ``(queries,)``; with ties the probability.

    Source: Jégou, Douze, Schmid, "Product quantization for nearest neighbor search", 2011.

    Example:
        >>> recall_at(Hits.of(torch.tensor([[False, True], [False, False]])), 2).tolist()
        [1.0, 0.0]
    """
    matches, members, _, members_before = (values[:, :k] for values in hits)
    drawn = torch.arange(matches.shape[1], device=matches.device) - members_before  # of the group, before this place
    miss = (members - drawn - matches).clamp_min(0) / (members - drawn)  # after misses at all places before
    return 1 - miss.prod(dim=1)


def r_precision(hits: Hits, relevant: Tensor) -> Tensor:
    """Share of the query's class among its R nearest, R the relevant samples of the gallery: ``(queries,)``.

    Args:
        hits: with at least R places.
        relevant: ``(queries,)`` R of each query, at least 1.

    Source: Musgrave, Belongie, Lim, "A metric learning reality check", 2020.

    Example:
        >>> r_precision(Hits.of(torch.tensor([[True, False, True]])), torch.tensor([2])).tolist()
        [0.5]
    """
    return (hits.chance() * _up_to(hits, relevant)).sum(dim=1) / relevant


def average_precision(hits: Hits, relevant: Tensor, *, at_r: bool = False) -> Tensor:
    """Mean over the relevant samples of the precision where each stands: ``(queries,)``; MAP is its mean.

    Args:
        hits: all places, or with ``at_r`` at least R.
        relevant: ``(queries,)`` R, the relevant samples of the gallery, at least 1.
        at_r: count the R nearest places alone, as MAP@R does.

    Source: without interpolation, as in scikit-learn; MAP@R as in Musgrave, Belongie, Lim, 2020; the mean over tied
    orders as in McSherry, Najork, "Computing information retrieval performance measures efficiently in the presence of
    tied scores", ECIR 2008.

    Example:
        >>> hits = Hits.of(torch.tensor([[True, False, True]]))
        >>> average_precision(hits, torch.tensor([2])).round(decimals=3).tolist()
        [0.833]
    """
    terms = hits.chance() * hits.precision()
    return (terms * _up_to(hits, relevant) if at_r else terms).sum(dim=1) / relevant


def _up_to(hits: Hits, relevant: Tensor) -> Tensor:
    return torch.arange(1, hits.matches.shape[1] + 1, device=relevant.device) <= relevant[:, None]


def evaluate(
    encoder: nn.Module,
    dataset: Dataset[Any],
    *,
    ks: Sequence[int] | None = None,
    most: int | None = None,
    batch_size: int = 512,
    device: str | torch.device = "cpu",
    workers: int = 0,
) -> dict[str, float]:
    """Retrieval metrics of an encoder on a data set, by the protocol that the data set brings.

    A data set whose ``attributes`` hold ``query`` (a bool for each sample) is evaluated from its queries to all other
    samples, with its ``camera`` if it has any: :func:`query_gallery_metrics`. In any other each sample is a query once:
    :func:`retrieval_metrics`.

    Args:
        encoder: see :func:`~bonlib.training.embed.embed`.
        dataset: see :func:`~bonlib.training.embed.embed`.
        ks: ranks of recall; by default those that the data set reports.
        most: queries at most where each sample is one, see :func:`retrieval_metrics`; by default all.
        batch_size: images at once.
        device: where the encoder is.
        workers: processes that load, for a dataset that is not in memory.

    Returns:
        Metrics by name, in 0 to 1.

    Raises:
        ValueError: if there is nothing to embed or to find, or an embedding is not finite.
    """
    embeddings, labels = embed(encoder, dataset, batch_size=batch_size, device=device, workers=workers)
    return measure(embeddings.to(device), labels.to(device), dataset, ks=ks, most=most)


def measure(
    embeddings: Tensor,
    labels: Tensor,
    dataset: Dataset[Any],
    *,
    ks: Sequence[int] | None = None,
    most: int | None = None,
) -> dict[str, float]:
    """What :func:`evaluate` gives, of embeddings that are there already.

    Args:
        embeddings: ``(num_samples, dim)`` of the data set.
        labels: ``(num_samples,)``.
        dataset: whose protocol it is.
        ks: as of :func:`evaluate`.
        most: as of :func:`evaluate`.
    """
    device = embeddings.device
    attributes = getattr(dataset, "attributes", {})
    if ks is None:
        ks = tuple(getattr(dataset, "ks", (1, 2, 4, 8)))
    if "query" not in attributes:
        return retrieval_metrics(embeddings, labels, ks=ks, most=most)
    query = torch.as_tensor(attributes["query"], dtype=torch.bool, device=device)
    cameras = torch.as_tensor(attributes["camera"], device=device) if "camera" in attributes else None
    return query_gallery_metrics(
        embeddings[query], labels[query], embeddings[~query], labels[~query], ks=ks,
        query_cameras=None if cameras is None else cameras[query],
        gallery_cameras=None if cameras is None else cameras[~query],
    )  # fmt: skip


def retrieval_metrics(
    embeddings: Tensor, labels: Tensor, *, ks: Sequence[int] = (1, 2, 4, 8), most: int | None = None, chunk: int = 256
) -> dict[str, float]:
    """Every sample once as query against all others, by Euclidean distance.

    Samples that are alone in their class are no queries, but stay in the gallery. Memory is bounded by ``chunk ×
    num_samples`` distances.

    Args:
        embeddings: ``(num_samples, dim)`` floating point.
        labels: ``(num_samples,)`` integers.
        ks: ranks of recall.
        most: queries at most, always the same random ones; the gallery stays whole. By default all.
        chunk: queries at once.

    Returns:
        ``recall@k`` for each k, ``r_precision`` and ``map@r``, all in 0 to 1.

    Raises:
        ValueError: if lengths differ, an embedding is not finite, or no class has two samples.

    Example:
        >>> line = torch.tensor([[0.0], [1.0], [1.5], [5.0]])
        >>> {k: round(v, 2) for k, v in retrieval_metrics(line, torch.tensor([0, 0, 1, 1]), ks=(1, 2)).items()}
        {'recall@1': 0.5, 'recall@2': 0.75, 'r_precision': 0.5, 'map@r': 0.5}
    """
    embeddings, labels = _checked(embeddings, labels, "embeddings", "labels")
    ks, chunk = [whole_number("ks", k, 1) for k in ks], whole_number("chunk", chunk, 1)
    _, class_of, count = labels.unique(return_inverse=True, return_counts=True)
    relevant = count[class_of] - 1  # (num_samples,) the R of each query
    queries = (relevant > 0).nonzero().squeeze(1)
    if len(queries) == 0:
        raise ValueError("labels has no class with two samples, so there is nothing to find; use more samples.")
    depth = min(max([int(relevant.max()), *ks]), len(embeddings) - 1)
    if most is not None and len(queries) > (most := whole_number("most", most, 1)):
        chosen = np.sort(np.random.default_rng(0).permutation(len(queries))[:most])
        queries = queries[torch.from_numpy(chosen).to(queries.device)]
    totals: dict[str, float] = {}
    for part, hits in nearest_hits(Points.of(embeddings), class_of, queries, depth, chunk):
        values = {f"recall@{k}": recall_at(hits, k) for k in ks} | {
            "r_precision": r_precision(hits, relevant[part]),
            "map@r": average_precision(hits, relevant[part], at_r=True),
        }
        totals = {name: totals.get(name, 0.0) + float(value.sum()) for name, value in values.items()}
    return {name: min(total / len(queries), 1.0) for name, total in totals.items()}


def recall_by_gallery(
    embeddings: Tensor, labels: Tensor, *, sizes: Sequence[int] = GALLERIES, most: int = 2000, seed: int = 0
) -> list[dict[str, float]]:
    """Recall and MAP@R against the size of the gallery: how much harder a search becomes as identities are added.

    A gallery is drawn identity by identity, with all its samples, until it has the size; a smaller one is part of a
    larger one. The last is the whole data set.

    Args:
        embeddings: ``(num_samples, dim)`` floating point.
        labels: ``(num_samples,)`` integers.
        sizes: samples of the galleries; those that the set does not have, or where nothing can be found, are left out.
        most: queries at most, of the gallery.
        seed: of the order in which identities are drawn.

    Returns:
        One entry a gallery: ``gallery``, the size asked for; ``recall@1``; ``map@r``.

    Raises:
        ValueError: as of :func:`retrieval_metrics`.

    Example:
        >>> points = torch.eye(4).repeat_interleave(2, dim=0)
        >>> [entry["gallery"] for entry in recall_by_gallery(points, torch.arange(8) // 2, sizes=(4,))]
        [4, 8]
    """
    embeddings, labels = _checked(embeddings, labels, "embeddings", "labels")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels.unique()))).to(labels.device)
    place = order[labels.unique(return_inverse=True)[1]]  # (num_samples,) turn of each sample's identity
    counts = place.bincount().cumsum(0)
    found = []
    for size in [*(size for size in sizes if size < len(labels)), len(labels)]:
        kept = (place <= int((counts < size).sum())).nonzero().squeeze(1)
        if size < len(labels) and int(place[kept].bincount().max()) < 2:
            continue  # no sample has another one of its identity there
        metrics = retrieval_metrics(embeddings[kept], labels[kept], ks=(1,), most=most)
        found.append({"gallery": size, "recall@1": metrics["recall@1"], "map@r": metrics["map@r"]})
    return found


def query_gallery_metrics(
    queries: Tensor,
    query_labels: Tensor,
    gallery: Tensor,
    gallery_labels: Tensor,
    *,
    query_cameras: Tensor | None = None,
    gallery_cameras: Tensor | None = None,
    ks: Sequence[int] = (1, 2, 4, 8),
    chunk: int = 256,
) -> dict[str, float]:
    """Each query against a gallery, by Euclidean distance: CMC and mean average precision.

    Gallery images of the query's identity *and* camera do not count, neither as right nor as wrong; a camera of -1 is
    unknown and excludes nothing. Gallery images with label -1 are junk and never count. Queries with no match left are
    no queries. Memory is bounded by ``chunk × gallery`` distances.

    Args:
        queries: ``(num_queries, dim)`` floating point.
        query_labels: ``(num_queries,)`` integers.
        gallery: ``(num_gallery, dim)`` floating point.
        gallery_labels: ``(num_gallery,)`` integers, -1 for junk.
        query_cameras: ``(num_queries,)`` integers, or none.
        gallery_cameras: ``(num_gallery,)`` integers, or none.
        ks: ranks of recall.
        chunk: queries at once.

    Returns:
        ``recall@k`` for each k, which in re-identification is called CMC at rank k; ``map``, the mean over the queries
        of the precision averaged over their matches; ``map@r`` and ``r_precision`` over the R nearest, R the matches of
        the query; ``queries``, the share of queries that have a match.

    Raises:
        ValueError: if queries or gallery are empty, lengths or widths differ, an embedding is not finite, cameras are
            given for one side only, or no query has a match.

    Source: protocol of Zheng et al., "Scalable person re-identification: a benchmark", 2015.

    Example:
        The nearest image is by the query's own camera; the next one is right.

        >>> line, cameras = torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([1, 1, 2, 2])
        >>> labels = torch.tensor([0, 0, 0, 1])
        >>> query_gallery_metrics(
        ...     line[:1], labels[:1], line[1:], labels[1:],
        ...     query_cameras=cameras[:1], gallery_cameras=cameras[1:], ks=(1,),
        ... )["recall@1"]
        1.0
    """
    for name, rows in (("queries", queries), ("gallery", gallery)):
        if len(rows) == 0:
            raise ValueError(f"{name} is empty; a test split needs images of both parts, query and gallery.")
    queries, query_labels = _checked(queries, query_labels, "queries", "query_labels")
    gallery, gallery_labels = _checked(gallery, gallery_labels, "gallery", "gallery_labels", queries.shape[1])
    if (query_cameras is None) != (gallery_cameras is None):
        raise ValueError("Only one of query_cameras and gallery_cameras is given; give both or none.")
    if query_cameras is not None and gallery_cameras is not None:
        query_cameras = _one_each(query_cameras, queries, "query_cameras", "queries")
        gallery_cameras = _one_each(gallery_cameras, gallery, "gallery_cameras", "gallery")
    ks, chunk = [whole_number("ks", k, 1) for k in ks], whole_number("chunk", chunk, 1)
    both = Points.of(torch.cat([queries, gallery]))
    first, second = both.split(len(queries))
    totals: dict[str, float] = {}
    answered = 0
    for part, distances in squared_distances(first, second, torch.arange(len(queries), device=queries.device), chunk):
        same = query_labels[part, None] == gallery_labels  # (chunk, num_gallery)
        counted = (gallery_labels != -1).expand_as(same)
        if query_cameras is not None and gallery_cameras is not None:
            cameras = query_cameras[part, None]
            counted = counted & ~(same & (cameras == gallery_cameras) & (cameras != -1))
        relevant = (same & counted).sum(dim=1)
        chosen = relevant > 0
        answered += int(chosen.sum())
        distances = distances.masked_fill_(~counted, torch.inf)[chosen]
        norms = second.norms.expand_as(distances)
        hits, _ = ranked(distances, (same & counted)[chosen], len(gallery), first.norms[part][chosen], norms)
        values = {f"recall@{k}": recall_at(hits, k) for k in ks} | {
            "map": average_precision(hits, relevant[chosen]),
            "map@r": average_precision(hits, relevant[chosen], at_r=True),
            "r_precision": r_precision(hits, relevant[chosen]),
        }
        totals = {name: totals.get(name, 0.0) + float(value.sum()) for name, value in values.items()}
    if not answered:
        raise ValueError("No query has a match in the gallery that counts; look at labels and cameras.")
    return {name: min(total / answered, 1.0) for name, total in totals.items()} | {"queries": answered / len(queries)}


def _checked(rows: Any, labels: Any, name: str, labels_name: str, dim: int | None = None) -> tuple[Tensor, Tensor]:
    """Embeddings as ``update`` would take them, and one label for each."""
    rows = check_embeddings(rows, dim, dtype=None)
    return rows, _one_each(labels, rows, labels_name, name)


def _one_each(values: Any, rows: Tensor, name: str, of: str) -> Tensor:
    """Integers ``(rows,)`` on the device of the rows, such as labels.

    Raises:
        ValueError: if they are no integers, or of another number.
    """
    array = as_array(values)
    if array.shape != (len(rows),):
        raise ValueError(f"{of} has length {len(rows)} and {name} shape {array.shape}; give one for each.")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} has dtype {array.dtype}; give integers.")
    return torch.from_numpy(array.astype("int64")).to(rows.device)
