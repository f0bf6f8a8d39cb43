"""Where data and figures go, whatever the current directory."""

import contextlib
import errno
import glob
import io
import os
import secrets
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ABANDONED = 3600  # seconds after which a temporary file was left by a writer that was killed


def project_dir() -> Path | None:
    """The checkout that bonlib runs from, or ``None`` where it is installed as a plain package."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").exists() else None


def data_dir() -> Path:
    """``$BONLIB_DATA``, else ``data/`` of the checkout, else ``~/.cache/bonlib``, else a temporary folder."""
    if chosen := os.environ.get("BONLIB_DATA"):
        return Path(chosen).expanduser().resolve()
    root = project_dir()
    if root:
        return root / "data"
    try:
        return Path.home() / ".cache" / "bonlib"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / "bonlib"


def results_dir() -> Path:
    """``$BONLIB_RESULTS``, else ``data/results`` of the checkout, else ``results/`` in the data directory.

    One folder a sweep, one file a run. Records are committed with the checkout, so its own are read wherever data lie.
    """
    if chosen := os.environ.get("BONLIB_RESULTS"):
        return Path(chosen).expanduser().resolve()
    root = project_dir()
    return (root / "data" if root else data_dir()) / "results"


def figures_dir() -> Path:
    """``$BONLIB_FIGURES``, else ``figures/`` of the checkout, else of the current directory."""
    if chosen := os.environ.get("BONLIB_FIGURES"):
        return Path(chosen).expanduser().resolve()
    return (project_dir() or Path.cwd()) / "figures"


def make_folder(path: Path) -> None:
    """Make a folder of bonlib's own data, with those above it.

    Raises:
        OSError: if it cannot be made; the message names the cure.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        text = f"{error.strerror}; set BONLIB_DATA to a folder that can be written"
        raise type(error)(error.errno, text, str(path)) from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write(temporary)`` make a file beside ``path``, then rename it: readers see the old or the new, never half.

    What a killed writer of ours has left beside it is cleared away, known by its name, and nothing else.

    Args:
        path: where the file shall be; its folder is made if need be.
        write: writes the whole file to the path it is given, which has the same suffix.

    Raises:
        OSError: if the place cannot be written; the message names the cure, an older file stays as it was.
    """
    path = Path(os.path.realpath(path))  # a link stays one, what it points to is written
    _check_file(path)
    ours = f".{path.stem}.bonlib-"
    temporary = path.with_name(f"{ours}{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{glob.escape(ours)}*-*{glob.escape(path.suffix)}"):
            with contextlib.suppress(FileNotFoundError):  # another writer has just renamed its own
                if time.time() - left.stat().st_mtime > _ABANDONED:
                    left.unlink()
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None and error.strerror is None:  # not the system's, but of what is written
            raise
        raise type(error)(
            error.errno,
            f"{error.strerror}; give another place, or set BONLIB_DATA, BONLIB_RESULTS or BONLIB_FIGURES to a folder "
            "that can be written",
            str(path),
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _check_file(path: Path) -> None:
    """Refuse a place that something else than a file has."""
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "a device or pipe"
        raise FileExistsError(errno.EEXIST, f"{kind} has this name; give another", str(path))


def check_writable(path: Path, *read: str | Path | None) -> None:
    """Find out now, not after hours, whether a file can be written; nothing is left behind.

    Args:
        path: the file.
        *read: what is read, and must not be written over.

    Raises:
        OSError: if it cannot; the message names the cure.
        ValueError: if it is one of those that are read.
    """
    path = Path(os.path.realpath(path))  # a link's target is written
    for source in filter(None, read):
        given = Path(os.path.realpath(os.path.expanduser(source)))
        if path == given or (given.is_dir() and path.exists() and given in path.parents):
            raise ValueError(f"{path} is read here, and would be written over; give another output.")
    _check_file(path)
    probe = path.with_name(f".{path.stem}.bonlib-{secrets.token_hex(8)}{path.suffix}")
    try:
        write_atomically(probe, lambda temporary: temporary.touch())
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    probe.unlink()


def write_torch(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary of tensors and plain values in one piece, for :func:`read_torch`.

    Raises:
        OSError: if the place cannot be written, or is full.
    """
    import torch

    # Into memory first: torch's own writer makes an error of its own of a full disk, or of Ctrl-C.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def read_torch(path: Path, expected: str, cure: str, device: Any = "cpu") -> dict[str, Any]:
    """A dictionary that ``torch.save`` wrote, with its ``format`` checked; only tensors and plain values are read.

    Args:
        path: the file.
        expected: the format that this version reads.
        cure: what to do about another one.
        device: where the tensors go.

    Raises:
        ValueError: if the file is truncated, foreign, or of another format.
    """
    import torch

    try:
        if zipfile.is_zipfile(path):  # torch does not look at the checksums
            with zipfile.ZipFile(path) as archive:
                if (part := archive.testzip()) is not None:
                    raise ValueError(f"the checksum of {part} is wrong")
        content = torch.load(path, weights_only=True, map_location=device)
    except Exception as error:  # a file of any other kind makes torch fail in any way
        raise ValueError(f"{path} cannot be read, it is damaged or no file of torch ({error}); {cure}.") from error
    if not isinstance(content, dict) or content.get("format") != expected:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} has the format {found!r}, this version reads {expected!r}; {cure}.")
    return content
