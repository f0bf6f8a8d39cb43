"""Hashes by name: Bag of Negatives' own, and those that it could have used and is measured against."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bonlib.core.checks import known_options, needs_extra, real_number
from bonlib.core.hashing import Hash


class RandomHyperplanes(Hash):
    """Random hyperplanes through the running mean of the embeddings: locality-sensitive hashing, centred.

    Takes the arguments of :class:`~bonlib.core.hashing.Hash`.

    Source: Charikar, "Similarity estimation techniques from rounding algorithms", STOC 2002. Centring is ours, so
    that it differs from the autoencoder in the directions alone.
    """

    def learn(self, rows: Tensor) -> None:
        """Nothing: the directions stay as they were drawn."""


class _Autoencoder(Hash):
    """A linear autoencoder ``dim → bits → dim`` that takes one Adam step a batch; subclasses give the gradient."""

    def __init__(self, dim: int, bits: int, *, lr: float = 3e-3, seed: int = 0) -> None:
        super().__init__(dim, bits, seed=seed)
        self.lr = real_number("lr", lr, 0)
        decoder = torch.randn(self.bits, self.dim, generator=self.generator, dtype=torch.float32) / self.bits**0.5
        bias = torch.zeros(self.dim, dtype=torch.float32)
        # One flat tensor of all weights: one operation at each step instead of one for each layer.
        weights = torch.cat([self.tensors.pop("encoder").flatten(), decoder.flatten(), bias])
        self.tensors |= {"weights": weights, "moment": torch.zeros_like(weights), "square": torch.zeros_like(weights)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next code depends on."""
        return super().state_dict() | {"lr": self.lr}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse what is no state of this hash."""
        super().check_state(state)
        if state.get("lr") != self.lr:
            raise ValueError(f"state has lr={state.get('lr')}, this hash has {self.lr}; make it as the saved one was.")

    @abstractmethod
    def gradient(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The mean squared reconstruction error of rows ``(batch, dim)``, and its gradient as the flat weights."""

    def learn(self, rows: Tensor) -> Tensor:
        """One step of Adam (Kingma, Ba 2015), by hand: torch.optim takes five times as long for so few weights."""
        error, gradient = self.gradient(rows)
        step, (moment, square) = self.steps + 1, (self.tensors[name] for name in ("moment", "square"))
        moment.lerp_(gradient, 0.1)
        square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        size = (square / (1 - 0.999**step)).sqrt_().add_(1e-8)
        self.tensors["weights"].addcdiv_(moment, size, value=-self.lr / (1 - 0.9**step))
        return error / rows.square().mean().clamp_min(1e-30)

    def units(self, rows: Tensor) -> Tensor:
        """Hidden units whose sign is the bit: scaled rows ``(batch, dim)`` to ``(batch, bits)``."""
        return (rows - self.tensors["mean"]) @ self.split(self.tensors["weights"])[0]

    def split(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encoder ``(dim, bits)``, decoder ``(bits, dim)`` and bias ``(dim,)`` as views of the flat weights."""
        encoder, decoder, bias = weights.split([self.dim * self.bits, self.dim * self.bits, self.dim])
        return encoder.view(self.dim, self.bits), decoder.view(self.bits, self.dim), bias

    def gradient_of(self, rows: Tensor, reconstruct: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """Error and gradient by autograd, of rows as ``reconstruct(encoder, decoder, bias)`` brings them back."""
        with torch.enable_grad():
            weights = self.tensors["weights"].detach().requires_grad_()
            error = (reconstruct(*self.split(weights)) - rows).square().mean()
            (gradient,) = torch.autograd.grad(error, weights)
        return error.detach(), gradient


class OnlineAutoencoder(_Autoencoder):
    """A linear autoencoder ``dim → bits → dim``, trained on embeddings as they pass; its centred signs are the code.

    One Adam step a batch on the mean squared reconstruction error. The code of a sample is the sign of its hidden
    units after subtracting their running mean: a centred unit splits the data in halves, so that codes stay near
    maximum entropy without a penalty term.

    Args:
        dim: width of the embeddings.
        bits: length of the code, 1 to 24.
        lr: learning rate of Adam.
        seed: seed of the initial weights.

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

    def gradient(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The mean squared error of rows ``(batch, dim)``, and its gradient as the flat weights."""
        encoder, decoder, bias = self.split(self.tensors["weights"])
        hidden = rows @ encoder  # (batch, bits)
        residual = torch.addmm(bias, hidden, decoder) - rows  # (batch, dim)
        slope = residual * (2 / residual.numel())
        by_encoder = rows.T @ (slope @ decoder.T)  # (dim, bits)
        by_decoder = hidden.T @ slope  # (bits, dim)
        return residual.square().mean(), torch.cat([by_encoder.flatten(), by_decoder.flatten(), slope.sum(dim=0)])


class TiedAutoencoder(_Autoencoder):
    """A linear autoencoder with tied weights: the decoder is the encoder transposed, so directions turn orthonormal.

    Source: our variant, to ablate the decoder.
    """

    def gradient(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The mean squared error of rows ``(batch, dim)``, and its gradient as the flat weights."""
        return self.gradient_of(rows, lambda encoder, _, bias: rows @ encoder @ encoder.T + bias)


class BinaryAutoencoder(_Autoencoder):
    """A linear autoencoder with binary hidden units: the decoder sees centred signs, gradients pass straight through.

    Source: Carreira-Perpiñán, Raziperchikolaei, "Hashing with binary autoencoders", CVPR 2015, who alternate over
    auxiliary codes; straight-through gradients (Bengio 2013) in their place are our reading, to train it online.
    """

    def gradient(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The mean squared error of rows ``(batch, dim)``, and its gradient as the flat weights."""

        def reconstruct(encoder: Tensor, decoder: Tensor, bias: Tensor) -> Tensor:
            hidden = (rows - self.tensors["mean"]) @ encoder  # (batch, bits)
            signs = hidden.sign().detach() + hidden.clamp(-1, 1) - hidden.clamp(-1, 1).detach()
            return signs @ decoder + bias  # (batch, dim)

        return self.gradient_of(rows, reconstruct)


class ShuffledAutoencoder(OnlineAutoencoder):
    """A control: the autoencoder's codes dealt out at random within the batch, so buckets of its sizes mean nothing."""

    def units(self, rows: Tensor) -> Tensor:
        """Hidden units ``(batch, bits)`` of the batch, in random order."""
        units = super().units(rows)
        return units[torch.randperm(len(units), generator=self.generator)]


class OnlinePCA(Hash):
    """Principal directions by scikit-learn's incremental PCA, fitted on with each batch; old batches fade.

    Takes the arguments of :class:`~bonlib.core.hashing.Hash`; ``bits`` is at most ``dim``.

    Source: Ross et al., "Incremental learning for robust visual tracking", IJCV 2008, as in scikit-learn. That
    batches fade after about a hundred, because the encoder moves, is ours.
    """

    _learned = ("components_", "singular_values_", "mean_", "var_")
    _remembered = 12_800  # samples

    def __init__(self, dim: int, bits: int, *, seed: int = 0) -> None:
        with needs_extra("hasher 'pca'"):
            import sklearn.decomposition  # noqa: F401
        super().__init__(dim, bits, seed=seed)
        _check_principal(self)
        self.tensors["pending"] = torch.empty(0, self.dim, dtype=torch.float32)  # rows too few to be fitted to
        self.tensors["seen"] = torch.zeros((), dtype=torch.float64)
        shapes = {"components_": (self.bits, self.dim), "singular_values_": (self.bits,)}
        for name in self._learned:
            self.tensors[name] = torch.zeros(shapes.get(name, (self.dim,)), dtype=torch.float64)

    def change_scale(self) -> None:
        """Begin anew with the next rows."""
        super().change_scale()
        self.tensors["seen"].zero_()
        self.tensors["pending"] = self.tensors["pending"][:0]

    def learn(self, rows: Tensor) -> None:
        """Fit on, as soon as there are as many rows as bits."""
        from sklearn.decomposition import IncrementalPCA

        self.tensors["pending"] = torch.cat([self.tensors["pending"], rows])
        if len(self.tensors["pending"]) < self.bits:
            return
        pca: Any = IncrementalPCA(self.bits)
        if seen := int(self.tensors["seen"]):
            for name in self._learned:
                setattr(pca, name, self.tensors[name].numpy().copy())
            pca.n_samples_seen_, pca.n_features_in_, pca.n_components_ = seen, self.dim, self.bits
        with np.errstate(invalid="ignore", divide="ignore"):  # shares of a variance that is zero, which we do not use
            pca.partial_fit(self.tensors["pending"].double().numpy())
        fade = min(self._remembered / pca.n_samples_seen_, 1)
        pca.singular_values_ *= math.sqrt(fade)
        for name in self._learned:
            self.tensors[name] = torch.from_numpy(np.array(getattr(pca, name)))
        self.tensors["seen"].fill_(int(pca.n_samples_seen_ * fade))
        self.tensors["encoder"] = self.tensors["components_"].T.to(rows.dtype)  # (dim, bits)
        self.tensors["pending"] = self.tensors["pending"][:0]


class _Refitted(Hash):
    """A hash fitted anew, every so many batches, to the latest rows; random hyperplanes before the first time."""

    _every, _length = 50, 4096  # batches between fits, rows to fit to

    def __init__(self, dim: int, bits: int, *, seed: int = 0) -> None:
        super().__init__(dim, bits, seed=seed)
        _check_principal(self)
        self.tensors["window"] = torch.empty(0, self.dim, dtype=torch.float32)

    def change_scale(self) -> None:
        """Forget rows that were divided by another scale."""
        super().change_scale()
        self.tensors["window"] = self.tensors["window"][:0]

    def learn(self, rows: Tensor) -> None:
        """Remember the rows; fit when it is time."""
        self.tensors["window"] = torch.cat([self.tensors["window"], rows])[-self._length :]
        if (self.steps + 1) % self._every == 0 and len(self.tensors["window"]) > self.bits:
            self.fit(self.tensors["window"])

    @abstractmethod
    def fit(self, window: Tensor) -> None:
        """Find directions for the latest rows ``(rows, dim)``."""


class ITQ(_Refitted):
    """Iterative quantisation by faiss: principal directions, rotated so that the signs lose least.

    Takes the arguments of :class:`~bonlib.core.hashing.Hash`; ``bits`` is at most ``dim``.

    Source: Gong, Lazebnik, "Iterative quantization", CVPR 2011. Refitting it while the encoder trains is ours.
    """

    def __init__(self, dim: int, bits: int, *, seed: int = 0) -> None:
        with needs_extra("hasher 'itq'"):
            import faiss  # noqa: F401
        super().__init__(dim, bits, seed=seed)

    def fit(self, window: Tensor) -> None:
        """Find directions for the latest rows ``(rows, dim)``."""
        import faiss

        itq = faiss.ITQTransform(self.dim, self.bits, True)
        itq.train(np.ascontiguousarray(window.numpy()))  # pyright: ignore[reportCallIssue]
        rotation = faiss.vector_to_array(itq.pca_then_itq.A).reshape(self.bits, self.dim)
        self.tensors["encoder"] = torch.from_numpy(rotation.T.copy())  # (dim, bits)


class SpectralHash(_Refitted):
    """Spectral hashing: the slowest waves along the principal directions, as if the data filled a box.

    Takes the arguments of :class:`~bonlib.core.hashing.Hash`; ``bits`` is at most ``dim``.

    Source: Weiss, Torralba, Fergus, "Spectral hashing", NIPS 2008. Refitting it while the encoder trains is ours.
    """

    def __init__(self, dim: int, bits: int, *, seed: int = 0) -> None:
        super().__init__(dim, bits, seed=seed)
        self.tensors |= {name: torch.zeros(self.bits, dtype=torch.float32) for name in ("low", "frequency")}

    def change_scale(self) -> None:
        """Hash by the directions alone until the box is measured again."""
        super().change_scale()
        self.tensors["frequency"].zero_()

    def fit(self, window: Tensor) -> None:
        """Find directions and frequencies for the latest rows ``(rows, dim)``."""
        covariance = window.T.cov().view(self.dim, self.dim)
        directions = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, : self.bits]  # (dim, bits)
        along = window @ directions  # (rows, bits)
        # The box that the inner nine tenths fill: one batch of strangers among the rows does not widen it.
        low, high = along.quantile(along.new_tensor([0.05, 0.95]), dim=0)
        low, high = low - (high - low) / 18, high + (high - low) / 18
        waves = torch.arange(1, self.bits + 1, device=along.device)
        frequencies = torch.pi * waves[:, None] / (high - low).clamp_min(1e-12)  # (waves, directions)
        chosen = frequencies.flatten().argsort(stable=True)[: self.bits]
        self.tensors["encoder"] = directions[:, chosen % self.bits].contiguous()
        self.tensors["low"] = low[chosen % self.bits]
        self.tensors["frequency"] = frequencies.flatten()[chosen]

    def units(self, rows: Tensor) -> Tensor:
        """Hidden units whose sign is the bit: scaled rows ``(batch, dim)`` to ``(batch, bits)``."""
        if not self.tensors["frequency"].any():
            return super().units(rows)
        return ((rows @ self.tensors["encoder"] - self.tensors["low"]) * self.tensors["frequency"]).cos()


def _check_principal(hasher: Hash) -> None:
    if hasher.bits > hasher.dim:
        name = type(hasher).__name__
        raise ValueError(f"bits is {hasher.bits}; {name} has a bit a principal direction, at most dim={hasher.dim}.")


_HASHERS: dict[str, Callable[..., Hash]] = {
    "autoencoder": OnlineAutoencoder,
    "tied": TiedAutoencoder,
    "binary-autoencoder": BinaryAutoencoder,
    "hyperplanes": RandomHyperplanes,
    "pca": OnlinePCA,
    "itq": ITQ,
    "spectral": SpectralHash,
    "shuffled": ShuffledAutoencoder,
}


def list_hashers() -> list[str]:
    """Names that :func:`make_hasher` takes."""
    return list(_HASHERS)


def make_hasher(name: str, dim: int, bits: int, *, seed: int = 0, **options: Any) -> Hash:
    """A hash by name.

    Args:
        name: one of :func:`list_hashers`.
        dim: width of the embeddings.
        bits: length of the code.
        seed: seed of the initial directions.
        **options: the hash's own, such as ``lr`` of the autoencoders.

    Raises:
        ValueError: if there is no such hash.
        ModuleNotFoundError: if it needs a package that is not installed.
    """
    if name not in _HASHERS:
        raise ValueError(f"hasher is {name!r}; allowed are {', '.join(map(repr, _HASHERS))}.")
    with known_options(f"hasher {name!r}"):
        return _HASHERS[name](dim, bits, seed=seed, **options)
