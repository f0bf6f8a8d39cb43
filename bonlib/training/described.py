"""What training is made of, as text: a checkpoint that is made of something else is refused."""

import inspect
import re
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

# Attributes of a data set, or of its files, that say what is seen of a sample.
_MAKES = ("drop", "typos", "transform", "size", "color")


def described_dataset(dataset: Dataset[Any]) -> str:
    """What stands for the content of a dataset, its own fingerprint or its length, and for what is made of samples."""
    told = getattr(dataset, "fingerprint", None) or f"{len(dataset)} samples"  # pyright: ignore[reportArgumentType]
    for owner in (dataset, getattr(dataset, "images", None)):
        made = {name: value for name, value in getattr(owner, "__dict__", {}).items() if name in _MAKES and value}
        told += _without_addresses(f" {made}") if made else ""
    return told


def described_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's kind and hyperparameters, as text, by name and group."""
    told = {"optimizer": type(optimizer).__name__}
    for i, group in enumerate(optimizer.param_groups):
        of = f" of group {i + 1}" if i else ""
        told |= {name + of: repr(value) for name, value in group.items() if name != "params"}
    return told


def described_loss(loss: nn.Module) -> str:
    """A loss with all that is set of it, as text without addresses: its numbers, and the arguments of its modules."""
    told: list[dict[str, Any]] = [{n: value for n, value in sorted(vars(loss).items()) if isinstance(value, float)}]
    for module in loss.modules():
        makers = [vars(kind)["__init__"] for kind in type(module).__mro__[:-1] if "__init__" in vars(kind)]
        named = {name for maker in makers for name in inspect.signature(maker).parameters}
        plain = {name: vars(module)[name] for name in sorted(named & vars(module).keys())}
        told.append({name: value for name, value in plain.items() if isinstance(value, int | float | str)})
    return _without_addresses(f"{loss!r} {told}")


def _without_addresses(text: str) -> str:
    """A printed object as it is in any process."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)
