"""The user's own images: a folder of identities, or a table of paths."""
# pandas is typed more loosely than it behaves:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from pathlib import Path
from typing import TYPE_CHECKING

from bonlib.datasets.from_table import UNKNOWN_CAMERA
from bonlib.datasets.layout import IMAGES, make_table

if TYPE_CHECKING:
    import pandas as pd

_PARTS = ("train", "validation", "test", "query", "gallery")


def image_folder(root: Path, seed: int) -> "pd.DataFrame":
    """``root/<identity>/<image>``, or deeper: an identity is the path of the folder that its images lie in.

    Raises:
        FileNotFoundError: if there are no images, or no folders with images.
        ValueError: if the folders look like splits rather than identities.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"root is {str(root)!r}, which is no folder; expected {root}/<identity>/<image>.")
    found = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in IMAGES and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    loose = [path for path in found if path.parent == root]
    if not found or loose:
        first = f"the first that lies elsewhere is {loose[0]}" if loose else "no image was found"
        raise FileNotFoundError(f"{root} has not the layout <identity>/<image>: {first}; make one folder an identity.")
    top = {path.relative_to(root).parts[0].lower() for path in found}
    if top <= {"train", "val", "valid", "validation", "test"}:
        raise ValueError(
            f"root is {str(root)!r}, whose folders are {', '.join(sorted(top))}: splits, not identities. Give one of "
            "them as root, or list the images in a table with a column split."
        )
    return make_table((path, path.parent.relative_to(root).as_posix(), "", UNKNOWN_CAMERA) for path in found)


def image_table(root: Path, seed: int) -> "pd.DataFrame":
    """A CSV or parquet file with the columns path, identity, and perhaps camera and split.

    Paths are relative to the file's folder, or absolute. A split is ``train``, ``validation``, ``test``, ``query`` or
    ``gallery``; without that column the identities are split in the shares 50, 10 and 40 %. Parquet needs pyarrow.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a column is missing, or a value is not one of those.
    """
    import pandas as pd

    if not root.is_file():
        raise FileNotFoundError(f"root is {str(root)!r}, which is no file; expected a .csv or .parquet file.")
    if root.suffix == ".parquet":
        given = pd.read_parquet(root)
    else:
        given = pd.read_csv(root, dtype={"path": str, "identity": str, "split": str}, keep_default_na=False)
    if missing := {"path", "identity"} - set(given.columns):
        raise ValueError(f"{root} has the columns {list(given.columns)}; missing: {', '.join(sorted(missing))}.")
    parts = given["split"].astype(str) if "split" in given else pd.Series("", index=given.index)
    if wrong := sorted(set(parts) - {*_PARTS, ""}):
        raise ValueError(f"{root} has the split {wrong[0]!r}; allowed are {', '.join(_PARTS)}.")
    if (parts == "").any() and (parts != "").any():
        row = int((parts == "").to_numpy().argmax())
        raise ValueError(f"{root} has no split in data row {row + 1}; fill the column or leave it out.")
    for column in ("path", "identity"):
        if (empty := given[column].astype(str).str.strip() == "").any():
            raise ValueError(f"{root} has no {column} in data row {int(empty.to_numpy().argmax()) + 1}.")
    cameras = pd.Series(given.get("camera", UNKNOWN_CAMERA), index=given.index)
    try:
        numbers = pd.to_numeric(cameras).astype(int)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{root} has a camera that is no integer ({error}); give numbers, -1 for unknown.") from error
    paths = [root.parent / path for path in given["path"].astype(str)]
    return make_table(zip(paths, given["identity"].astype(str), parts, numbers, strict=True))
