"""Embeddings to binary codes, learned online: the hash of Bag of Negatives, and random hyperplanes, its base."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from bonlib.checks import check_embeddings
from bonlib.table import MAX_BITS


class Hasher(Protocol):
    """What :class:`~bonlib.bag.BagOfNegatives` asks of a hash; see :class:`RandomHyperplanes` for the methods.

    ``partial_fit`` refuses bad embeddings before it changes anything: the bag leaves that check to it.
    """

    dim: int
    bits: int

    def partial_fit(self, embeddings: Tensor) -> float: ...  # noqa: D102
    def project(self, embeddings: Tensor) -> Tensor: ...  # noqa: D102
    def encode(self, embeddings: Tensor) -> Tensor: ...  # noqa: D102
    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...  # noqa: D102


def pack(bits: Tensor) -> Tensor:
    """Pack boolean ``(batch, bits)`` into int64 codes ``(batch,)``; column 0 is the lowest bit.

    Example:
        >>> pack(torch.tensor([[True, False, True]])).tolist()
        [5]
    """
    weights = 1 << torch.arange(bits.shape[1], device=bits.device)
    return (bits * weights).sum(dim=1)


class RandomHyperplanes:
    """Random hyperplanes through the running mean of the embeddings: locality-sensitive hashing, centred.

    The base of the other hashes too, which put better directions in place. It follows the embeddings' device.

    Args:
        dim: width of the embeddings.
        bits: length of the code, 1 to 24.
        seed: seed of the directions; no global randomness is used.

    Source: Charikar, "Similarity estimation techniques from rounding algorithms", STOC 2002. Centring is ours, so
    that it differs from the autoencoder in the directions alone.
    """

    _tensors = ("encoder", "mean")  # names, without underscore, of what the code depends on

    def __init__(self, dim: int, bits: int, *, seed: int = 0) -> None:
        if dim < 1:
            raise ValueError(f"dim is {dim}; give the width of the embeddings, at least 1.")
        if not 1 <= bits <= MAX_BITS:
            raise ValueError(f"bits is {bits}; allowed are 1 to {MAX_BITS}.")
        self.dim, self.bits = dim, bits
        self._generator = torch.Generator().manual_seed(seed)
        self._encoder: Tensor = torch.randn(dim, bits, generator=self._generator) / dim**0.5
        self._mean = torch.zeros(dim)  # running mean of the embeddings, so of the hidden units under any weights
        self._steps = 0

    def partial_fit(self, embeddings: Tensor) -> float:
        """Learn from a batch.

        Args:
            embeddings: ``(batch, dim)`` floating point; detached here.

        Returns:
            The mean squared reconstruction error before the step, divided by the variance of the batch about zero:
            0 is perfect, 1 no better than zeros, NaN for a hash that does not reconstruct.

        Raises:
            ValueError: if the embeddings are of another shape or not finite; nothing is changed then.
        """
        embeddings = check_embeddings(embeddings, self.dim)
        self._follow(embeddings.device)
        error = self._learn(embeddings)
        self._steps += 1
        # A plain average at first, then a moving one over about a hundred batches.
        self._mean.lerp_(embeddings.mean(dim=0), max(1 / self._steps, 0.01))
        return error

    @torch.no_grad()
    def project(self, embeddings: Tensor) -> Tensor:
        """Hidden units less their running mean: ``(batch, dim)`` to ``(batch, bits)``; the sign is the bit."""
        embeddings = check_embeddings(embeddings, self.dim)
        self._follow(embeddings.device)
        with torch.autocast(embeddings.device.type, enabled=False):
            return self._project(embeddings)

    def encode(self, embeddings: Tensor) -> Tensor:
        """Codes of embeddings: ``(batch, dim)`` to ``(batch,)`` int64 in ``0 .. 2**bits - 1``."""
        return pack(self.project(embeddings) > 0)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next code depends on."""
        tensors = {name: getattr(self, "_" + name).clone() for name in self._tensors}
        return {"hash": type(self).__name__, "dim": self.dim, "bits": self.bits, "steps": self._steps, **tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state saved by :meth:`state_dict`.

        Raises:
            ValueError: if the state is of another hash, ``dim`` or ``bits``; nothing is changed then.
        """
        for name, value in (("hash", type(self).__name__), ("dim", self.dim), ("bits", self.bits)):
            if state[name] != value:
                raise ValueError(
                    f"state has {name}={state[name]}, this hash has {value}; make it as the saved one was."
                )
        device = self._mean.device
        for name in self._tensors:
            setattr(self, "_" + name, state[name].to(device, copy=True))
        self._steps = state["steps"]

    def _learn(self, embeddings: Tensor) -> float:
        return float("nan")

    def _project(self, embeddings: Tensor) -> Tensor:
        return (embeddings - self._mean) @ self._encoder  # (batch, bits)

    def _follow(self, device: torch.device) -> None:
        """Move all tensors to ``device``, where they are not there already."""
        if self._mean.device == device:
            return
        for name in self._tensors:
            setattr(self, "_" + name, getattr(self, "_" + name).to(device))


class OnlineAutoencoder(RandomHyperplanes):
    """A linear autoencoder ``dim → bits → dim``, trained on embeddings as they pass; its centred signs are the code.

    One Adam step a batch on the mean squared reconstruction error. The code of a sample is the sign of its hidden
    units after subtracting their running mean: a centred unit splits the data in halves, so that codes stay near
    maximum entropy without a penalty term.

    Args:
        dim, bits, seed: as for :class:`RandomHyperplanes`.
        lr: learning rate of Adam.

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

    _tensors = ("weights", "moment", "square", "mean")

    def __init__(self, dim: int, bits: int, *, lr: float = 3e-3, seed: int = 0) -> None:
        super().__init__(dim, bits, seed=seed)
        self.lr = lr
        decoder = torch.randn(bits, dim, generator=self._generator) / bits**0.5
        # One flat tensor of all weights: a hand's turn at each step instead of one for each layer.
        self._weights = torch.cat([self._encoder.flatten(), decoder.flatten(), torch.zeros(dim)])
        self._moment, self._square = torch.zeros_like(self._weights), torch.zeros_like(self._weights)
        self._view()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state saved by :meth:`state_dict`; refuses one of another hash, ``dim`` or ``bits``."""
        super().load_state_dict(state)
        self._view()

    def _learn(self, embeddings: Tensor) -> float:
        with torch.autocast(embeddings.device.type, enabled=False):
            error, gradient = self._gradient(embeddings)
        # Adam (Kingma, Ba 2015) by hand: torch.optim takes five times as long for so few weights.
        step = self._steps + 1
        self._moment.lerp_(gradient, 0.1)
        self._square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        size = (self._square / (1 - 0.999**step)).sqrt_().add_(1e-8)
        self._weights.addcdiv_(self._moment, size, value=-self.lr / (1 - 0.9**step))
        return float(error / embeddings.square().mean().clamp_min(1e-30))

    @torch.no_grad()
    def _gradient(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """The mean squared error and its gradient, in closed form: autograd takes four times as long."""
        hidden = embeddings @ self._encoder  # (batch, bits)
        residual = torch.addmm(self._bias, hidden, self._decoder) - embeddings  # (batch, dim)
        slope = residual * (2 / residual.numel())
        by_encoder = embeddings.T @ (slope @ self._decoder.T)  # (dim, bits)
        by_decoder = hidden.T @ slope  # (bits, dim)
        return residual.square().mean(), torch.cat([by_encoder.flatten(), by_decoder.flatten(), slope.sum(dim=0)])

    def _split(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encoder ``(dim, bits)``, decoder ``(bits, dim)`` and bias ``(dim,)`` as views of the flat weights."""
        encoder, decoder, bias = weights.split([self.dim * self.bits, self.dim * self.bits, self.dim])
        return encoder.view(self.dim, self.bits), decoder.view(self.bits, self.dim), bias

    def _view(self) -> None:
        self._encoder, self._decoder, self._bias = self._split(self._weights)

    def _follow(self, device: torch.device) -> None:
        if self._mean.device != device:
            super()._follow(device)
            self._view()
