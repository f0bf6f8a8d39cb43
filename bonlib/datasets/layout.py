"""Published benchmarks on the user's disk: their layout and their sizes, checked."""
# pandas is typed more loosely than it behaves:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bonlib.datasets.from_table import UNKNOWN_CAMERA

if TYPE_CHECKING:
    import pandas as pd

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"}
Row = tuple[Path, str, str, int]  # path, identity, part, camera


def base(root: Path, markers: Sequence[str], inside: Sequence[str] = ()) -> Path:
    """The folder that has all the markers: ``root``, or one of the published names inside it.

    Args:
        root: what the user gave.
        markers: paths that must be there, relative to the base.
        inside: names that the published archive unpacks to.

    Raises:
        FileNotFoundError: if there is none; it says what was expected, what was found, and the first path that differs.
    """
    folders = [root, *(root / name for name in inside)]
    best, missing = root, list(markers)
    for folder in folders:
        lacking = [marker for marker in markers if not (folder / marker).exists()]
        if not lacking:
            return folder
        if len(lacking) < len(missing):
            best, missing = folder, lacking
    if not root.is_dir():
        raise FileNotFoundError(
            f"root is {str(root)!r}, which is no folder; expected one that holds {', '.join(markers)}."
        )
    there = sorted(path.name + "/" * path.is_dir() for path in best.iterdir())
    found = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")
    raise FileNotFoundError(
        f"{best} has not the published layout: expected {', '.join(markers)}; found {found or 'nothing'}; "
        f"the first missing path is {best / missing[0]}."
    )


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, sorted.

    Raises:
        FileNotFoundError: if there is none.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES)
    if not found:
        raise FileNotFoundError(f"{folder} holds no images; expected files such as {', '.join(sorted(IMAGES)[:4])}.")
    return found


def make_table(rows: Iterable[Row]) -> "pd.DataFrame":
    """Rows of path, identity, part and camera as :func:`~bonlib.datasets.files.image_set` takes them."""
    import pandas as pd

    table = pd.DataFrame(
        [(str(path), identity, part, camera) for path, identity, part, camera in rows],
        columns=["path", "identity", "part", "camera"],
    )
    return table.astype({"camera": int})


def without_camera(paths: Sequence[str | Path], identities: Sequence[object], part: str) -> list[Row]:
    """Rows of images whose camera nobody knows."""
    pairs = zip(paths, identities, strict=True)
    return [(Path(path), str(identity), part, UNKNOWN_CAMERA) for path, identity in pairs]


def check_counts(table: "pd.DataFrame", published: Mapping[str, tuple[int, int]], name: str) -> None:
    """Compare what was found with what was published.

    Args:
        table: as :func:`make_table` gives it.
        published: images and identities of each part; the part ``"all"`` is everything.
        name: of the benchmark.

    Raises:
        ValueError: if any number differs; it gives all of them.
    """
    wrong = []
    for part, (images, identities) in published.items():
        rows = table if part == "all" else table[table["part"] == part]
        if (len(rows), rows["identity"].nunique()) != (images, identities):
            wrong.append(
                f"{part}: {len(rows):,} images of {rows['identity'].nunique():,} identities, "
                f"published are {images:,} of {identities:,}"
            )
    if wrong:
        raise ValueError(
            f"{name} is not complete, or another version: {'; '.join(wrong)}. Copy it anew, or give check_counts=False."
        )
