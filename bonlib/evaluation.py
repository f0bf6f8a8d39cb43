"""How good an encoder is on unseen classes, and how good a bag is against the exact nearest negatives."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from bonlib.bag import BagOfNegatives


@torch.inference_mode()
def embed(
    encoder: nn.Module,
    dataset: Dataset[Any],
    *,
    indices: NDArray[np.int64] | None = None,
    batch_size: int = 512,
    device: str | torch.device = "cpu",
    workers: int = 0,
) -> tuple[Tensor, Tensor]:
    """Embeddings and labels of a data set, or of some samples, in evaluation mode; each layer gets its mode back.

    Args:
        encoder: images ``(batch, …)`` to embeddings ``(batch, dim)``.
        dataset: an :class:`~bonlib.datasets.images.ImageSet`, or a map-style dataset of ``(image, label)``.
        indices: ``(num_samples,)`` positions in the data set; by default all.
        batch_size: images at once.
        device: where the encoder is.
        workers: processes that load, for a dataset that is not in memory.

    Returns:
        Embeddings ``(num_samples, dim)`` float32 and labels ``(num_samples,)`` int64, on the CPU.
    """
    if hasattr(dataset, "batch") and not workers:
        chosen = torch.arange(len(dataset)) if indices is None else torch.as_tensor(indices)  # pyright: ignore[reportArgumentType]
        parts = chosen.split(batch_size)
        batches = (dataset.batch(part) for part in parts)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        chosen = dataset if indices is None else Subset(dataset, indices.tolist())
        batches = DataLoader(chosen, batch_size, num_workers=workers)
    modes = [(module, module.training) for module in encoder.modules()]  # some layers may be frozen
    encoder.eval()
    try:
        pairs = [(encoder(images.to(device)).float().cpu(), labels) for images, labels in batches]
    finally:
        for module, training in modes:
            module.training = training
    embeddings, labels = zip(*pairs, strict=True)
    return torch.cat(embeddings), torch.cat(labels)


def evaluate(
    encoder: nn.Module,
    dataset: Dataset[Any],
    *,
    ks: Sequence[int] | None = None,
    batch_size: int = 512,
    device: str | torch.device = "cpu",
    workers: int = 0,
) -> dict[str, float]:
    """Retrieval metrics of an encoder on a data set, by the protocol that the data set brings.

    A data set whose ``attributes`` hold ``query`` (a bool for each sample) is evaluated from its queries to all other
    samples, with its ``camera`` if it has any: :func:`query_gallery_metrics`. In any other each sample is a query once:
    :func:`retrieval_metrics`.

    Args:
        encoder: images ``(batch, …)`` to embeddings ``(batch, dim)``.
        dataset: see :func:`embed`.
        ks: ranks of recall; by default those that the data set reports.
        batch_size: images at once.
        device: where the encoder is.
        workers: processes that load, for a dataset that is not in memory.

    Returns:
        Metrics by name, in 0 to 1.
    """
    embeddings, labels = embed(encoder, dataset, batch_size=batch_size, device=device, workers=workers)
    embeddings, labels = embeddings.to(device), labels.to(device)
    attributes = getattr(dataset, "attributes", {})
    if ks is None:
        ks = tuple(getattr(dataset, "ks", (1, 2, 4, 8)))
    if "query" not in attributes:
        return retrieval_metrics(embeddings, labels, ks=ks)
    query = torch.from_numpy(attributes["query"]).to(device)
    cameras = torch.from_numpy(attributes["camera"]).to(device)
    return query_gallery_metrics(
        embeddings[query], labels[query], embeddings[~query], labels[~query],
        query_cameras=cameras[query], gallery_cameras=cameras[~query], ks=ks,
    )  # fmt: skip


def retrieval_metrics(
    embeddings: Tensor, labels: Tensor, *, ks: Sequence[int] = (1, 2, 4, 8), chunk: int = 256
) -> dict[str, float]:
    """Every sample once as query against all others, by Euclidean distance.

    Samples that are alone in their class are no queries, but stay in the gallery. Memory is bounded by ``chunk ×
    num_samples`` distances.

    Args:
        embeddings: ``(num_samples, dim)``.
        labels: ``(num_samples,)`` int64.
        ks: ranks of recall.
        chunk: queries at once.

    Returns:
        ``recall@k`` for each k, ``r_precision`` and ``map@r``, all in 0 to 1.

    Raises:
        ValueError: if lengths differ, or no class has two samples.

    Source: recall@k as in Jégou 2011; R-precision and MAP@R as in Musgrave, Belongie, Lim, "A metric learning
    reality check", 2020.

    Example:
        >>> line = torch.tensor([[0.0], [1.0], [1.5], [5.0]])
        >>> {k: round(v, 2) for k, v in retrieval_metrics(line, torch.tensor([0, 0, 1, 1]), ks=(1, 2)).items()}
        {'recall@1': 0.5, 'recall@2': 0.75, 'r_precision': 0.5, 'map@r': 0.5}
    """
    if len(embeddings) != len(labels):
        raise ValueError(f"embeddings has length {len(embeddings)} and labels {len(labels)}; give one label for each.")
    _, class_of, count = labels.unique(return_inverse=True, return_counts=True)
    relevant = count[class_of] - 1  # (num_samples,) the R of each query
    queries = (relevant > 0).nonzero().squeeze(1)
    if len(queries) == 0:
        raise ValueError("labels has no class with two samples, so there is nothing to find; use more samples.")
    depth = min(max(int(relevant.max()), *ks), len(embeddings) - 1)
    embeddings = embeddings.detach()
    half_norms = embeddings.square().sum(dim=1) / 2
    ranks = torch.arange(1, depth + 1, device=embeddings.device)
    totals: dict[str, float] = {}
    # One buffer for all chunks: fresh memory for each would take as long as the search itself.
    buffer = embeddings.new_empty(min(chunk, len(queries)), len(embeddings))
    for part in queries.split(chunk):
        nearness = torch.addmm(  # (chunk, num_samples)
            half_norms, embeddings[part], embeddings.T, beta=-1, out=buffer[: len(part)]
        )
        nearness[torch.arange(len(part), device=part.device), part] = -torch.inf
        nearest = nearness.topk(depth, dim=1).indices
        hits = class_of[nearest] == class_of[part, None]  # (chunk, depth)
        r = relevant[part, None]
        hits_to_r = hits & (ranks <= r)
        precision = hits.cumsum(dim=1) / ranks
        sums = {f"recall@{k}": hits[:, :k].any(dim=1).double().sum() for k in ks} | {
            "r_precision": (hits_to_r / r).double().sum(),
            "map@r": (hits_to_r * precision / r).double().sum(),
        }
        totals = {name: totals.get(name, 0.0) + float(value) for name, value in sums.items()}
    return {name: total / len(queries) for name, total in totals.items()}


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
        queries: ``(num_queries, dim)``.
        query_labels: ``(num_queries,)`` int64.
        gallery: ``(num_gallery, dim)``.
        gallery_labels: ``(num_gallery,)`` int64, -1 for junk.
        query_cameras: ``(num_queries,)`` int64, or none.
        gallery_cameras: ``(num_gallery,)`` int64, or none.
        ks: ranks of recall.
        chunk: queries at once.

    Returns:
        ``recall@k`` for each k, which in re-identification is called CMC at rank k; ``map``, the mean over the queries
        of the precision averaged over their matches; ``map@r`` and ``r_precision`` over the R nearest, R the matches of
        the query; ``queries``, the share of queries that have a match.

    Raises:
        ValueError: if lengths differ, cameras are given for one side only, or no query has a match.

    Source: protocol of Zheng et al., "Scalable person re-identification: a benchmark", 2015; average precision without
    interpolation, as in scikit-learn.

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
    for name, many, one in (("query", queries, query_labels), ("gallery", gallery, gallery_labels)):
        if len(many) != len(one):
            raise ValueError(f"{name}_labels has length {len(one)}; give one label for each of {len(many)} embeddings.")
    if (query_cameras is None) != (gallery_cameras is None):
        raise ValueError("Only one of query_cameras and gallery_cameras is given; give both or none.")
    half_norms = gallery.square().sum(dim=1) / 2
    totals: dict[str, float] = {}
    for part in torch.arange(len(queries), device=queries.device).split(chunk):
        nearness = queries[part] @ gallery.T - half_norms  # (chunk, num_gallery)
        order = nearness.argsort(dim=1, descending=True, stable=True)
        hits = query_labels[part, None] == gallery_labels[order]  # (chunk, num_gallery)
        counted = (gallery_labels != -1)[order]
        if query_cameras is not None and gallery_cameras is not None:
            cameras = query_cameras[part, None]
            counted &= ~(hits & (cameras == gallery_cameras[order]) & (cameras != -1))
        hits &= counted
        rank = counted.cumsum(dim=1)  # of each image among those that count
        found = hits.cumsum(dim=1)
        r = found[:, -1:]
        precision = hits * found / rank.clamp_min(1)
        has_match, whole, to_r = r.squeeze(1) > 0, r.clamp_min(1), rank <= r
        first = torch.where(hits, rank, len(gallery) + 1).amin(dim=1)  # rank of the nearest match
        sums = {f"recall@{k}": (first <= k).double().sum() for k in ks} | {
            "map": (precision / whole).double().sum(),
            "map@r": (precision * to_r / whole).double().sum(),
            "r_precision": ((hits & to_r) / whole).double().sum(),
            "queries": has_match.double().sum(),
        }
        totals = {name: totals.get(name, 0.0) + float(value) for name, value in sums.items()}
    answered = totals.pop("queries", 0.0)
    if not answered:
        raise ValueError("No query has a match in the gallery that counts; look at labels and cameras.")
    return {name: total / answered for name, total in totals.items()} | {"queries": answered / len(queries)}


def bag_quality(
    bag: BagOfNegatives, embeddings: Tensor, *, k: int = 10, anchors: int = 1000, seed: int = 0
) -> dict[str, float]:
    """A bag of negatives against the exact nearest negatives over the whole set (faiss).

    Args:
        bag: a bag whose table holds the samples.
        embeddings: ``(num_samples, dim)`` of all samples, by the encoder as it is now.
        k: how many nearest negatives of an anchor to look for.
        anchors: number of samples to look at, drawn with ``seed`` from those whose bag is not empty.
        seed: seed of the choice of anchors and of negatives.

    Returns:
        ``found`` the share of an anchor's k nearest negatives that its bag holds; ``found_by_chance`` what a random bag
        of the same size would hold; ``relative_rank`` the mean distance rank of a drawn negative among all
        negatives, in 0 (nearest) to 1 (farthest), 0.5 for random ones; ``anchors`` how many were looked at.

    Raises:
        ValueError: if there is not one embedding for each sample, or every bag is empty.
    """
    import faiss

    if len(embeddings) != bag.num_samples:
        raise ValueError(
            f"embeddings has length {len(embeddings)}; give one row for each of {bag.num_samples} samples."
        )
    rng = np.random.default_rng(seed)
    vectors = np.ascontiguousarray(embeddings.detach().cpu().float().numpy())
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(vectors)  # pyright: ignore[reportCallIssue]
    chosen = [i for i in rng.permutation(bag.num_samples)[: 2 * anchors] if len(bag.negatives(i))][:anchors]
    if not chosen:
        raise ValueError("Every bag is empty; update the bag with some batches first.")
    found, by_chance, rank = [], [], []
    for i in chosen:
        members = bag.negatives(i)
        others = np.flatnonzero(bag.class_of != bag.class_of[i])
        own = bag.num_samples - len(others)
        _, near = index.search(vectors[i : i + 1], min(k + own, bag.num_samples))  # pyright: ignore[reportCallIssue]
        nearest = near[0][bag.class_of[near[0]] != bag.class_of[i]][:k]
        found.append(np.isin(nearest, members).mean())
        by_chance.append(len(members) / len(others))
        distances = np.square(vectors - vectors[i]).sum(axis=1)
        drawn = rng.choice(members)
        rank.append((distances[others] < distances[drawn]).mean())
    return {
        "found": float(np.mean(found)),
        "found_by_chance": float(np.mean(by_chance)),
        "relative_rank": float(np.mean(rank)),
        "anchors": len(chosen),
    }
