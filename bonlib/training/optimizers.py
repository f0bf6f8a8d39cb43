"""The optimiser that `fit` makes: Adam, and its sparse kind for the weights whose gradients are sparse."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def make_optimizer(encoder: nn.Module, loss: nn.Module, lr: float, loss_lr: float | None) -> torch.optim.Optimizer:
    """Adam over the parameters of encoder and loss; :class:`AdamOfBothKinds` where an embedding has sparse gradients.

    Args:
        encoder: whose parameters are trained.
        loss: whose parameters are trained, if it has any.
        lr: learning rate.
        loss_lr: that of the loss's own parameters; by default the same.

    Source: Kingma, Ba, "Adam", ICLR 2015; ``torch.optim.SparseAdam`` moves the rows that took part alone.
    """
    dense: list[dict[str, Any]] = []
    sparse: list[dict[str, Any]] = []
    for module, rate in ((encoder, lr), (loss, lr if loss_lr is None else loss_lr)):
        known = {id(part.weight) for part in module.modules() if _is_sparse(part)}
        for groups, wanted in ((dense, False), (sparse, True)):
            if own := [p for p in module.parameters() if (id(p) in known) == wanted]:
                groups.append({"params": own, "lr": rate})
    if not (sparse and dense):
        return torch.optim.SparseAdam(sparse, lr=lr) if sparse else torch.optim.Adam(dense, lr=lr)
    return AdamOfBothKinds(torch.optim.Adam(dense, lr=lr), torch.optim.SparseAdam(sparse, lr=lr))


def _is_sparse(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse


class AdamOfBothKinds(torch.optim.Optimizer):
    """Adam and SparseAdam as one optimiser: groups, step and state of both.

    Args:
        dense: for weights with dense gradients.
        sparse: for weights with sparse ones.
    """

    parts: dict[str, torch.optim.Optimizer]

    def __init__(self, dense: torch.optim.Adam, sparse: torch.optim.SparseAdam) -> None:
        # The base class's own constructor wants groups, which are the parts'; this gives its hooks alone.
        self.__setstate__({"parts": {"dense": dense, "sparse": sparse}, "defaults": {}})

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles are made of."""
        return {"parts": self.parts, "defaults": self.defaults}

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The groups of both, the dense ones first."""
        return [group for part in self.parts.values() for group in part.param_groups]

    @property
    def state(self) -> dict[Any, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What both remember of their weights."""
        return {weight: kept for part in self.parts.values() for weight, kept in part.state.items()}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Not here: it would have to know the kind.

        Raises:
            ValueError: always.
        """
        raise ValueError("param_group is given to both kinds of Adam; give it to parts['dense'] or parts['sparse'].")

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of both."""
        for part in self.parts.values():
            part.zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; returns what the closure does, which is called once."""
        with torch.enable_grad():
            value = None if closure is None else closure()
        for part in self.parts.values():
            part.step()
        return value

    def state_dict(self) -> dict[str, Any]:
        """The states of both, by kind."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the states of both, or of none.

        Raises:
            ValueError: if one does not fit.
            KeyError: if one is missing.
        """
        before = self.state_dict()
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state_dict[name])
        except BaseException:
            for name, part in self.parts.items():
                part.load_state_dict(before[name])
            raise


def values_of(gradient: Tensor) -> Tensor:
    """The numbers of a gradient, dense or sparse, to look whether they are finite."""
    return gradient._values() if gradient.is_sparse else gradient
