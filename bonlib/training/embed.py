"""Embeddings of a whole data set, by an encoder as it is."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from bonlib.core.checks import check_device, chosen_ids, embeddings_of
from bonlib.datasets.labelled import LabelledSet
from bonlib.training.encoders import evaluating


@torch.no_grad()
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
        encoder: images ``(batch, …)`` to embeddings ``(batch, dim)``, or to a tuple, dict or dataclass whose first such
            entry they are.
        dataset: one of bonlib, whose random changes for training are left out, or a map-style dataset of
            ``(image, label)``, taken as it is.
        indices: ``(num_samples,)`` positions in the data set, or a mask of all; by default all.
        batch_size: images at once.
        device: where the encoder is.
        workers: processes that load, for a dataset that is not in memory.

    Returns:
        Embeddings ``(num_samples, dim)`` float32 (float64 where the encoder gives that) and labels ``(num_samples,)``
        int64, on the CPU.

    Raises:
        ValueError: if there are no samples, the device is not here, or the encoder returns no embeddings.
    """
    device = check_device(device)
    if isinstance(dataset, LabelledSet):
        dataset = dataset.plain
    count = len(dataset)  # pyright: ignore[reportArgumentType]
    indices = None if indices is None else chosen_ids("indices", indices, count)
    if (count if indices is None else len(indices)) == 0:
        raise ValueError("dataset has no samples to embed; give at least one.")
    if isinstance(dataset, LabelledSet) and not workers:
        chosen = torch.arange(count) if indices is None else torch.from_numpy(indices)
        parts = chosen.split(batch_size)
        batches = (dataset.batch(part) for part in parts)
    else:
        chosen = dataset if indices is None else Subset(dataset, indices.tolist())
        # With a generator of its own: a loader takes a seed from the global one, in which the training would go on.
        batches = DataLoader(chosen, batch_size, num_workers=workers, generator=torch.Generator())
    with evaluating(encoder):
        pairs = [(_wide(embeddings_of(encoder(images.to(device)))).cpu(), labels) for images, labels in batches]
    embeddings, labels = zip(*pairs, strict=True)
    return torch.cat(embeddings), torch.cat(labels).cpu()


def _wide(embeddings: Tensor) -> Tensor:
    return embeddings if embeddings.dtype == torch.float64 else embeddings.float()
