"""What labels and batches may look like: forms, sizes, classes."""

import hashlib
import warnings
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bonlib.core.checks import MAX_SAMPLES, as_array

Form = Literal["set", "triplet", "pair"]
FORMS: dict[str, int] = {"set": 0, "triplet": 3, "pair": 4}  # blocks in a batch; a set has none
Ids = NDArray[np.int64]


class Layout(TypedDict, total=False):
    """Arguments that all miners share; see :class:`Miner`."""

    form: Form
    batch_size: int
    per_class: int
    steps: int | None
    seed: int


def tuple_positions(form: str, batch_size: int) -> tuple[Tensor, ...] | None:
    """Positions in a batch that make tuples, see :attr:`~bonlib.core.miner.Miner.index_tuple`."""
    blocks = FORMS[form]
    return tuple(torch.arange(batch_size).chunk(blocks)) if blocks else None


def label_array(labels: ArrayLike | Tensor) -> NDArray[Any]:
    """Labels as an array of integers that fit into int64.

    Raises:
        ValueError: if they are none.
    """
    array = as_array(labels)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"labels has shape {array.shape} and dtype {array.dtype}; give a 1-D array of integers, none of them "
            "missing, one for each sample (numpy.unique(names, return_inverse=True)[1] makes them from names)."
        )
    if array.dtype == np.uint64 and array.size and array.max() >= 2**63:
        raise ValueError(
            f"labels goes up to {array.max()}; allowed are integers below 2**63, as "
            "numpy.unique(labels, return_inverse=True)[1] makes them."
        )
    return array


def checked_labels(labels: ArrayLike | Tensor) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """The distinct labels, sorted, and for each sample the position of its label among them.

    Raises:
        ValueError: if they are no integers, too many, or of one class.
    """
    array = label_array(labels)
    if array.size > MAX_SAMPLES:
        raise ValueError(f"labels has {array.size} samples; allowed are up to {MAX_SAMPLES}.")
    classes, class_of = numbered(array)
    if len(classes) < 2:
        raise ValueError(f"labels has {len(classes)} class(es); a negative needs at least 2.")
    return classes, class_of


def numbered(array: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """The distinct values of integers, sorted, and for each element the position of its value among them."""
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if high - low < 4 * array.size and high < 2**31 and low >= -(2**31):  # dense: no need to sort 100 million labels
        shifted = array.astype(np.int64) - low
        present = np.zeros(high - low + 1, dtype=bool)
        present[shifted] = True
        classes = (np.flatnonzero(present) + low).astype(np.int32)
        return classes, (np.cumsum(present, dtype=np.int32) - 1)[shifted]
    classes, places = np.unique(array, return_inverse=True)
    return classes, places.astype(np.int32, copy=False)


def label_fingerprint(classes: NDArray[Any], class_of: NDArray[Any]) -> str:
    """Sixteen hexadecimal digits that stand for labels, sample by sample, from what :func:`checked_labels` returns."""
    digest = hashlib.sha256(np.ascontiguousarray(classes).astype("<i8", casting="unsafe").data)
    digest.update(np.ascontiguousarray(class_of).astype("<i4", copy=False).data)
    return digest.hexdigest()[:16]


def check_layout(form: str, batch_size: int, per_class: int, sizes: NDArray[Any]) -> None:
    """Refuse a batch that its form has no room for; warn where most of ``sizes``, of the classes, are too small for it.

    Raises:
        ValueError: if there is none of that form and size; the message names the nearest.
    """
    num_classes = len(sizes)
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; allowed are {', '.join(map(repr, FORMS))}.")
    unit, name = (per_class, "per_class") if form == "set" else (FORMS[form], f"{FORMS[form]} for form {form!r}")
    least = 2 * per_class if form == "set" else unit
    if batch_size % unit or batch_size < least:
        below, above = max(batch_size // unit * unit, least), max((batch_size // unit + 1) * unit, least)
        near = f"{below} or {above}" if below != above else f"{below}"
        raise ValueError(
            f"batch_size is {batch_size}; it must be a multiple of {unit} ({name}), at least {least}. Near are {near}."
        )
    if form == "set" and batch_size // per_class > num_classes:
        raise ValueError(
            f"batch_size {batch_size} with per_class {per_class} asks for {batch_size // per_class} classes a batch, "
            f"but labels has {num_classes}; lower batch_size to {num_classes * per_class} or raise per_class."
        )
    wanted = per_class if form == "set" else 2
    if (few := float((sizes < wanted).mean())) > 0.5:
        if form != "set":
            cure = "an anchor is then its own positive"
        elif (median := int(np.median(sizes))) > 1:
            cure = f"per_class={median} fits half of them"
        elif per_class > 2:
            cure = "per_class=2 repeats least"
        else:
            cure = "such a sample is its own positive; leave these classes out"
        warnings.warn(f"{few:.0%} of the classes have fewer than {wanted} samples, which repeat; {cure}.", stacklevel=4)
