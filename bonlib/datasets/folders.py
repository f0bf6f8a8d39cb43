"""The user's own folder of images, in which each identity has a folder."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bonlib.datasets.files import SYSTEM_FOLDERS, why_no_image
from bonlib.datasets.tables import UNKNOWN_CAMERA, check_rows, make_table

if TYPE_CHECKING:
    import pandas as pd

_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing", "query", "gallery"}
_SPLITS |= {"bounding_box_train", "bounding_box_test"}


def image_folder(root: Path, seed: int) -> "pd.DataFrame":
    """``root/<identity>/<image>``, or deeper: an identity is the path of the folder that its images lie in.

    Links to folders and files are followed. What is left out is counted in ``attrs["left out"]``, by reason: hidden
    files, folders of the system, files that Pillow does not open by their suffix, broken links.

    Raises:
        FileNotFoundError: if there are no images, or no folders with images.
        ValueError: if the folders look like splits rather than identities, a folder with images lies in another one,
            or one file has two identities.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"root is {str(root)!r}, which is no folder; expected {root}/<identity>/<image>.")
    left_out: Counter[str] = Counter()
    found = []
    for path in _files_below(root):
        reason = why_no_image(path)
        if reason is None:
            found.append(path)
        else:
            left_out[reason] += 1
    found.sort()
    for path in found:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise ValueError(f"{str(path).encode(errors='replace')!r} is no name in UTF-8; rename it.") from None
    loose = [path for path in found if path.parent == root]
    if not found or loose:
        first = f"the first that lies elsewhere is {loose[0]}" if loose else "no image was found"
        raise FileNotFoundError(f"{root} has not the layout <identity>/<image>: {first}; make one folder an identity.")
    inside = [path.parent.relative_to(root) for path in found]
    top = {folder.parts[0].lower() for folder in inside}
    splits = (top | {part.lower() for folder in inside for part in folder.parts[:-1]}) & _SPLITS
    if len(splits) > 1 or top <= _SPLITS:
        raise ValueError(
            f"root is {str(root)!r}, whose folders are {', '.join(sorted(splits))}: splits, not identities. Give one "
            "of them as root, or list the images in a table with a column split."
        )
    folders = set(inside)
    if inner := sorted(folder for folder in folders if folders & set(folder.parents)):
        outer = next(folder for folder in inner[0].parents if folder in folders)
        raise ValueError(
            f"{root / outer} has images, and so has {root / inner[0]}, {len(inner)} such folders in all: one identity, "
            "or several? Move the images into one of them, or list them in a table."
        )
    # Below what is called like a split; elsewhere a name may come again, as in cats/white and dogs/white.
    parted = {folder.name for folder in folders if _SPLITS & set(re.split("[^a-z]+", str(folder.parent).lower()))}
    named = Counter(folder.name for folder in folders)
    if twice := sorted(name for name in parted if named[name] > 1):
        first, other, *_ = sorted(folder for folder in folders if folder.name == twice[0])
        warnings.warn(
            f"{len(twice)} names of folders stand in several places, such as {first} and {other}: these are identities "
            "of their own. Where they are one, move their images into one folder.",
            stacklevel=3,
        )
    rows = [(path, folder.as_posix(), "", UNKNOWN_CAMERA) for path, folder in zip(found, inside, strict=True)]
    check_rows(rows, [str(path) for path in found], str(root))
    table = make_table(rows)
    table.attrs["left out"] = dict(left_out)
    return table


def _files_below(root: Path) -> Iterator[Path]:
    """Every file below a folder that is not hidden, through links too; a folder that links to one above it, once."""

    def walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
        real = os.path.realpath(folder)
        if real in above:
            return
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.name.startswith(".") and path.name.lower() not in SYSTEM_FOLDERS:
                yield from walk(path, above | {real})
            else:
                yield path
        if not any(folder.iterdir()):
            yield folder  # empty

    return walk(root, frozenset())
