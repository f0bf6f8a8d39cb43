"""A table of paths and identities, and the data set that it makes."""
# pandas is typed more loosely than it behaves:
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

import hashlib
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bonlib.datasets.cache import cache_file, cached_arrays, write_cache
from bonlib.datasets.files import BrokenImage, ImageFiles, file_tail
from bonlib.datasets.images import ImageSet
from bonlib.datasets.splits import SPLITS, Split, check_split, split_identities
from bonlib.datasets.transforms import Augmentation, Statistics, make_transform

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
    lines = sorted(f"{identity}\t{part}\t{camera}\t{_tail(path)}" for identity, part, camera, path in rows)
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]


def image_set(
    table: "pd.DataFrame",
    split: Split,
    *,
    size: int | tuple[int, int] = 64,
    color: bool = True,
    augment: Augmentation | None = None,
    statistics: Statistics | None = None,
    validation: float = 0.1,
    seed: int = 0,
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
        validation: share of the training identities set aside for validation, where the table has no such part. With 0
            all are trained on, as published results do, and there is no validation split.
        seed: seed of the splits.
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
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {on_error!r}; allowed are 'raise' and 'skip'.")
    if not 0 <= validation < 1:
        raise ValueError(f"validation is {validation}; give a share of the training identities, 0 to below 1.")
    rows = table[_rows_of(table, split, validation, seed)]
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
    everything = ImageSet(
        images=images,
        labels=torch.from_numpy(np.searchsorted(names, rows["identity"].to_numpy(dtype=str))),
        class_names=names,
        attributes=attributes,
        transform=make_transform(size, augment if split == "train" else None, augment, statistics),
        source=(source or {}) | {"left out": left_out},
        ks=ks,
    )
    if unexpected:
        told = ", ".join(f"{count} ({reason})" for reason, count in unexpected.items())
        first = f"; of {len(rows)} images the first that is broken: {broken[0]}" if broken else ""
        warnings.warn(f"Left out: {told}{first}", LeftOut, stacklevel=2)
    return everything.subset([i for i, line in enumerate(lines) if not line]) if broken else everything


def _rows_of(table: "pd.DataFrame", split: Split, validation: float, seed: int) -> NDArray[np.bool_]:
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
        training = np.unique(identity[counted & (part == "train")])
        held_out = np.random.default_rng(seed).permutation(training)[: round(validation * len(training))]
        part[(part == "train") & np.isin(identity, held_out)] = "validation"
    return counted & np.isin(part, ("test", "query", "gallery") if split == "test" else (split,))


def _decoded(files: ImageFiles, in_memory: bool | None, *, check: bool) -> tuple[Tensor | ImageFiles, list[str]]:
    """The files as a tensor where they fit, and what is wrong with each file, as far as it was looked at."""
    whole = int(np.prod(files.shape)) <= _MOST_IN_MEMORY if in_memory is None else in_memory
    if not (whole or check):
        return files, []
    stamps = [[path, stat.st_size, stat.st_mtime_ns] for path in files.paths for stat in [_stat(path)]]
    options = [_VERSION, files.size, files.color, whole, stamps]

    def make() -> dict[str, NDArray[Any]]:
        images, lines = files.read_all()
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


def _tail(path: str) -> str:
    _stat(path)
    return file_tail(path)


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise FileNotFoundError(
            f"{path} is listed but cannot be found ({error.strerror}); complete the copy."
        ) from error
