"""Arrays that are slow to make, kept in a file."""

import hashlib
import json
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonlib.paths import data_dir, write_atomically


def cached_arrays(name: str, options: Any, make: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """What ``make`` returns, from the file that an earlier call wrote for the same options.

    The file's checksums tell whether it is whole; a damaged one is made anew, with a warning.

    Args:
        name: folder of the file, below :func:`~bonlib.paths.data_dir`.
        options: all that decides what is made, sources included, as JSON can hold it.
        make: returns arrays by name.
    """
    key = hashlib.sha256(json.dumps(options).encode()).hexdigest()[:16]
    file = data_dir() / name / f"{key}.npz"
    if file.exists():
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
                return {part: stored[part] for part in stored.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            warnings.warn(f"The cache {file} is damaged ({error}); it is made anew.", stacklevel=4)
    arrays = make()
    write_atomically(file, lambda temporary: np.savez(temporary, **arrays))  # pyright: ignore[reportArgumentType]
    return arrays
