"""Data sets by name."""

from collections.abc import Callable
from typing import Any

from bonlib.datasets.glyphs import Glyphs
from bonlib.datasets.images import ImageSet
from bonlib.datasets.omniglot import omniglot
from bonlib.datasets.scripts import cjk, hangul

_DATASETS: dict[str, Callable[..., ImageSet]] = {"glyphs": Glyphs, "hangul": hangul, "cjk": cjk, "omniglot": omniglot}


def list_datasets() -> list[str]:
    """Names that :func:`load_dataset` takes."""
    return sorted(_DATASETS)


def load_dataset(name: str, split: str, **options: Any) -> ImageSet:
    """Load a split of a data set.

    Args:
        name: one of :func:`list_datasets`.
        split: ``"train"``, ``"validation"``, ``"test"`` or ``"all"``; identities of different splits are disjoint.
        **options: passed to the data set's class, such as ``draws`` for :class:`~bonlib.datasets.glyphs.Glyphs`.

    Raises:
        ValueError: if the name is not known.
    """
    if name not in _DATASETS:
        raise ValueError(f"name is {name!r}; allowed are {', '.join(map(repr, list_datasets()))}.")
    return _DATASETS[name](split, **options)
