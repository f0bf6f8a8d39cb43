"""What a hash is: embeddings to binary codes, centred and scaled by what passes, learned online by a subclass."""

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from bonlib.core.checks import all_or_nothing, own_state, real_number, rows_of, whole_number
from bonlib.core.kernels import read_codes
from bonlib.core.table import MAX_BITS

_REMEMBERED = 5  # batches whose usual length is remembered; the lower median of them is trusted
_DRIFT = 2.0  # factor by which the usual length leaves the scale before the scale follows
_FAR, _TINY = 4.0, 1e-3  # times the scale: nothing is learned from rows that are longer, or shorter
_EXACT = 126  # within so many powers of two float32 divides by the scale as exactly as float64
_MANY = 512  # rows from which torch finds their median faster than a sorted list
_SLOWEST = 0.01  # weight of a batch in the running mean, once there were a hundred


class Hash(ABC):
    """Embeddings to codes: the signs of hidden units, after subtracting the running mean of what passed.

    A hash of one's own is a subclass with :meth:`learn`, and :meth:`units` where the hidden units are not linear in the
    embeddings. What it learns belongs into ``tensors``: these are on the CPU, are saved, and are rolled back where
    learning ends in NaN or infinity.

    **Scale.** Rows come to ``learn`` and ``units`` divided by a power of two near the usual length of an embedding (1
    for unit embeddings): the lower median over the last five batches of each batch's median length. The scale follows
    where that median has left it by more than a factor of two. Nothing is learned from rows more than four times as
    long as the scale, whose own codes are those of their directions, nor from rows a thousand times shorter. So what
    one batch of any finite size does to the codes of others is over within 50 updates. Where the scale changes, the
    running mean begins anew: in the new unit the old one would be of another length.

    Args:
        dim: width of the embeddings.
        bits: length of the code, 1 to 24.
        seed: seed of the initial directions; no global randomness is used.

    Attributes:
        tensors: by name, float32: ``encoder`` ``(dim, bits)``, ``mean`` ``(dim,)``, and what a subclass adds.
        steps: batches that it learned from.

    Raises:
        ValueError: if a size is out of its range.
    """

    def __init__(self, dim: int, bits: int, *, seed: int = 0) -> None:
        self.dim = whole_number("dim", dim, 1, hint="It is the width of the embeddings.")
        self.bits = whole_number("bits", bits, 1, MAX_BITS)
        self.generator = torch.Generator().manual_seed(whole_number("seed", seed, 0))
        directions = torch.randn(self.dim, self.bits, generator=self.generator, dtype=torch.float32)
        # The mean is that of the embeddings, so of the hidden units under any weights.
        self.tensors = {"encoder": directions / self.dim**0.5, "mean": torch.zeros(self.dim, dtype=torch.float32)}
        self.steps = self._since = 0  # batches in all, and under the scale as it is
        self._lengths: list[float] = []  # usual length of the last batches
        self._scale = 1.0

    @property
    def scale(self) -> float:
        """The usual length of an embedding, as a power of two."""
        return self._scale

    @abstractmethod
    def learn(self, rows: Tensor) -> Tensor | None:
        """Learn from a batch.

        Args:
            rows: ``(batch, dim)`` float32, scaled, on the CPU.

        Returns:
            The reconstruction error relative to the rows' size, a scalar tensor, or ``None`` where it has none.
        """

    def change_scale(self) -> None:
        """Let go of lengths that were learned under another scale; called before the first rows of a new one."""
        self._since = 0

    def begin_anew(self) -> None:
        """Let go of scale and centre, before embeddings of another encoder; the directions stay."""
        self._lengths = []
        self.change_scale()

    def units(self, rows: Tensor) -> Tensor:
        """Hidden units whose sign is the bit: scaled rows ``(batch, dim)`` to ``(batch, bits)``."""
        return (rows - self.tensors["mean"]) @ self.tensors["encoder"]

    @torch.no_grad()
    def partial_fit(self, embeddings: Any) -> float:
        """Learn from a batch.

        Args:
            embeddings: ``(batch, dim)`` floating point on any device; detached here.

        Returns:
            The mean squared reconstruction error before the step, divided by the variance of the batch about zero:
            0 is perfect, 1 no better than zeros, NaN for a hash that does not reconstruct.

        Raises:
            ValueError: if the embeddings are of another shape or not finite; nothing is changed then.
            FloatingPointError: if what was learned is not finite; the hash is then as before.
        """
        embeddings, before = rows_of(embeddings, self.dim), self.state_dict()
        try:
            return self._learn_from(embeddings)
        except BaseException:  # whatever a subclass or its library raises
            self.load_state_dict(before)
            raise

    def _learn_from(self, embeddings: Tensor) -> float:
        """Learn from checked embeddings; see :meth:`partial_fit`, which puts everything back where this raises."""
        rows, usual = self._scaled(embeddings, measure=True)
        if usual is not None:
            rows = rows[usual]
        if len(rows) == 0:
            return math.nan
        with _without_autocast():
            error = self.learn(rows)
            self.steps, self._since = self.steps + 1, self._since + 1
            # A plain average at first, then a moving one over about a hundred batches.
            self.tensors["mean"].lerp_(rows.mean(dim=0), max(1 / self._since, _SLOWEST))
            total = torch.stack([values.sum(dtype=torch.float64) for values in self.tensors.values()]).sum()
            told, total = torch.stack([total if error is None else error.double(), total]).tolist()
        if not math.isfinite(total):
            raise FloatingPointError(
                f"The hash is not finite after its update {self.steps}, and was put back; lower its lr "
                f"(hasher options of {type(self).__name__}), or look for a diverging loss."
            )
        return math.nan if error is None else told

    @torch.no_grad()
    def project(self, embeddings: Any) -> Tensor:
        """Hidden units less their mean, whose signs are the bits: ``(batch, dim)`` to ``(batch, bits)``, on the CPU."""
        with _without_autocast():
            return self.units(self._scaled(rows_of(embeddings, self.dim))[0])  # (batch, bits)

    def encode(self, embeddings: Any) -> Tensor:
        """Codes of embeddings: ``(batch, dim)`` to ``(batch,)`` int64 in ``0 .. 2**bits - 1``, on the CPU."""
        return torch.from_numpy(read_codes(self.project(embeddings).float().numpy())[0])

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next code depends on."""
        return {
            "hash": type(self).__name__,
            "dim": self.dim,
            "bits": self.bits,
            "steps": self.steps,
            "since": self._since,
            "lengths": list(self._lengths),
            "scale": self._scale,
            "generator": self.generator.get_state(),
            "tensors": {name: values.clone() for name, values in self.tensors.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state saved by :meth:`state_dict`.

        Raises:
            ValueError: if the state is of another hash, ``dim`` or ``bits``, or not finite; nothing is changed then.
        """
        with all_or_nothing(self):
            self.check_state(state)
            self.tensors = {name: values.to("cpu", copy=True) for name, values in state["tensors"].items()}
            self.steps = whole_number("steps", state["steps"], 0)
            self._since = whole_number("since", state["since"], 0, self.steps)
            self._lengths = [real_number("lengths", length, 0) for length in state["lengths"]][-_REMEMBERED:]
            self._scale = real_number("scale", state["scale"], math.ulp(0))
            self.generator = torch.Generator()
            self.generator.set_state(state["generator"].cpu())

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse what is no state of this hash; see :meth:`load_state_dict`."""
        own_state(
            state, "a hash", ("hash", "dim", "bits", "steps", "since", "lengths", "scale", "generator", "tensors")
        )
        for name, value in (("hash", type(self).__name__), ("dim", self.dim), ("bits", self.bits)):
            if state[name] != value:
                raise ValueError(
                    f"state has {name}={state[name]}, this hash has {value}; make it as the saved one was."
                )
        own_state(state["tensors"], "a hash", self.tensors)
        for name, own in self.tensors.items():
            saved = state["tensors"][name]
            # The rows that some hashes remember may be more or fewer.
            alike = saved.dtype == own.dtype and saved.shape[own.ndim == 2 :] == own.shape[own.ndim == 2 :]
            if not alike or (name == "encoder" and saved.shape != own.shape) or not torch.isfinite(saved).all():
                raise ValueError(f"state is damaged: its {name} is not that of this hash, or not finite; begin anew.")

    def _scaled(self, embeddings: Tensor, *, measure: bool = False) -> tuple[Tensor, Tensor | None]:
        """Rows divided by the scale ``(batch, dim)``, far ones to length one; and which are of usual size ``(batch,)``.

        The second is ``None`` where all are. With ``measure`` the scale follows the usual length of an embedding first.
        """
        lengths = torch.linalg.vector_norm(embeddings, dim=1, dtype=torch.float64)  # (batch,) no square overflows
        if len(lengths) > _MANY:
            shortest, middle, longest = torch.stack([lengths.min(), lengths.median(), lengths.max()]).tolist()
        else:  # faster than three operations of torch
            values = sorted(lengths.tolist())
            shortest, middle, longest = values[0], values[(len(values) - 1) // 2], values[-1]
        if measure:
            self._lengths = [*self._lengths[1 - _REMEMBERED :], middle]
            usual = statistics.median_low(self._lengths)
            if usual > 0 and not 1 / _DRIFT <= usual / self._scale <= _DRIFT:
                self._scale = 2.0 ** round(math.log2(usual))
                self.change_scale()
        least, most = _TINY * self._scale, _FAR * self._scale
        if longest <= most and abs(math.log2(self._scale)) <= _EXACT:
            return embeddings / self._scale, None if shortest >= least else lengths >= least
        far = lengths > most
        factors = torch.where(far, 1 / lengths, 1 / self._scale)  # float64: the scale may be tiny
        return (embeddings * factors[:, None]).float(), ~far & (lengths >= least)


def _without_autocast() -> AbstractContextManager[Any]:
    """Products in float32, whatever the caller's loop has asked for; entering autocast costs more than they do."""
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()
