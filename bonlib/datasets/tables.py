"""A table of paths and identities, and the data set that it makes."""
# pandas is typed more loosely than it behaves:
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

import hashlib
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bonlib.core.checks import real_number
from bonlib.datasets.cache import cache_file, cached_arrays, write_cache
from bonlib.datasets.files import BrokenImage, ImageFiles, file_digest
from bonlib.datasets.images import ImageSet
from bonlib.datasets.splits import SPLITS, Split, check_split, seed_of_split, split_identities
from bonlib.datasets.transforms import Augmentation, Statistics, make_transform, to_float

if TYPE_CHECKING:
    import pandas as pd

OnError = Literal["raise", "skip"]


class LeftOut(UserWarning):
    """Files or rows are no part of a data set; the message counts them by reason."""


Row = tuple[Path, str, str, int]  # path, identity, part, camera
JUNK = "\0junk"  # identity of images that are neither counted nor shown; no folder or file can be called so
UNKNOWN_CAMERA = -1
_MOST_IN_MEMORY = 2 * 2**30  # bytes, decoded
_FEWEST = 5  # identities that can be split
_VERSION = 2  # raise it when the same files would be decoded to other pixels


def make_table(rows: Iterable[Row]) -> "pd.DataFrame":
    """Rows of path, identity, part and camera as :func:`image_set` takes them."""
    import pandas as pd

    table = pd.DataFrame(
        [(str(path), identity, part, camera) for path, identity, part, camera in rows],
        columns=["path", "identity", "part", "camera"],
    )
    return table.astype({"camera": int})


def table_fingerprint(table: "pd.DataFrame") -> str:
    """Sixteen hexadecimal digits that stand for a table and the content of its files, wherever these lie."""
    rows = table[["identity", "part", "camera", "path"]].itertuples(index=False)
    lines = sorted(f"{identity}\t{part}\t{camera}\t{_content(path)}" for identity, part, camera, path in rows)
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]


def image_set(
    table: "pd.DataFrame",
    split: Split,
    *,
    size: int | tuple[int, int] = 64,
    color: bool = True,
    augment: Augmentation | None = None,
    statistics: Statistics | None = None,
    validation: float | None = None,
    seed: int = 0,
    split_seed: int | None = None,
    in_memory: bool | None = None,
    on_error: OnError = "raise",
    source: dict[str, Any] | None = None,
    ks: tuple[int, ...] = (1, 2, 4, 8),
) -> ImageSet:
    """A split of the images that a table lists.

    Args:
        table: one row an image: ``path``, ``identity`` (text), ``part`` (``"train"``, ``"validation"``, ``"test"``,
            ``"query"``, ``"gallery"``, or empty, for identities to be split here in the shares 50, 10 and 40 %) and
            ``camera`` (an integer, -1 for unknown). Its ``attrs["left out"]`` may count what its reader left out.
        split: ``"train"``, ``"validation"``, ``"test"`` or ``"all"``.
        size: see :class:`~bonlib.datasets.files.ImageFiles`.
        color: three channels, otherwise one.
        augment: random changes of training images, see :func:`~bonlib.datasets.transforms.make_transform`.
        statistics: ``"imagenet"`` for pretrained backbones; ``None`` leaves values in 0 to 1.
        validation: share of the training identities set aside for validation, where the table has a part for training
            and none for validation; a tenth by default. With 0 all are trained on, as published results do, and there
            is no validation split.
        seed: seed of the splits.
        split_seed: of the splits alone, where the reader of the table has drawn with ``seed`` too; by default it.
        in_memory: decode once into a uint8 cache; by default where that takes less than 2 GiB.
        on_error: ``"skip"`` leaves out images that cannot be read, with a warning that counts them.
        source: where the images are from.
        ks: ranks of recall to report.

    Returns:
        The images; ``attributes``: ``path``, ``camera``, and in a test split with query and gallery ``query``;
        ``source["left out"]`` counts by reason what was left out of the table or of this split.

    Raises:
        ValueError: if the split is empty or an option is out of its range.
        BrokenImage: if an image cannot be read and ``on_error`` is ``"raise"``.
    """
    check_split(split)
    if statistics is not None and not color:
        raise ValueError(f"statistics is {statistics!r} and color False; ImageNet's statistics are of three channels.")
    check_on_error(on_error)
    for name, value in (("color", color), ("in_memory", in_memory)):
        if value not in (True, False) and not (name == "in_memory" and value is None):
            raise ValueError(f"{name} is {value!r}; allowed are True and False.")
    share = 0.1 if validation is None else real_number("validation", validation, 0, 0.99)
    if validation is not None and (table["part"] == "").any():
        raise ValueError(
            f"validation is {validation}, but identities without a split are split 50, 10 and 40 %; leave it out, or "
            "give a table with a column split."
        )
    check_parts(table)
    rows = table[rows_of(table, split, share, seed_of_split(seed, split_seed))]
    if rows.empty:
        cure = "give validation above 0" if split == "validation" else "look at the table or folder"
        raise ValueError(f"The split {split!r} has no images; {cure}.")
    rows = rows.sort_values(["identity", "part", "path"], kind="stable")
    files = ImageFiles(rows["path"].tolist(), size, color)
    images, lines = _decoded(files, in_memory, check=on_error == "skip")
    broken = [line for line in lines if line]
    left_out = table.attrs.get("left out", {}) | ({"broken": len(broken)} if broken else {})
    unexpected = {reason: count for reason, count in left_out.items() if reason not in ("hidden", "of the system")}
    if broken and on_error == "raise":
        raise BrokenImage(broken[0])
    names = sorted(rows["identity"].unique())
    attributes: dict[str, NDArray[Any]] = {
        "path": rows["path"].to_numpy(dtype=object),
        "camera": np.array(rows["camera"], dtype=np.int64),  # pandas may give an array that cannot be written
    }
    if split == "test" and (rows["part"] == "query").any():
        attributes["query"] = np.array(rows["part"] == "query", dtype=bool)
    augmented = augment is not None and split == "train"
    plain_transform = make_transform(size, None, augment, statistics)
    everything = ImageSet(
        images=images,
        labels=torch.from_numpy(np.searchsorted(names, rows["identity"].to_numpy(dtype=str))),
        class_names=names,
        attributes=attributes,
        transform=make_transform(size, augment, augment, statistics) if augmented else plain_transform,
        plain_transform=(plain_transform or to_float) if augmented else None,
        source=(source or {}) | {"left out": left_out},
        ks=ks,
    )
    if len(broken) == len(rows):
        raise BrokenImage(f"No image of {len(rows)} can be read; the first: {broken[0]}")
    if unexpected:
        told = ", ".join(f"{count} ({reason})" for reason, count in unexpected.items())
        first = f"; of {len(rows)} images the first that is broken: {broken[0]}" if broken else ""
        warnings.warn(f"Left out: {told}{first}", LeftOut, stacklevel=2)
    return everything.subset([i for i, line in enumerate(lines) if not line]) if broken else everything


def check_on_error(on_error: OnError) -> None:
    """Refuse what is no way to go on.

    Raises:
        ValueError: if it is neither ``"raise"`` nor ``"skip"``.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {on_error!r}; allowed are 'raise' and 'skip'.")


def check_parts(table: "pd.DataFrame") -> None:
    """Refuse parts that no protocol has.

    Raises:
        ValueError: if a name is none, or query and gallery do not come together and by themselves.
    """
    parts = set(table["part"])
    if wrong := parts - {"", "train", "validation", "test", "query", "gallery"}:
        raise ValueError(f"A part is called {sorted(wrong)[0]!r}; allowed are train, validation, test, query, gallery.")
    if ("query" in parts) != ("gallery" in parts):
        there, lacking = ("query", "gallery") if "query" in parts else ("gallery", "query")
        raise ValueError(
            f"There are images of the part {there} and none of {lacking}; a test needs both, or call it test."
        )
    if "query" in parts and "test" in parts:
        raise ValueError(
            "There are images of the parts test and query; a test is either each against all, or query to gallery."
        )


def check_rows(rows: Sequence[Row], places: Sequence[str], source: str) -> None:
    """One file is one image of one identity in one part, and an identity is on one side.

    Args:
        rows: of the table.
        places: where each row stands, for the message.
        source: what holds them, for the message.

    Raises:
        ValueError: if a file is listed twice, or an identity is in training as well as in test; it names both places.
    """
    of_file: dict[Any, int] = {}
    of_identity: dict[str, int] = {}
    for row, (path, identity, part, _) in enumerate(rows):
        first = of_file.setdefault(_which_file(path), row)
        if first != row:
            other, there = rows[first][1], rows[first][2]
            what = f"under another identity, {identity!r} and {other!r}" if identity != other else (
                f"in {part} and in {there}" if part != there else "again"
            )  # fmt: skip
            raise ValueError(
                f"{source} lists one file {what}: {places[first]} and {places[row]} ({path}); keep one of them."
            )
        if identity == JUNK or not part:
            continue
        first = of_identity.setdefault(identity, row)
        if _side(part) != _side(rows[first][2]):
            raise ValueError(
                f"{source} has the identity {identity!r} in {rows[first][2]} ({places[first]}) and in {part} "
                f"({places[row]}); identities of training, validation and test must differ."
            )


def _which_file(path: Path) -> Any:
    """What two paths to one file share, through links of both kinds."""
    try:
        found = os.stat(path)
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


def _side(part: str) -> str:
    return "test" if part in ("query", "gallery") else part


def rows_of(table: "pd.DataFrame", split: Split, validation: float, seed: int) -> NDArray[np.bool_]:
    """Which rows belong to a split, ``(rows,)``."""
    identity = table["identity"].to_numpy(dtype=str)
    part = np.array(table["part"], dtype=object)  # not of fixed width: longer names will be put in
    counted = identity != JUNK
    if split == "all":
        return counted
    unsplit, images = np.unique(identity[counted & (part == "")], return_counts=True)
    if len(unsplit) and (images > 1).sum() < _FEWEST:
        raise ValueError(
            f"There are {(images > 1).sum()} identities with two images or more; give at least {_FEWEST}, so that each "
            "split has one, or a table with a column split."
        )
    for group in (unsplit[images > 1], unsplit[images == 1]):  # single images find nothing; each split gets its share
        for name, chosen in split_identities(len(group), seed).items():
            if name in SPLITS:
                part[(part == "") & np.isin(identity, group[chosen])] = name
    if not len(unsplit) and "validation" not in part:
        training, images = np.unique(identity[counted & (part == "train")], return_counts=True)
        rng = np.random.default_rng(seed)
        for group in (training[images > 1], training[images == 1]):  # as above
            count = round(validation * len(group)) or int(validation > 0 and len(group) > 1)
            held_out = rng.permutation(group)[:count]
            part[(part == "train") & np.isin(identity, held_out)] = "validation"
    return counted & np.isin(part, ("test", "query", "gallery") if split == "test" else (split,))


def _decoded(files: ImageFiles, in_memory: bool | None, *, check: bool) -> tuple[Tensor | ImageFiles, list[str]]:
    """The files as a tensor where they fit, and what is wrong with each file, as far as it was looked at."""
    from PIL import ImageFile

    whole = int(np.prod(files.shape)) <= _MOST_IN_MEMORY if in_memory is None else in_memory
    if not (whole or check):
        return files, []
    # The change of the entry too: files that change places, or come out of an archive, keep their time.
    stamps = [
        [path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for path in files.paths for stat in [_stat(path)]
    ]
    options = [_VERSION, files.size, files.color, whole, stamps, [ImageFile.LOAD_TRUNCATED_IMAGES]]

    def make() -> dict[str, NDArray[Any]]:
        images, lines = files.read_all(keep=whole)
        return {"lines": np.array(lines, dtype=object).astype(str)} | ({"images": images.numpy()} if whole else {})

    kept = cached_arrays("cache/files", options, make)
    lines = kept["lines"].tolist()
    if healed := _read_again(files, lines, kept.get("images")):
        write_cache(cache_file("cache/files", options), kept | {"lines": np.array(healed)})
    return torch.from_numpy(kept["images"]) if whole else files, healed or lines


def _read_again(files: ImageFiles, lines: list[str], images: NDArray[np.uint8] | None) -> list[str]:
    """Try once more what could not be read when the cache was made; new lines, or none where nothing has changed.

    Whether Pillow can read a file also depends on its version, plugins and settings, which the cache does not know.
    """
    found = list(lines)
    for i in (i for i, line in enumerate(lines) if line):
        try:
            pixels = files[i].numpy()
        except BrokenImage as error:
            found[i] = str(error)
            continue
        found[i] = ""
        if images is not None:
            images[i] = pixels
    return found if found != lines else []


def _content(path: str) -> str:
    _stat(path)
    return file_digest(path)


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise FileNotFoundError(
            f"{path} is listed but cannot be found ({error.strerror}); complete the copy."
        ) from error
