"""Embeddings to binary codes, learned online: the hash of Bag of Negatives, and those it could have used."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bonlib.checks import check_embeddings
from bonlib.table import MAX_BITS


class Hasher(Protocol):
    """What :class:`~bonlib.bag.BagOfNegatives` asks of a hash; see :class:`RandomHyperplanes` for the methods."""

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
    weights = 2 ** torch.arange(bits.shape[1], device=bits.device)
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
        tensors = {name: getattr(self, "_" + name).detach().clone() for name in self._tensors}
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
            mine = getattr(self, "_" + name)
            if isinstance(mine, nn.Parameter):  # in place: the optimiser holds it
                mine.data.copy_(state[name])
            else:
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
            mine = getattr(self, "_" + name)
            if isinstance(mine, nn.Parameter):
                mine.data, mine.grad = mine.data.to(device), None
            else:
                setattr(self, "_" + name, mine.to(device))


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

    _tensors = ("encoder", "decoder", "bias", "mean")

    def __init__(self, dim: int, bits: int, *, lr: float = 3e-3, seed: int = 0) -> None:
        super().__init__(dim, bits, seed=seed)
        self._encoder = nn.Parameter(self._encoder)
        self._decoder = nn.Parameter(torch.randn(bits, dim, generator=self._generator) / bits**0.5)
        self._bias = nn.Parameter(torch.zeros(dim))
        self._optimizer = torch.optim.Adam([self._encoder, self._decoder, self._bias], lr=lr)

    def state_dict(self) -> dict[str, Any]:
        """Weights, running mean, optimiser."""
        return super().state_dict() | {"optimizer": copy.deepcopy(self._optimizer.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state saved by :meth:`state_dict`; refuses one of another hash, ``dim`` or ``bits``."""
        super().load_state_dict(state)
        self._optimizer.load_state_dict(state["optimizer"])

    def _learn(self, embeddings: Tensor) -> float:
        with torch.enable_grad(), torch.autocast(embeddings.device.type, enabled=False):
            error = (self._reconstruct(embeddings) - embeddings).square().mean()
            self._optimizer.zero_grad()
            error.backward()
        self._optimizer.step()
        return float(error.detach() / embeddings.square().mean().clamp_min(1e-30))

    def _reconstruct(self, embeddings: Tensor) -> Tensor:
        return embeddings @ self._encoder @ self._decoder + self._bias  # (batch, dim)

    def _follow(self, device: torch.device) -> None:
        if self._mean.device == device:
            return
        super()._follow(device)
        for values in self._optimizer.state.values():
            for name, value in values.items():
                if name != "step":  # Adam keeps its step count on the CPU
                    values[name] = value.to(device)


class TiedAutoencoder(OnlineAutoencoder):
    """The same with tied weights: the decoder is the encoder transposed, so that the directions become orthonormal.

    Source: our variant, to ablate the decoder.
    """

    def _reconstruct(self, embeddings: Tensor) -> Tensor:
        return embeddings @ self._encoder @ self._encoder.T + self._bias  # (batch, dim)


class BinaryAutoencoder(OnlineAutoencoder):
    """The same with binary hidden units: the decoder sees the centred signs, gradients pass straight through them.

    Source: Carreira-Perpiñán, Raziperchikolaei, "Hashing with binary autoencoders", CVPR 2015, who alternate over
    auxiliary codes; straight-through gradients (Bengio 2013) in their place are our reading, to train it online.
    """

    def _reconstruct(self, embeddings: Tensor) -> Tensor:
        hidden = (embeddings - self._mean) @ self._encoder  # (batch, bits)
        signs = hidden.sign().detach() + hidden.clamp(-1, 1) - hidden.clamp(-1, 1).detach()
        return signs @ self._decoder + self._bias  # (batch, dim)


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
