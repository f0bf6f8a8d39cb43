"""What is asked of arguments and embeddings wherever they come in."""

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

MAX_SAMPLES = 2**30  # a bucket's slab has half as much room again, which must still fit an int32


def whole_number(name: str, value: Any, least: int, most: int | None = None, hint: str = "") -> int:
    """An argument as a plain int: Python's and NumPy's integers, and floats such as ``12.0``.

    Args:
        name: of the argument.
        value: what was given.
        least: smallest value that is allowed.
        most: largest, or ``None``.
        hint: what else is to be said.

    Raises:
        ValueError: if it is no whole number, or out of range.

    Example:
        >>> whole_number("steps", np.int64(3), 1), whole_number("steps", 12.0, 1)
        (3, 12)
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        exact = isinstance(value, float | np.floating) and value == int(value)
        number = int(value) if exact else operator.index(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is {value!r}; give a whole number.{_more(hint)}") from None
    return _in_range(name, number, least, most, hint)


def real_number(name: str, value: Any, least: float, most: float | None = None, hint: str = "") -> float:
    """An argument as a plain float: numbers of any kind, and text such as YAML's ``1e-3``.

    Raises:
        ValueError: if it is no finite number, or out of range.

    Example:
        >>> real_number("lr", "1e-3", 0)
        0.001
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}; give a number.{_more(hint)}") from None
    if not np.isfinite(number):
        raise ValueError(f"{name} is {value!r}; give a finite number.{_more(hint)}")
    return _in_range(name, number, least, most, hint)


def _in_range(name: str, number: Any, least: Any, most: Any, hint: str) -> Any:
    if number < least or (most is not None and number > most):
        allowed = f"give at least {least}" if most is None else f"allowed are {least} to {most}"
        raise ValueError(f"{name} is {number}; {allowed}.{_more(hint)}")
    return number


def _more(hint: str) -> str:
    return f" {hint}" if hint else ""


def check_device(device: str | torch.device) -> torch.device:
    """A device that torch can use here.

    Raises:
        ValueError: if it is none, or has no driver or hardware.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device is {device!r}, which torch does not know; give 'cpu', 'cuda' or 'cuda:1'.") from None
    if found.type not in ("cpu", "cuda") or (found.type == "cpu" and found.index):  # mps has no float64
        raise ValueError(f"device is {str(found)!r}; allowed are 'cpu' and 'cuda' (or 'cuda:1').")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device is {str(found)!r}, but torch sees {torch.cuda.device_count()} GPUs here; give 'cpu', or install "
            "the driver and a CUDA build of torch."
        )
    return found


def embeddings_of(output: Any) -> Tensor:
    """The embeddings in what an encoder returns.

    A tensor or an array is taken as it is. Of a tuple, a list, a dict or a dataclass (as Hugging Face's models return)
    it is the first entry that is a floating point tensor of two dimensions.

    Raises:
        ValueError: if there is none.

    Example:
        >>> embeddings_of({"loss": torch.zeros(()), "embeddings": torch.ones(2, 3), "logits": torch.ones(2, 9)}).shape
        torch.Size([2, 3])
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, np.ndarray):
        return _as_tensor(output)
    parts: Iterable[Any] = ()
    if isinstance(output, Mapping):
        parts = output.values()
    elif is_dataclass(output):
        parts = [getattr(output, field.name) for field in fields(output)]
    elif isinstance(output, tuple | list):
        parts = output
    for part in parts:
        if isinstance(part, Tensor | np.ndarray) and part.ndim == 2:
            found = _as_tensor(part)
            if found.is_floating_point():
                return found
    if isinstance(output, list) and output and isinstance(output[0], list | tuple):
        return _as_tensor(output)  # rows of plain numbers
    raise ValueError(
        f"embeddings is a {type(output).__name__} without a floating point tensor (batch, dim); give the tensor, or a "
        "tuple, dict or dataclass that holds one."
    )


def _as_tensor(values: Any) -> Tensor:
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":  # torch takes no other byte order, no step back
        values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"embeddings cannot be made a tensor ({error}); give numbers (batch, dim).") from None


def check_embeddings(output: Any, dim: int | None = None, *, dtype: torch.dtype | None = torch.float32) -> Tensor:
    """Embeddings detached, as finite float32 ``(batch, dim)``.

    Args:
        output: what an encoder returned, see :func:`embeddings_of`.
        dim: their width; any where ``None``.
        dtype: of the result; with ``None`` float64 stays and all else becomes float32.

    Raises:
        ValueError: if they are of another shape, not floating point, empty, NaN or infinite.
    """
    embeddings = embeddings_of(output)
    if embeddings.ndim != 2 or dim not in (None, embeddings.shape[1]) or 0 in embeddings.shape:
        wanted = f"(batch, {'dim' if dim is None else dim})"
        raise ValueError(
            f"embeddings has shape {tuple(embeddings.shape)}; give {wanted} with batch of at least 1. "
            "If the encoder's output is right, set dim to its width."
        )
    if not embeddings.is_floating_point():
        raise ValueError(f"embeddings has dtype {embeddings.dtype}; give floating point numbers.")
    if dtype is None:
        dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    embeddings = embeddings.detach().to(dtype)
    if math.isfinite(embeddings.sum().item()):  # the cheap way, and the one wait for a GPU
        return embeddings
    finite = torch.isfinite(embeddings).all(dim=1)
    if not finite.all():  # else the sum alone was too large
        first = int((~finite).nonzero()[0])
        raise ValueError(
            f"embeddings has {int((~finite).sum())} rows with NaN or infinite values, the first is row {first}; "
            "look for a diverging loss (learning rate, half precision) before updating the bag."
        )
    return embeddings


def rows_of(output: Any, dim: int) -> Tensor:
    """Embeddings as hashes and tables take them: as :func:`check_embeddings` gives them, on the CPU.

    They are brought here once, before anything is asked of them: on a GPU each answer is a wait, and a batch is small.
    """
    return check_embeddings(embeddings_of(output).detach().cpu(), dim)


def as_array(values: ArrayLike | Tensor) -> NDArray[Any]:
    """A tensor on any device, an array or a list as an array."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def chosen_ids(name: str, values: ArrayLike | Tensor, count: int) -> NDArray[np.int64]:
    """Which of ``count`` samples are meant: indices as int64 ``(n,)``, or those where a mask ``(count,)`` is true.

    Raises:
        ValueError: if they are neither, or out of range.

    Example:
        >>> chosen_ids("indices", [False, True, True], 3).tolist(), chosen_ids("indices", [2, 0], 3).tolist()
        ([1, 2], [2, 0])
    """
    array = as_array(values)
    if array.dtype == bool and array.shape == (count,):
        return np.flatnonzero(array)
    return check_indices(name, array, count)


def check_indices(name: str, values: ArrayLike | Tensor, end: int, *, length: int | None = None) -> NDArray[np.int64]:
    """Indices as int64 ``(n,)``, all in ``0 .. end - 1``.

    Args:
        name: of the argument.
        values: a tensor on any device, an array or a list.
        end: first value that is too large.
        length: how many there must be, if that is known.

    Raises:
        ValueError: if they are no integers, of another shape or length, or out of range.
    """
    array = as_array(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name} has shape {array.shape} and dtype {array.dtype}; give a 1-D array of integers.")
    if length is not None and len(array) != length:
        raise ValueError(f"{name} has length {len(array)} and embeddings {length}; give one row for each index.")
    if array.size and not (array.min() >= 0 and array.max() < end):
        raise ValueError(f"{name} holds values from {array.min()} to {array.max()}; allowed are 0 to {end - 1}.")
    return array.astype(np.int64)


def centred(embeddings: Tensor) -> Tensor:
    """Embeddings in float64 around their median, of a size near one: for distances that nothing spoils.

    The median, because a few far vectors do not move it. They are divided by a power of two, which is exact, so that no
    square overflows or vanishes.

    Args:
        embeddings: ``(n, dim)`` floating point.

    Example:
        >>> centred(torch.tensor([[1e6, 0.0], [1e6 + 1, 0.0], [1e6 + 2, 0.0]])).tolist()
        [[-0.5, 0.0], [0.0, 0.0], [0.5, 0.0]]
    """
    rows = embeddings.double()
    rows = rows / _power_above(rows)  # first too: the difference of huge numbers may overflow
    rows = rows - rows.median(dim=0).values
    return rows / _power_above(rows)


def _power_above(rows: Tensor) -> float:
    """The power of two above the largest size of an entry; 1 where all are zero."""
    return 2.0 ** math.frexp(float(rows.abs().max()))[1]


def plain(value: Any) -> Any:
    """Numbers of NumPy and of tensors as Python's own, also inside lists and dictionaries: what any file can hold."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(plain, value))
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.ndim == 0):
        return value.item()
    return value


def locked(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that waits for the others of its object: a loader draws, or a checkpoint is taken, in another thread."""

    @wraps(method)
    def waits(self: Any, *args: Any, **options: Any) -> Any:
        with self._lock:
            return method(self, *args, **options)

    return waits


@contextmanager
def all_or_nothing(*owners: Any) -> Iterator[None]:
    """Give objects the attributes back that they had, where loading a state into them fails half-way.

    It is enough where loading binds attributes anew and changes nothing in place.

    Raises:
        ValueError: in place of whatever a damaged state leads to.
    """
    before = [dict(vars(owner)) for owner in owners]
    try:
        yield
    except BaseException as error:
        for owner, attributes in zip(owners, before, strict=True):
            vars(owner).clear()
            vars(owner).update(attributes)
        if isinstance(error, ValueError) or not isinstance(error, Exception):
            raise
        raise ValueError(f"state is damaged ({type(error).__name__}: {error}); take an older one.") from error


@contextmanager
def needs_extra(what: str, extra: str = "study") -> Iterator[None]:
    """Say how to install what the core package does without.

    Raises:
        ModuleNotFoundError: with the command that installs the missing package, in place of Python's own.
    """
    try:
        yield
    except ImportError as error:  # some libraries raise this one of their own optional parts
        if (error.name or "").startswith("bonlib") or "bonlib[" in str(error):
            raise
        name = (error.name or "").partition(".")[0] or str(error).splitlines()[0]
        text = f"{what} needs {name}, which is not installed: pip install 'bonlib[{extra}]'."
        raise ModuleNotFoundError(text, name=error.name) from error


@contextmanager
def known_options(what: str) -> Iterator[None]:
    """Say which option is wrong where Python speaks of keyword arguments.

    Raises:
        ValueError: in place of the TypeError that an unknown or missing option raises.
    """
    try:
        yield
    except TypeError as error:
        if "keyword argument" not in str(error) and "required positional" not in str(error):
            raise
        raise ValueError(f"{what} does not go with these options: {str(error).partition('() ')[2]}.") from error


def own_state(state: Any, name: str, keys: Iterable[str]) -> Mapping[str, Any]:
    """A saved state that has all its parts.

    Raises:
        ValueError: if it is no dictionary, or a part is missing.
    """
    missing = sorted(set(keys) - state.keys()) if isinstance(state, Mapping) else None
    if missing != []:
        lacking = f"it lacks {', '.join(missing)}" if missing else f"it is a {type(state).__name__}"
        raise ValueError(f"state is no state of {name} as this version saves it: {lacking}; begin anew without it.")
    return state
