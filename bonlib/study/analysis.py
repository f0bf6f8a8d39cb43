"""What the notebooks measure about negatives, codes and buckets: arrays in, DataFrames out."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bonlib.bag import BagOfNegatives
from bonlib.core.checks import centred
from bonlib.core.hashing import Hash
from bonlib.core.means import class_means
from bonlib.core.miner import Miner
from bonlib.datasets.labelled import LabelledSet
from bonlib.training.embed import embed


def bag_of(miner: Miner) -> BagOfNegatives | None:
    """The bag of a miner that has one: BoN itself, or the control whose table is refreshed."""
    found = getattr(miner, "bag", miner)
    return found if isinstance(found, BagOfNegatives) else None


def zero_loss_shares(
    embeddings: Tensor,
    labels: Tensor,
    identities: Iterable[int],
    *,
    margin: float = 0.2,
    anchors: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """How often a negative gives no gradient, when there are so and so many identities to draw it from.

    Identities are drawn at random; anchors and positives are the same draws for all three kinds of negative.

    Args:
        embeddings: ``(num_samples, dim)``, unit length.
        labels: ``(num_samples,)``.
        identities: numbers of identities to look at.
        margin: of the triplet loss.
        anchors: triplets for each number.
        seed: seed of all draws.

    Returns:
        One row for each number: ``identities``; the share of triplets with zero loss when the negative is
        ``random``, the hardest of 128 random ones (``batch``), and the ``hardest`` of all.
    """
    rng = np.random.default_rng(seed)
    classes, rows = labels.unique().numpy(), []
    for count in identities:
        here = np.flatnonzero(np.isin(labels.numpy(), rng.choice(classes, size=count, replace=False)))
        x, y = embeddings[here], labels[here]
        _, of, sizes = np.unique(y.numpy(), return_inverse=True, return_counts=True)
        paired = np.flatnonzero(sizes[of] > 1)  # an identity of one sample has no positive
        anchor = torch.from_numpy(paired[rng.integers(0, len(paired), anchors)])
        distances = torch.cdist(x[anchor], x)  # (anchors, samples here)
        same = y[anchor, None] == y
        own = same.clone()
        own[torch.arange(anchors), anchor] = False
        positive = torch.from_numpy(rng.random(own.shape)).masked_fill(~own, -1).argmax(dim=1)
        limit = distances.gather(1, positive[:, None]).squeeze(1) + margin  # farther negatives give no gradient
        shuffled = torch.from_numpy(rng.random(same.shape)).masked_fill(same, -1).argsort(dim=1, descending=True)
        drawn = distances.masked_fill(same, torch.inf).gather(
            1, shuffled[:, :128]
        )  # (anchors, 128) without replacement
        shares = {
            "random": drawn[:, 0],
            "batch": drawn.amin(dim=1),
            "hardest": distances.masked_fill(same, torch.inf).amin(dim=1),
        }
        rows.append({"identities": count} | {name: float((d >= limit).float().mean()) for name, d in shares.items()})
    return pd.DataFrame(rows)


def drawn_distances(miner: Miner, embeddings: Tensor, count: int = 2000) -> pd.DataFrame:
    """How hard the negatives of a miner are: distances from anchors to a random positive, and to a drawn negative.

    Returns:
        A row for each of ``count`` anchors: ``positive`` and ``negative``.
    """
    anchors, rng = miner.draw_anchors(count), np.random.default_rng(miner.seed)
    own = [miner.samples_of(c) for c in miner.class_of[anchors]]
    positives = [rng.choice(ids[ids != a] if len(ids) > 1 else ids) for ids, a in zip(own, anchors, strict=True)]
    to = {"positive": positives, "negative": miner.draw_negatives(anchors)}
    return pd.DataFrame({name: (embeddings[anchors] - embeddings[ids]).norm(dim=1) for name, ids in to.items()})


def bit_balance(hasher: Hash, embeddings: Tensor) -> NDArray[np.float64]:
    """Share of samples that have each bit set, ``(bits,)``: 0.5 is perfect balance."""
    return (hasher.project(embeddings) > 0).double().mean(dim=0).numpy()


def same_bucket_by_distance(
    hasher: Hash, embeddings: Tensor, *, pairs: int = 400_000, bins: int = 20, seed: int = 0
) -> pd.DataFrame:
    """Probability that two samples share a bucket, against the distance of their embeddings.

    Returns:
        One row a bin of distances that holds at least 50 pairs: ``distance`` (middle), ``probability``, ``pairs``.
    """
    rng = np.random.default_rng(seed)
    codes = hasher.encode(embeddings)
    # Half of the pairs at random, half between near neighbours in a random projection, so that short distances occur.
    first = torch.from_numpy(rng.integers(0, len(embeddings), pairs))
    order = (embeddings @ embeddings[rng.integers(0, len(embeddings))]).argsort()
    at = torch.from_numpy(rng.integers(0, len(order) - 20, pairs // 2))
    near = order[at + torch.from_numpy(rng.integers(1, 20, pairs // 2))]
    second = torch.cat([near, torch.from_numpy(rng.integers(0, len(embeddings), pairs - pairs // 2))])
    first[: pairs // 2] = order[at]
    kept = first != second
    first, second = first[kept], second[kept]
    distances = (embeddings[first] - embeddings[second]).norm(dim=1).numpy()
    same = (codes[first] == codes[second]).numpy()
    edges = np.linspace(0, float(distances.max()), bins + 1)
    at_bin = np.digitize(distances, edges[1:-1])
    count, hits = np.bincount(at_bin, minlength=bins), np.bincount(at_bin, weights=same, minlength=bins)
    many = count >= 50
    middle = (edges[:-1] + edges[1:]) / 2
    return pd.DataFrame({"distance": middle[many], "probability": (hits / count.clip(1))[many], "pairs": count[many]})


def compare_bits(
    labels: Tensor, embeddings: Tensor, bits: Iterable[int], *, passes: int = 2, seed: int = 0
) -> pd.DataFrame:
    """Bags of different code lengths over the same embeddings, each after its hash learned and its table filled.

    Returns:
        One row for each length: ``bits``, ``entropy_bits``, and what :func:`bag_quality` measures.
    """
    rows = []
    for length in bits:
        bag = BagOfNegatives.as_published(
            labels, embeddings.shape[1], form="triplet", batch_size=129, bits=length, seed=seed
        )
        hash_everything(bag, embeddings, passes=passes)
        quality = bag_quality(bag, embeddings, anchors=300, seed=seed)
        rows.append({"bits": length, "entropy_bits": bag.stats()["entropy_bits"]} | quality)
    return pd.DataFrame(rows).drop(columns="anchors")


def bag_quality(
    bag: BagOfNegatives, embeddings: Tensor, *, k: int = 10, anchors: int = 1000, seed: int = 0
) -> dict[str, float]:
    """A bag of negatives against the exact nearest negatives over the whole data set.

    Args:
        bag: a bag whose table holds the samples.
        embeddings: ``(num_samples, dim)`` of all samples, by the encoder as it is now.
        k: how many nearest negatives of an anchor to look for.
        anchors: number of samples to look at, drawn with ``seed`` from those whose bag is not empty.
        seed: seed of the choice of anchors and of negatives.

    Returns:
        ``empty`` the share of bags that are; of the others ``negatives``, their mean size, ``found`` the share of an
        anchor's k nearest negatives that its bag holds; ``found_by_chance`` what a random bag of the same size would
        hold; ``relative_rank`` the mean share of all negatives that are nearer than a drawn one, 0.5 for random ones;
        ``anchors`` how many were looked at.

    Raises:
        ValueError: if there is not one embedding for each sample, or every bag is empty.
    """
    if len(embeddings) != bag.num_samples:
        raise ValueError(
            f"embeddings has length {len(embeddings)}; give one row for each of {bag.num_samples} samples."
        )
    rng = np.random.default_rng(seed)
    vectors = centred(embeddings.detach().cpu()).float().numpy()
    squares = np.square(vectors).sum(axis=1)
    sizes = {i: len(bag.negatives(i)) for i in rng.permutation(bag.num_samples)[: 2 * anchors]}
    chosen = [i for i, size in sizes.items() if size][:anchors]
    if not chosen:
        raise ValueError("Every bag is empty; update the bag with some batches first.")
    found, by_chance, rank = [], [], []
    for i in chosen:
        members = bag.negatives(i)
        others = np.flatnonzero(bag.class_of != bag.class_of[i])
        distances = squares - 2 * (vectors @ vectors[i])  # all less by the square of the anchor's own length
        nearest = np.argpartition(distances[others], min(k, len(others)) - 1)[:k]
        found.append(np.isin(others[nearest], members).mean())
        by_chance.append(len(members) / len(others))
        drawn = rng.choice(members)
        rank.append((distances[others] < distances[drawn]).mean())
    return {
        "empty": float(np.mean([not size for size in sizes.values()])),
        "negatives": float(np.mean([sizes[i] for i in chosen])),
        "found": float(np.mean(found)),
        "found_by_chance": float(np.mean(by_chance)),
        "relative_rank": float(np.mean(rank)),
        "anchors": len(chosen),
    }


def hash_everything(bag: BagOfNegatives, embeddings: Tensor, *, batch_size: int = 256, passes: int = 1) -> None:
    """Update a bag with the embeddings of all samples, in random order: a table without stale codes."""
    generator = torch.Generator().manual_seed(bag.seed)
    for _ in range(passes):
        for indices in torch.randperm(len(embeddings), generator=generator).split(batch_size):
            bag.update(indices, embeddings[indices])


def embed_all(encoder: nn.Module, dataset: LabelledSet) -> Tensor:
    """Embeddings of a data set: ``(num_samples, dim)``."""
    return embed(encoder, dataset)[0]


def mixed_buckets(bag: BagOfNegatives, count: int, *, least: int = 8, seed: int = 0) -> list[NDArray[np.int64]]:
    """Members of ``count`` random buckets, of those with at least ``least`` samples and three classes."""
    rng = np.random.default_rng(seed)
    chosen: list[NDArray[np.int64]] = []
    for code in rng.permutation(2**bag.bits):
        members = bag.members(code)
        if len(members) >= least and len(np.unique(bag.class_of[members])) >= 3:
            chosen.append(rng.permutation(members))
        if len(chosen) == count:
            break
    return chosen


def look_alikes(
    dataset: LabelledSet, embeddings: Tensor, *, rows: int = 6, k: int = 9, seed: int = 0
) -> list[NDArray[np.int64]]:
    """Identities that stop a person: for some, a sample of each, then one of each of the nearest identities.

    The identities are drawn from the tenth whose nearest other identity is nearest.

    Args:
        dataset: labelled samples.
        embeddings: ``(num_samples, dim)`` of them, by any encoder, even an untrained one.
        rows: how many identities.
        k: others of each.
        seed: of the choice.

    Returns:
        Dataset indices ``(1 + k,)``, one array a row.
    """
    present, labels = np.unique(dataset.labels.numpy(), return_inverse=True)  # some identities may have no sample
    means, apart, nearest = class_means(embeddings, labels, len(present)), [], []
    for own in torch.arange(len(means)).split(1024):
        distances = torch.cdist(means[own], means)
        distances[torch.arange(len(own)), own] = -1  # itself first, whatever rounding says
        found = distances.topk(min(k + 1, len(means)), dim=1, largest=False)
        apart.append(found.values[:, 1])
        nearest.append(found.indices)
    close = torch.cat(apart).argsort()[: max(len(means) // 10, rows)].numpy()
    chosen = np.random.default_rng(seed).permutation(close)[:rows]
    first = np.unique(labels, return_index=True)[1]
    return [first[torch.cat(nearest)[c].numpy()] for c in chosen]


def nearest_negatives(bag: BagOfNegatives, embeddings: Tensor, anchor: int, k: int) -> NDArray[np.int64]:
    """The exact ``k`` nearest samples of other classes, over the whole data set, or as many as there are."""
    distances = (embeddings - embeddings[anchor]).norm(dim=1).numpy()
    own = bag.class_of == bag.class_of[anchor]
    distances[own] = np.inf
    return np.argsort(distances)[: min(k, (~own).sum())]


def nearest_images(embeddings: Tensor, queries: NDArray[np.int64], *, k: int = 10) -> NDArray[np.int64]:
    """The nearest of all other samples to each query, nearest first, ``(len(queries), k)`` or as many as there are.

    Args:
        embeddings: ``(num_samples, dim)``.
        queries: positions in ``embeddings``.
        k: how many.
    """
    rows = centred(embeddings)
    distances = torch.cdist(rows[queries], rows)  # (queries, num_samples)
    distances[torch.arange(len(queries)), torch.as_tensor(queries)] = torch.inf
    return distances.topk(min(k, distances.shape[1] - 1), largest=False).indices.numpy()
