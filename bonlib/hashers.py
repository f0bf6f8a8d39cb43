"""Hashes by name: Bag of Negatives' own, and those that it could have used and is measured against."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bonlib.hashing import Hasher, OnlineAutoencoder, RandomHyperplanes


class _Differentiated(OnlineAutoencoder):
    """An autoencoder whose gradient is left to autograd."""

    def _gradient(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            weights = self._weights.detach().requires_grad_()
            error = (self._reconstruct(embeddings, *self._split(weights)) - embeddings).square().mean()
            (gradient,) = torch.autograd.grad(error, weights)
        return error.detach(), gradient

    def _reconstruct(self, embeddings: Tensor, encoder: Tensor, decoder: Tensor, bias: Tensor) -> Tensor:
        raise NotImplementedError


class TiedAutoencoder(_Differentiated):
    """A linear autoencoder with tied weights: the decoder is the encoder transposed, so directions turn orthonormal.

    Source: our variant, to ablate the decoder.
    """

    def _reconstruct(self, embeddings: Tensor, encoder: Tensor, decoder: Tensor, bias: Tensor) -> Tensor:
        return embeddings @ encoder @ encoder.T + bias  # (batch, dim)


class BinaryAutoencoder(_Differentiated):
    """A linear autoencoder with binary hidden units: the decoder sees centred signs, gradients pass straight through.

    Source: Carreira-Perpiñán, Raziperchikolaei, "Hashing with binary autoencoders", CVPR 2015, who alternate over
    auxiliary codes; straight-through gradients (Bengio 2013) in their place are our reading, to train it online.
    """

    def _reconstruct(self, embeddings: Tensor, encoder: Tensor, decoder: Tensor, bias: Tensor) -> Tensor:
        hidden = (embeddings - self._mean) @ encoder  # (batch, bits)
        signs = hidden.sign().detach() + hidden.clamp(-1, 1) - hidden.clamp(-1, 1).detach()
        return signs @ decoder + bias  # (batch, dim)


class ShuffledAutoencoder(OnlineAutoencoder):
    """A control: the autoencoder's codes dealt out at random within the batch, so buckets of its sizes mean nothing."""

    def project(self, embeddings: Tensor) -> Tensor:
        """Projections ``(batch, bits)`` of the batch, in random order."""
        projections = super().project(embeddings)
        return projections[torch.randperm(len(projections), generator=self._generator)]

    def state_dict(self) -> dict[str, Any]:
        """That of the autoencoder, and the generator's."""
        return super().state_dict() | {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state saved by :meth:`state_dict`; refuses one of another hash, ``dim`` or ``bits``."""
        super().load_state_dict(state)
        self._generator.set_state(state["generator"])


class OnlinePCA(RandomHyperplanes):
    """Principal directions by scikit-learn's incremental PCA, fitted on with each batch; old batches fade.

    Source: Ross et al., "Incremental learning for robust visual tracking", IJCV 2008, as in scikit-learn. That
    batches fade after about a hundred, because the encoder moves, is ours.
    """

    _tensors = ("encoder", "mean", "pending")
    _learned = ("components_", "singular_values_", "mean_", "var_")
    _remembered = 12_800  # samples

    def __init__(self, dim: int, bits: int, *, seed: int = 0) -> None:
        from sklearn.decomposition import IncrementalPCA

        super().__init__(dim, bits, seed=seed)
        _check_principal(self)
        self._pca: Any = IncrementalPCA(bits)
        self._pending = torch.empty(0, dim)  # fewer rows than bits, which it cannot be fitted to

    def state_dict(self) -> dict[str, Any]:
        """Directions, running mean and what the PCA goes on from."""
        learned = {name: torch.from_numpy(getattr(self._pca, name).copy()) for name in self._learned if self._seen}
        return super().state_dict() | {"pca": learned, "seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state saved by :meth:`state_dict`; refuses one of another hash, ``dim`` or ``bits``."""
        super().load_state_dict(state)
        self._pca = type(self._pca)(self.bits)
        for name, value in state["pca"].items():
            setattr(self._pca, name, value.numpy().copy())
        if state["seen"]:
            self._pca.n_samples_seen_, self._pca.n_features_in_ = state["seen"], self.dim
            self._pca.n_components_ = self.bits

    @property
    def _seen(self) -> int:
        return int(getattr(self._pca, "n_samples_seen_", 0))

    def _learn(self, embeddings: Tensor) -> float:
        self._pending = torch.cat([self._pending, embeddings])
        if len(self._pending) >= self.bits:
            self._pca.partial_fit(self._pending.double().cpu().numpy())
            fade = min(self._remembered / self._seen, 1)
            self._pca.n_samples_seen_ = int(self._seen * fade)
            self._pca.singular_values_ *= fade**0.5
            self._encoder = torch.from_numpy(self._pca.components_.T.copy()).to(embeddings)  # (dim, bits)
            self._pending = self._pending[:0]
        return float("nan")


class _Refitted(RandomHyperplanes):
    """A hash fitted anew, every so many batches, to the latest embeddings; random hyperplanes before the first time."""

    _tensors = ("encoder", "mean", "window")
    _every, _length = 50, 4096  # batches between fits, rows to fit to

    def __init__(self, dim: int, bits: int, *, seed: int = 0) -> None:
        super().__init__(dim, bits, seed=seed)
        _check_principal(self)
        self._window = torch.empty(0, dim)

    def _learn(self, embeddings: Tensor) -> float:
        self._window = torch.cat([self._window, embeddings])[-self._length :]
        if (self._steps + 1) % self._every == 0 and len(self._window) > self.bits:
            self._fit(self._window)
        return float("nan")

    def _fit(self, window: Tensor) -> None:
        raise NotImplementedError


class ITQ(_Refitted):
    """Iterative quantisation by faiss: principal directions, rotated so that the signs lose least.

    Source: Gong, Lazebnik, "Iterative quantization", CVPR 2011. Refitting it while the encoder trains is ours.
    """

    def _fit(self, window: Tensor) -> None:
        import faiss

        itq = faiss.ITQTransform(self.dim, self.bits, True)
        itq.train(np.ascontiguousarray(window.cpu().numpy()))  # pyright: ignore[reportCallIssue]
        rotation = faiss.vector_to_array(itq.pca_then_itq.A).reshape(self.bits, self.dim)
        self._encoder = torch.from_numpy(rotation.T.copy()).to(window)  # (dim, bits)


class SpectralHash(_Refitted):
    """Spectral hashing: the slowest waves along the principal directions, as if the data filled a box.

    Source: Weiss, Torralba, Fergus, "Spectral hashing", NIPS 2008. Refitting it while the encoder trains is ours.
    """

    _tensors = ("encoder", "mean", "window", "low", "frequency")

    def __init__(self, dim: int, bits: int, *, seed: int = 0) -> None:
        super().__init__(dim, bits, seed=seed)
        self._low, self._frequency = torch.zeros(bits), torch.zeros(bits)

    def _fit(self, window: Tensor) -> None:
        directions = torch.linalg.eigh(window.T.cov()).eigenvectors.flip(1)[:, : self.bits]  # (dim, bits)
        along = window @ directions  # (rows, bits)
        low, high = along.amin(dim=0), along.amax(dim=0)
        waves = torch.arange(1, self.bits + 1, device=window.device)
        frequencies = torch.pi * waves[:, None] / (high - low).clamp_min(1e-12)  # (waves, directions)
        chosen = frequencies.flatten().argsort(stable=True)[: self.bits]
        self._encoder, self._low = directions[:, chosen % self.bits], low[chosen % self.bits]
        self._frequency = frequencies.flatten()[chosen]

    def _project(self, embeddings: Tensor) -> Tensor:
        if not self._frequency.any():
            return super()._project(embeddings)
        return ((embeddings @ self._encoder - self._low) * self._frequency).cos()  # (batch, bits)


def _check_principal(hasher: Hasher) -> None:
    if hasher.bits > hasher.dim:
        name = type(hasher).__name__
        raise ValueError(f"bits is {hasher.bits}; {name} has a bit a principal direction, at most dim={hasher.dim}.")


_HASHERS: dict[str, Callable[..., Hasher]] = {
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


def make_hasher(name: str, dim: int, bits: int, *, seed: int = 0, **options: Any) -> Hasher:
    """A hash by name.

    Args:
        name: one of :func:`list_hashers`.
        dim: width of the embeddings.
        bits: length of the code.
        seed: seed of the initial directions.
        **options: the hash's own, such as ``lr`` of the autoencoders.

    Raises:
        ValueError: if there is no such hash.
    """
    if name not in _HASHERS:
        raise ValueError(f"hasher is {name!r}; allowed are {', '.join(map(repr, _HASHERS))}.")
    return _HASHERS[name](dim, bits, seed=seed, **options)
