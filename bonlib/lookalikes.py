"""What a bag knows about the data: identities that lie nearer than two halves of one, samples nearer to another."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bonlib.bag import BagOfNegatives
from bonlib.core.checks import check_indices, needs_extra, rows_of, whole_number
from bonlib.core.layout import Ids
from bonlib.core.means import class_means

if TYPE_CHECKING:
    import pandas as pd

_AT_ONCE = 2**24  # numbers in the means of all candidates that are compared together, 64 MiB


def nearest_identities(
    bag: BagOfNegatives,
    embeddings: Tensor,
    k: int | None = None,
    *,
    means: Tensor | None = None,
    without: ArrayLike | Tensor | None = None,
) -> tuple[Ids, NDArray[np.float32]]:
    """The identities near any embeddings, from the buckets around these: O(pool) each, at any number of identities.

    It is a search that may miss: the nearest of the ``pool`` identities in and around an embedding's bucket.

    Args:
        bag: a filled bag of two stages.
        embeddings: ``(n, dim)``.
        k: how many, at most the bag's ``pool``; by default eight, or all of a smaller pool.
        means: ``(num_classes, dim)`` to measure the distance to; by default what the bag remembers of each identity.
        without: ``(n,)`` positions in ``bag.classes`` of an identity that is left out, such as the embedding's own.

    Returns:
        Positions in ``bag.classes``, nearest first, and distances: both ``(n, k)``, -1 and infinity where there is
        none.

    Raises:
        ValueError: if the bag has no pool, or an argument is of another shape or out of its range.
    """
    if not bag.pool:
        raise ValueError("bag has pool 0, and remembers no identities; make BagOfNegatives with a pool, such as 64.")
    rows = rows_of(embeddings, bag.dim)
    k = whole_number("k", min(8, bag.pool) if k is None else k, 1, bag.pool, "It is at most the bag's pool.")
    own = np.full(len(rows), -1, dtype=np.int64)
    if without is not None:
        own = check_indices("without", without, len(bag.classes), length=len(rows))
    if means is not None and means.shape != (len(bag.classes), bag.dim):
        raise ValueError(
            f"means has shape {tuple(means.shape)}; give one row for each of {len(bag.classes)} identities, of width "
            f"{bag.dim}."
        )
    found, apart = np.full((len(rows), k), -1, dtype=np.int64), np.full((len(rows), k), np.inf, dtype=np.float32)
    parts = min(-(-len(rows) * bag.pool * bag.dim // _AT_ONCE), len(rows))
    for at in np.array_split(np.arange(len(rows)), parts):
        with bag._lock:
            candidates = bag._pools_near(rows[at], own[at])  # (part, pool)
            none, some = candidates < 0, candidates.clip(0)
            near = bag.means_of(some) if means is None else means.cpu()[some].float()  # (part, pool, dim)
        # Not by a matrix product, in which the distances of near duplicates vanish.
        distances = torch.linalg.vector_norm(near.sub_(rows[at, None]), dim=2).numpy()  # (part, pool)
        distances[none] = np.inf
        order = np.argsort(distances, axis=1, kind="stable")[:, :k]
        found[at] = np.take_along_axis(candidates, order, axis=1)
        apart[at] = np.take_along_axis(distances, order, axis=1)
    return found, apart


def lookalikes(bag: BagOfNegatives, embeddings: Tensor, *, top: int = 100, k: int = 8) -> "pd.DataFrame":
    """Pairs of identities that may be one: duplicates, one thing under two names.

    ``ratio`` is the distance of two identities' means in units of what two such groups of samples of *one* identity
    would show, by the scatter of both about their means, and that of all with the weight of one sample: about 1 for an
    identity that was split in two, far above for different ones.

    Args:
        bag: a filled bag of two stages over the samples' labels.
        embeddings: ``(num_samples, dim)`` of all samples, by one encoder, best one that learned from other labels.
        top: pairs at most.
        k: how many identities near each are looked at.

    Returns:
        A row a pair, lowest ratio first: ``ratio``, ``distance`` of the means, ``first`` and ``second`` label, the
        number of samples of each (``first_size``, ``second_size``), and of each the sample that is nearest to the
        other (``first_sample``, ``second_sample``).

    Raises:
        ValueError: if the bag has no pool or is not filled, there is not one embedding a sample, or no identity has
            two samples.
    """
    with needs_extra("lookalikes"):
        import pandas as pd

    rows = _all_rows(bag, embeddings)
    means, scatter, count = _groups(bag, rows)
    if count.max() == 1:
        raise ValueError("labels has one sample for each identity; without a second nothing is known of their scatter.")
    near, distances = nearest_identities(bag, means, k, means=means, without=np.arange(len(means)))
    first, place = np.nonzero(near >= 0)
    pairs = np.sort(np.stack([first, near[first, place]], axis=1), axis=1)
    _, at = np.unique(pairs[:, 0] * len(means) + pairs[:, 1], return_index=True)
    a, b = pairs[at].T
    apart = distances[first, place][at]
    # With one sample more of the usual scatter: where a pair has two samples only, or copies of one, it is all we know.
    usual = float(scatter.sum() / max((count - 1).sum(), 1))
    spread = (scatter[a] + scatter[b] + usual) / (count[a] + count[b] - 1)
    ratio = apart / np.sqrt(spread * (1 / count[a] + 1 / count[b])).clip(np.finfo(np.float32).tiny)
    best = np.argsort(ratio, kind="stable")[: whole_number("top", top, 1)]
    a, b = a[best], b[best]
    examples = [
        [_nearest_sample(bag, rows, c, means[d]) for c, d in zip(*ends, strict=True)] for ends in ((a, b), (b, a))
    ]
    return pd.DataFrame(
        {
            "ratio": ratio[best], "distance": apart[best], "first": bag.classes[a], "second": bag.classes[b],
            "first_size": count[a], "second_size": count[b],
            "first_sample": examples[0], "second_sample": examples[1],
        }
    )  # fmt: skip


def misfits(bag: BagOfNegatives, embeddings: Tensor, *, top: int = 100) -> "pd.DataFrame":
    """Samples that lie nearer to another identity than to the rest of their own: wrong labels come first.

    ``ratio`` is the distance to the rest of the own identity, over that to the nearest other one, both corrected for
    the number of samples that a mean is of.

    Args:
        bag: a filled bag of two stages over the samples' labels.
        embeddings: ``(num_samples, dim)`` of all samples.
        top: samples at most.

    Returns:
        A row a sample, highest ratio first: ``ratio``, ``sample``, its ``label``, the ``nearest`` other label,
        ``own_distance`` and ``distance``. Samples that are alone in their identity are left out.

    Raises:
        ValueError: if the bag has no pool or is not filled, or there is not one embedding a sample.
    """
    with needs_extra("misfits"):
        import pandas as pd

    rows = _all_rows(bag, embeddings)
    means, _, count = _groups(bag, rows)
    own = bag.class_of.astype(np.int64)
    near, apart = nearest_identities(bag, rows, 1, means=means, without=own)
    near, apart = near[:, 0], apart[:, 0]
    others = count[own] - 1
    # The mean of the others is as far beyond the mean of all as the sample is before it, in parts of their number.
    rest = (rows - means[own]).norm(dim=1).numpy() * count[own] / np.maximum(others, 1)
    ratio = (rest / np.sqrt(1 + 1 / np.maximum(others, 1))) / (apart / np.sqrt(1 + 1 / count[near])).clip(1e-30)
    kept = np.flatnonzero((others > 0) & (near >= 0))
    best = kept[np.argsort(-ratio[kept], kind="stable")][: whole_number("top", top, 1)]
    return pd.DataFrame(
        {
            "ratio": ratio[best], "sample": best, "label": bag.classes[own[best]],
            "nearest": bag.classes[near[best]], "own_distance": rest[best], "distance": apart[best],
        }
    )  # fmt: skip


def _all_rows(bag: BagOfNegatives, embeddings: Tensor) -> Tensor:
    rows = rows_of(embeddings, bag.dim)
    if len(rows) != bag.num_samples:
        raise ValueError(f"embeddings has length {len(rows)}; give one row for each of {bag.num_samples} samples.")
    if bag.pool and bag.table.filled < bag.num_entries:
        told = f"{bag.table.filled} of {bag.num_entries} entries"
        raise ValueError(f"bag has codes of {told}; call bag.fill(embed) first, so that none is left out.")
    return rows


def _groups(bag: BagOfNegatives, rows: Tensor) -> tuple[Tensor, NDArray[np.float64], Ids]:
    """Means ``(num_classes, dim)``, sums of squared distances to them and numbers of samples, ``(num_classes,)``."""
    of = torch.from_numpy(bag.class_of.astype(np.int64))
    count = of.bincount(minlength=len(bag.classes))
    means = class_means(rows, of, len(count))
    squares = (rows - means[of]).square().sum(dim=1).double()
    return means, torch.zeros(len(count), dtype=torch.float64).index_add_(0, of, squares).numpy(), count.numpy()


def _nearest_sample(bag: BagOfNegatives, rows: Tensor, c: int, to: Tensor) -> int:
    samples = bag.samples_of(int(c))
    return int(samples[int((rows[samples] - to).norm(dim=1).argmin())])
