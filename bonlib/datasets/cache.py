"""Arrays that are slow to make, kept in a file."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonlib.core.paths import data_dir, write_atomically

_warned = False  # once a process is enough


def cache_file(name: str, options: Any) -> Path:
    """The file of arrays that these options make, whether it is there or not."""
    key = hashlib.sha256(json.dumps(options).encode()).hexdigest()[:16]
    return data_dir() / name / f"{key}.npz"


def cached_arrays(name: str, options: Any, make: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """What ``make`` returns, from the file that an earlier call wrote for the same options.

    The file's checksums tell whether it is whole; a damaged one is made anew, with a warning.

    Args:
        name: folder of the file, below :func:`~bonlib.core.paths.data_dir`.
        options: all that decides what is made, sources included, as JSON can hold it.
        make: returns arrays by name.
    """
    file = cache_file(name, options)
    if os.access(file, os.R_OK):
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
                return {part: stored[part] for part in stored.files}
        except Exception as error:  # a foreign file fails in any way
            warnings.warn(f"The cache {file} is damaged ({error}); it is made anew.", stacklevel=4)
    arrays = make()
    write_cache(file, arrays)
    return arrays


def write_cache(file: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Keep arrays in a file; where it cannot be written all goes on without, with one warning."""
    global _warned
    try:
        write_atomically(file, lambda temporary: np.savez(temporary, **arrays))  # pyright: ignore[reportArgumentType]
    except OSError as error:
        if not _warned:
            _warned = True
            warnings.warn(
                f"Nothing can be kept below {data_dir()} ({error.strerror}), so data are made anew each time; "
                "set BONLIB_DATA to a folder that can be written.",
                stacklevel=2,
            )
