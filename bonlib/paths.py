"""Where data and figures go, whatever the current directory."""

import os
from collections.abc import Callable
from pathlib import Path


def project_dir() -> Path | None:
    """The checkout that bonlib runs from, or ``None`` where it is installed as a plain package."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").exists() else None


def data_dir() -> Path:
    """``$BONLIB_DATA``, else ``data/`` of the checkout, else ``~/.cache/bonlib``."""
    if chosen := os.environ.get("BONLIB_DATA"):
        return Path(chosen).expanduser().resolve()
    root = project_dir()
    return root / "data" if root else Path.home() / ".cache" / "bonlib"


def results_dir() -> Path:
    """``$BONLIB_RESULTS``, else ``results/`` in the data directory: one folder a sweep, one file a run."""
    chosen = os.environ.get("BONLIB_RESULTS")
    return Path(chosen).expanduser().resolve() if chosen else data_dir() / "results"


def figures_dir() -> Path:
    """``$BONLIB_FIGURES``, else ``figures/`` of the checkout, else of the current directory."""
    if chosen := os.environ.get("BONLIB_FIGURES"):
        return Path(chosen).expanduser().resolve()
    return (project_dir() or Path.cwd()) / "figures"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write(temporary)`` make a file beside ``path``, then rename it: readers see the old or the new, never half.

    Args:
        path: where the file shall be; its folder is made if need be.
        write: writes the whole file to the path it is given, which has the same suffix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
