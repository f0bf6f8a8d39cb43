"""Tuples of a batch: which of them still pull at the encoder, and how hard the next ones should be."""

import torch
from torch import Tensor

IndexTuple = tuple[Tensor, ...]
_PACE = 0.02  # by which a batch moves the hardness
_MOST = 256  # anchors of a set that are looked at, so that the work does not grow with the square of the batch


@torch.no_grad()
def active_share(
    embeddings: Tensor, labels: Tensor, index_tuple: IndexTuple | None, margin: float, most: int | None = None
) -> float:
    """Share of tuples with a positive loss, by Euclidean distance of normalised embeddings.

    A triplet is active where its negative is not farther than its positive by the margin, a pair of an anchor and its
    negative where they are nearer than the margin. Of a set the tuples are the hardest triplet of each of its first
    ``most`` rows, by default of all.
    """
    rows = embeddings.double()  # in which the square of no float32 overflows or vanishes
    unit = (rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-150)).float()
    if index_tuple is None:
        distances = torch.cdist(unit[:most], unit)  # (anchors, batch)
        same = labels[:most, None] == labels[None, :]
        farthest = distances.masked_fill(~same, -torch.inf).amax(dim=1)
        nearest = distances.masked_fill(same, torch.inf).amin(dim=1)
        return float((farthest + margin > nearest).float().mean())
    anchor, negative = _anchor_and_negative(index_tuple)
    far = (unit[anchor] - unit[negative]).norm(dim=1)
    if len(index_tuple) == 4:
        return float((far < margin).float().mean())
    near = (unit[anchor] - unit[index_tuple[1]]).norm(dim=1)
    return float((near + margin > far).float().mean())


def _anchor_and_negative(parts: IndexTuple) -> tuple[Tensor, Tensor]:
    """The anchors that have negatives, and these; the positives of pairs have anchors of their own."""
    return parts[-2] if len(parts) == 4 else parts[0], parts[-1]


def steered(
    hardness: float, target: float, embeddings: Tensor, labels: Tensor, index_tuple: IndexTuple | None, margin: float
) -> float:
    """The hardness after a batch: up where fewer of its tuples are active than the target share, down where more are.

    Batches without such tuples move nothing: sets of one class or of one sample each, others than the triplets or pairs
    that were drawn.

    Args:
        hardness: before, 0 to 1.
        target: share of active tuples to hold, 0 to 1.
        embeddings: ``(batch, dim)``.
        labels: ``(batch,)`` on the same device.
        index_tuple: positions of the tuples, ``None`` for sets.
        margin: as of :func:`active_share`.

    Source: Harwood et al., "Smart mining for deep metric learning", ICCV 2017; the rule is our reading.
    """
    if index_tuple is None:
        if not 1 < len(labels.unique()) < len(labels):
            return hardness
    elif len(labels) <= max(int(positions.max()) for positions in index_tuple):
        return hardness
    else:
        own = tuple(labels[positions.to(labels.device)] for positions in index_tuple)
        of_anchor, of_negative = _anchor_and_negative(own)
        if not torch.equal(own[0], own[1]) or bool((of_anchor == of_negative).any()):
            return hardness
    active = active_share(embeddings, labels, index_tuple, margin, _MOST)
    return min(max(hardness + _PACE * ((active < target) - (active > target)), 0.0), 1.0)
