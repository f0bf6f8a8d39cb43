"""Miners that look at the whole data set through the encoder every so many batches."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from bonlib.core.checks import locked, own_state, whole_number
from bonlib.core.layout import Ids, Layout
from bonlib.core.miner import Miner


class Refreshing(Miner):
    """A miner that draws at random until its first look at the data set, and looks again every ``every`` batches.

    In a loop of your own, before each batch: ``if miner.due: miner.refresh(embed)``, where ``embed`` takes dataset
    indices ``(n,)`` to embeddings ``(n, dim)``; :func:`~bonlib.training.loop.fit` does so by itself. The look is the
    cost that BoN avoids: one forward pass over all N samples, unless a subclass asks for fewer. Who forgets it is
    warned.

    Args:
        labels: ``(num_samples,)`` integers.
        dim: width of the embeddings.
        every: batches between two looks; by default one pass.
        warm_up: batches before the first look.
        **layout: as :class:`~bonlib.core.miner.Miner` takes them.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        labels: ArrayLike | Tensor,
        dim: int,
        *,
        every: int | None = None,
        warm_up: int = 0,
        **layout: Unpack[Layout],
    ) -> None:
        super().__init__(labels, dim, **layout)
        self.every = self.one_pass if every is None else whole_number("every", every, 1, hint="None is one pass.")
        self.warm_up = whole_number("warm_up", warm_up, 0)
        self._left = self.warm_up  # batches until the next look
        self._looks = 0

    @property
    def due(self) -> bool:
        """Whether :meth:`refresh` is to be called before the next batch."""
        return self._left <= 0

    def refresh(self, embed: Callable[[Ids], Tensor]) -> None:
        """Look at the data set through the encoder as it is now.

        Args:
            embed: dataset indices ``(n,)`` to embeddings ``(n, dim)``, without gradients.

        Raises:
            ValueError: if the embeddings are of another shape or not finite; the miner is then as before.
        """
        ids = self._wanted()
        seen = self.checked(ids, embed(ids))[1]
        with self._lock:
            self._look(seen)
            self._looks += 1
            self._left = self.every

    def stats(self) -> dict[str, float]:
        """``looks`` at the data set so far."""
        return {"looks": self._looks}

    @locked
    def state_dict(self) -> dict[str, Any]:
        """Everything that influences the next batch, what the last look brought included."""
        return super().state_dict() | {"left": self._left, "looks": self._looks}

    def _load(self, state: Mapping[str, Any]) -> None:
        self._left, self._looks = (
            whole_number("left", state["left"], -(2**62)),
            whole_number("looks", state["looks"], 0),
        )
        self._make_room()
        super()._load(state)

    def _make_room(self) -> None:
        """Give what looks bring the shapes that it has after so many of them."""

    def _check_state(self, state: Mapping[str, Any]) -> None:
        super()._check_state(state)
        own_state(state, type(self).__name__, ("left", "looks"))

    def _config(self) -> dict[str, Any]:
        return super()._config() | {"every": self.every, "warm_up": self.warm_up}

    def _draw_batch(self) -> Ids:
        self._left -= 1
        if self._left == -self.every:
            warnings.warn(
                f"{type(self).__name__} waits for a look at the data set since {self.every} batches, and draws from an "
                "old one or at random; before each batch: if miner.due: miner.refresh(embed).",
                stacklevel=3,
            )
        return super()._draw_batch()

    def _wanted(self) -> Ids:
        """Dataset indices that a look needs; all of them."""
        return np.arange(self.num_samples)

    def _aside(self) -> np.random.Generator:
        """A generator that follows from the state of the miner's own, and leaves that alone."""
        return np.random.default_rng([self._rng.bit_generator.state["state"]["state"], self._looks])

    @abstractmethod
    def _look(self, embeddings: Tensor) -> None:
        """Learn from the embeddings of :meth:`_wanted`."""
