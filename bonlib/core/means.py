"""What is remembered of each identity: the running mean of its embeddings, in eight bits a dimension."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bonlib.core.checks import as_array, own_state, real_number
from bonlib.core.permutation import compiled

FULL = 127 / 4  # levels of a sketch for a standard deviation of a unit vector's entries
_FAR, _LARGEST = 1e3, 3e38  # times the usual length: no sketch needs to know more; what float32 can hold
_LAST = 2**31 - 2  # stamps until the marks begin anew


class Sketches(NamedTuple):
    """What is remembered of each identity, and scratch space."""

    rows: NDArray[np.int8]  # (num_classes, dim)
    mark: NDArray[np.int32]  # (num_classes,) the last stamp of an identity
    stamp: NDArray[np.int32]  # (1,) the last stamp that was given


class RunningMeans:
    """A sketch of each identity, which moves toward the mean of its samples in each batch that holds some.

    Args:
        num_classes: number of identities.
        dim: width of the embeddings; 0 to remember nothing.
        momentum: share of the old mean in the new one, 0 to below 1.

    Attributes:
        sketches: the means, for compiled readers, and scratch space for them.
    """

    def __init__(self, num_classes: int, dim: int, momentum: float) -> None:
        self.momentum = momentum
        self._seen = np.zeros(num_classes if dim else 0, dtype=bool)  # whether something is remembered of an identity
        self._unit = 1.0  # length that the sketches are in
        self.sketches = Sketches(
            np.zeros((num_classes, dim), dtype=np.int8),
            np.zeros(num_classes, dtype=np.int32),
            np.zeros(1, dtype=np.int32),
        )

    def learn(self, class_of: NDArray[np.int32], embeddings: Tensor, unit: float) -> tuple[NDArray[np.int64], Tensor]:
        """Move sketches toward what a batch says.

        Args:
            class_of: ``(batch,)`` identity of each row.
            embeddings: ``(batch, dim)`` finite float32, on the CPU.
            unit: the usual length of an embedding; where it has changed, all sketches are brought to it.

        Returns:
            The identities ``(n,)``, each once, and their running means ``(n, dim)`` float32.
        """
        if unit != self._unit:
            factor = min(self._unit / unit, 2.0**8)
            self.sketches.rows[:] = np.rint(self.sketches.rows * factor).clip(-127, 127)
            self._unit = unit
        rows, change = embeddings.contiguous().numpy(), np.array([self._levels, self.momentum], dtype=np.float32)
        ids, means = _move(class_of, rows, unit, change, self.sketches.rows, self._seen)
        return ids, torch.from_numpy(means)

    def values(self, ids: NDArray[np.int64] | None = None) -> Tensor:
        """Means as the sketches hold them, of all identities or some: ``(…, dim)`` float32, zero where none is."""
        rows = self.sketches.rows if ids is None else self.sketches.rows[ids]
        return torch.from_numpy(rows.astype(np.float32) * np.float32(self._unit / self._levels))

    @property
    def _levels(self) -> float:
        """Levels of a sketch for the unit."""
        return FULL * max(self.sketches.rows.shape[1], 1) ** 0.5

    def make_room(self, stamps: int) -> None:
        """Begin the marks of identities anew before so many more stamps would overflow."""
        if self.sketches.stamp[0] > _LAST - stamps:
            self.sketches.mark[:] = 0
            self.sketches.stamp[0] = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in (*self.sketches, self._seen))

    def state_dict(self) -> dict[str, Any]:
        """All that draws depend on; marks are scratch."""
        return {
            "rows": torch.from_numpy(self.sketches.rows.copy()),
            "seen": torch.from_numpy(self._seen.copy()),
            "unit": self._unit,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state saved by :meth:`state_dict`.

        Raises:
            ValueError: if it is of another number or width of identities, or damaged; nothing is changed then.
        """
        own_state(state, "running means", ("rows", "seen", "unit"))
        rows, seen, unit = as_array(state["rows"]), as_array(state["seen"]), state["unit"]
        for name, array, own in (("rows", rows, self.sketches.rows), ("seen", seen, self._seen)):
            if array.shape != own.shape or array.dtype != own.dtype:
                raise ValueError(f"state is damaged: {name} has dtype {array.dtype} and shape {array.shape}.")
        unit = real_number("unit", unit, math.ulp(0))
        self.sketches, self._seen, self._unit = self.sketches._replace(rows=rows.copy()), seen.copy(), unit


def class_means(embeddings: Tensor, class_of: NDArray[np.integer[Any]] | Tensor, num_classes: int) -> Tensor:
    """Mean embedding of each class, zero where it has no sample: ``(num_samples, dim)`` to ``(num_classes, dim)``.

    Example:
        >>> class_means(torch.tensor([[1.0], [2.0], [4.0]]), np.array([0, 1, 1]), 2).squeeze().tolist()
        [1.0, 3.0]
    """
    of = torch.from_numpy(as_array(class_of).astype(np.int64))
    sums = embeddings.new_zeros(num_classes, embeddings.shape[1]).index_add_(0, of, embeddings)
    return sums / of.bincount(minlength=num_classes).clamp_min(1)[:, None]


@compiled
def _move(class_of, rows, unit, change, sketches, seen):  # pragma: no cover
    """Move the sketches of the identities of a batch toward what it says of them; returns them and their new means.

    Args:
        class_of: ``(batch,)`` identity of each row.
        rows: ``(batch, dim)`` float32.
        unit: the usual length of a row.
        change: levels of a sketch for that length, and the share of the old sketch in the new one; float32.
        sketches: ``(num_classes, dim)`` int8, is written to.
        seen: ``(num_classes,)`` whether something is remembered already, is written to.
    """
    order = np.argsort(class_of, kind="mergesort")  # stable, so that sums do not depend on the sort
    ids, means = np.empty(len(rows), dtype=np.int64), np.empty(rows.shape, dtype=np.float32)
    scale, momentum = change
    n, begin = 0, 0
    while begin < len(order):
        c, end = class_of[order[begin]], begin + 1
        while end < len(order) and class_of[order[end]] == c:
            end += 1
        for d in range(rows.shape[1]):
            total = np.float32(0)
            for j in range(begin, end):
                total += np.float32(min(max(rows[order[j], d] / unit, -_FAR), _FAR))
            value, before = total / np.float32(end - begin), np.float32(sketches[c, d])
            step = value * scale - before  # levels to where the batch is
            # At the end of its levels a sketch does not know how far beyond them the old mean lies.
            cut = abs(before) == 127 and step * before > 0
            if seen[c] and not cut:
                value = momentum * (before / scale) + (np.float32(1) - momentum) * value
            level = np.rint(value * scale)
            if seen[c] and level == before and abs(step) >= 1:  # else a slow mean would stand still for ever
                level += np.sign(step)
            sketches[c, d] = np.int8(min(max(level, -127), 127))
            means[n, d] = min(max(np.float64(value) * unit, -_LARGEST), _LARGEST)
        ids[n], seen[c] = c, True
        n, begin = n + 1, end
    return ids[:n], means[:n]
