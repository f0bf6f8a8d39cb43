"""Embeddings to binary codes, learned online: the hash of Bag of Negatives."""

import copy
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bonlib.table import MAX_BITS


class Hasher(Protocol):
    """What :class:`~bonlib.bag.BagOfNegatives` asks of a hash: learn from a batch, project, encode."""

    dim: int
    bits: int

    def partial_fit(self, embeddings: Tensor) -> float:
        """Learn from one batch ``(batch, dim)`` and return the reconstruction error before the step."""
        ...

    def project(self, embeddings: Tensor) -> Tensor:
        """Signed distances to the hyperplanes: ``(batch, bits)``; the sign is the bit."""
        ...

    def encode(self, embeddings: Tensor) -> Tensor:
        """Codes ``(batch,)`` int64 in ``0 .. 2**bits - 1``."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next code depends on."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state saved by :meth:`state_dict`."""
        ...


def pack(bits: Tensor) -> Tensor:
    """Pack boolean ``(batch, bits)`` into int64 codes ``(batch,)``; column 0 is the lowest bit.

    Example:
        >>> pack(torch.tensor([[True, False, True]])).tolist()
        [5]
    """
    weights = 2 ** torch.arange(bits.shape[1], device=bits.device)
    return (bits * weights).sum(dim=1)


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
    finite = torch.isfinite(embeddings).all(dim=1)
    if not finite.all():
        first = int((~finite).nonzero()[0])
        raise ValueError(
            f"embeddings has {int((~finite).sum())} rows with NaN or infinite values, the first is row {first}; "
            "look for a diverging loss (learning rate, half precision) before updating the bag."
        )
    return embeddings


class OnlineAutoencoder:
    """A linear autoencoder ``dim → bits → dim``, trained on embeddings as they pass; its centred signs are the code.

    One Adam step a batch on the mean squared reconstruction error. The code of a sample is the sign of its hidden
    units after subtracting their running mean: a centred unit splits the data in halves, so that codes stay near
    maximum entropy without a penalty term. It follows the device of the embeddings.

    Args:
        dim: width of the embeddings.
        bits: length of the code, 1 to 24.
        lr: learning rate of Adam.
        seed: seed of the initial weights; no global randomness is used.

    Source: Bag of Negatives (Gajić, Amato, Gatta 2021), a linear autoencoder trained online. The learning rate,
    Adam, and centring by a running mean are our reading.

    Example:
        >>> data = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
        >>> hasher = OnlineAutoencoder(dim=16, bits=4)
        >>> errors = [hasher.partial_fit(data) for _ in range(100)]
        >>> errors[-1] < errors[0]
        True
        >>> hasher.encode(data).unique().numel()
        16
    """

    def __init__(self, dim: int, bits: int, *, lr: float = 3e-3, seed: int = 0) -> None:
        if dim < 1:
            raise ValueError(f"dim is {dim}; give the width of the embeddings, at least 1.")
        if not 1 <= bits <= MAX_BITS:
            raise ValueError(f"bits is {bits}; allowed are 1 to {MAX_BITS}.")
        self.dim, self.bits = dim, bits
        generator = torch.Generator().manual_seed(seed)
        self._encoder = nn.Parameter(torch.randn(dim, bits, generator=generator) / dim**0.5)
        self._decoder = nn.Parameter(torch.randn(bits, dim, generator=generator) / bits**0.5)
        self._bias = nn.Parameter(torch.zeros(dim))
        self._mean = torch.zeros(dim)  # running mean of the embeddings, so of the hidden units under any weights
        self._steps = 0
        self._optimizer = torch.optim.Adam([self._encoder, self._decoder, self._bias], lr=lr)

    def partial_fit(self, embeddings: Tensor) -> float:
        """Take one Adam step on a batch.

        Args:
            embeddings: ``(batch, dim)`` floating point; detached here.

        Returns:
            The mean squared reconstruction error before the step, divided by the variance of the batch about zero:
            0 is perfect, 1 no better than an output of zeros.

        Raises:
            ValueError: if the embeddings are of another shape or not finite; nothing is changed then.
        """
        embeddings = check_embeddings(embeddings, self.dim)
        self._follow(embeddings.device)
        with torch.enable_grad(), torch.autocast(embeddings.device.type, enabled=False):
            hidden = embeddings @ self._encoder  # (batch, bits)
            error = (hidden @ self._decoder + self._bias - embeddings).square().mean()
            self._optimizer.zero_grad()
            error.backward()
        self._optimizer.step()
        self._steps += 1
        # A plain average at first, then a moving one over about a hundred batches.
        self._mean.lerp_(embeddings.mean(dim=0), max(1 / self._steps, 0.01))
        return float(error.detach() / embeddings.square().mean().clamp_min(1e-30))

    @torch.no_grad()
    def project(self, embeddings: Tensor) -> Tensor:
        """Hidden units less their running mean: ``(batch, dim)`` to ``(batch, bits)``; the sign is the bit."""
        embeddings = check_embeddings(embeddings, self.dim)
        self._follow(embeddings.device)
        with torch.autocast(embeddings.device.type, enabled=False):
            return (embeddings - self._mean) @ self._encoder  # (batch, bits)

    def encode(self, embeddings: Tensor) -> Tensor:
        """Codes of embeddings: ``(batch, dim)`` to ``(batch,)`` int64 in ``0 .. 2**bits - 1``."""
        return pack(self.project(embeddings) > 0)

    def state_dict(self) -> dict[str, Any]:
        """Weights, running mean and the state of the optimiser."""
        return {
            "dim": self.dim,
            "bits": self.bits,
            "encoder": self._encoder.detach().clone(),
            "decoder": self._decoder.detach().clone(),
            "bias": self._bias.detach().clone(),
            "mean": self._mean.clone(),
            "steps": self._steps,
            "optimizer": copy.deepcopy(self._optimizer.state_dict()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state saved by :meth:`state_dict`.

        Raises:
            ValueError: if the state is of a hash of other ``dim`` or ``bits``; nothing is changed then.
        """
        for name in ("dim", "bits"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"state has {name}={state[name]}, this hash has {getattr(self, name)}; "
                    "make it with the arguments of the saved one."
                )
        with torch.no_grad():
            self._encoder.copy_(state["encoder"])
            self._decoder.copy_(state["decoder"])
            self._bias.copy_(state["bias"])
        self._mean = state["mean"].to(self._encoder.device, copy=True)
        self._steps = state["steps"]
        self._optimizer.load_state_dict(state["optimizer"])

    def _follow(self, device: torch.device) -> None:
        """Move weights and optimiser to ``device``, where they are not there already."""
        if self._mean.device == device:
            return
        for parameter in (self._encoder, self._decoder, self._bias):
            parameter.data = parameter.data.to(device)
            parameter.grad = None
            for name, value in self._optimizer.state[parameter].items():
                if name != "step":  # Adam keeps its step count on the CPU
                    self._optimizer.state[parameter][name] = value.to(device)
        self._mean = self._mean.to(device)
