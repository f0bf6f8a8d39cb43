"""What is asked of embeddings wherever they come in."""

import torch
from torch import Tensor


def check_embeddings(embeddings: Tensor, dim: int) -> Tensor:
    """Embeddings detached, as finite float32 ``(batch, dim)``.

    Raises:
        ValueError: if they are of another shape, not floating point, empty, NaN or infinite.
    """
    if embeddings.ndim != 2 or embeddings.shape[1] != dim or len(embeddings) == 0:
        raise ValueError(
            f"embeddings has shape {tuple(embeddings.shape)}; give (batch, {dim}) with batch of at least 1. "
            "If the encoder's output is right, set dim to its width."
        )
    if not embeddings.is_floating_point():
        raise ValueError(f"embeddings has dtype {embeddings.dtype}; give floating point numbers.")
    embeddings = embeddings.detach().float()
    if torch.isfinite(embeddings.sum()):  # the cheap way, and the one wait for a GPU: a sum of finite ones is finite
        return embeddings
    finite = torch.isfinite(embeddings).all(dim=1)
    if not finite.all():  # else the sum alone was too large
        first = int((~finite).nonzero()[0])
        raise ValueError(
            f"embeddings has {int((~finite).sum())} rows with NaN or infinite values, the first is row {first}; "
            "look for a diverging loss (learning rate, half precision) before updating the bag."
        )
    return embeddings
