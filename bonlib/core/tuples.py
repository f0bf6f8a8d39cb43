"""Tuples of a batch: which of them still pull at the encoder."""

import torch
from torch import Tensor

IndexTuple = tuple[Tensor, ...]


@torch.no_grad()
def active_share(embeddings: Tensor, labels: Tensor, index_tuple: IndexTuple | None, margin: float) -> float:
    """Share of tuples with a positive loss, by Euclidean distance of normalised embeddings ."""
    unit = torch.nn.functional.normalize(embeddings.float(), dim=1)
    if index_tuple is None:
        distances = torch.cdist(unit, unit)  # (batch, batch)
        same = labels[:, None] == labels[None, :]
        farthest = distances.masked_fill(~same, -torch.inf).amax(dim=1)
        nearest = distances.masked_fill(same, torch.inf).amin(dim=1)
        return float((farthest + margin > nearest).float().mean())
    anchor, negative = index_tuple[-2] if len(index_tuple) == 4 else index_tuple[0], index_tuple[-1]
    far = (unit[anchor] - unit[negative]).norm(dim=1)
    if len(index_tuple) == 4:
        return float((far < margin).float().mean())
    near = (unit[anchor] - unit[index_tuple[1]]).norm(dim=1)
    return float((near + margin > far).float().mean())
