"""Published benchmarks on the user's disk: their layout and their sizes, checked."""
# pandas is typed more loosely than it behaves:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bonlib.datasets.files import why_no_image

if TYPE_CHECKING:
    import pandas as pd


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
    """The image files of a folder, sorted; what systems add to it (``._1.jpg``, ``Thumbs.db``) is passed over.

    Raises:
        FileNotFoundError: if there is none.
    """
    found = sorted(path for path in folder.iterdir() if why_no_image(path) is None)
    if not found:
        raise FileNotFoundError(f"{folder} holds no images; expected files such as .jpg, .png or .bmp.")
    return found


def read_lines(file: Path) -> list[str]:
    """The lines of a text file that hold anything, in UTF-8 with or without a byte order mark.

    Raises:
        ValueError: if it is in another encoding.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not in UTF-8 ({error.reason} at byte {error.start}); copy it anew.") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def split_lines(file: Path, fields: int | None = None, *, header: bool = False) -> list[list[str]]:
    """The words of each line.

    Args:
        file: see :func:`read_lines`.
        fields: how many words a line must have.
        header: leave out the first line.

    Raises:
        ValueError: if a line has another number of words; it names file and line.
    """
    rows = [line.split() for line in read_lines(file)][header:]
    for number, row in enumerate(rows, start=1 + header):
        if fields is not None and len(row) != fields:
            raise ValueError(
                f"{file} has {len(row)} words in line {number}, published are {fields}: {' '.join(row)!r}."
            )
    return rows


def check_counts(table: "pd.DataFrame", published: Mapping[str, tuple[int, int]], name: str) -> None:
    """Compare what was found with what was published.

    Args:
        table: as :func:`~bonlib.datasets.tables.make_table` gives it.
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
