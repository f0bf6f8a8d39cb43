"""CUHK03 as its makers packed it: all images in one MATLAB file, the new protocol in another."""
# h5py is typed more loosely than it behaves:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bonlib.core.checks import needs_extra
from bonlib.core.paths import data_dir, make_folder
from bonlib.datasets.benchmarks.layout import base
from bonlib.datasets.tables import Row, make_table

if TYPE_CHECKING:
    import pandas as pd

RELEASE = "cuhk03_release/cuhk-03.mat"
_PARTS = {"train_idx": "train", "query_idx": "query", "gallery_idx": "gallery"}


def read_release(root: Path, boxes: str) -> "pd.DataFrame":
    """The new protocol on ``cuhk03_release/cuhk-03.mat``, whose images are unpacked on first use.

    They go below :func:`~bonlib.core.paths.data_dir`, some 14,000 files.

    Args:
        root: folder of the release, with the protocol's ``cuhk03_new_protocol_config_….mat`` in it.
        boxes: ``"labeled"`` or ``"detected"``.

    Raises:
        FileNotFoundError: if a file is missing.
        ModuleNotFoundError: if h5py is not installed.
    """
    from scipy.io import loadmat

    protocol = f"cuhk03_new_protocol_config_{boxes}.mat"
    folder = base(root, [RELEASE, protocol], ["cuhk03", "CUHK03"])
    config = loadmat(folder / protocol)
    names = [str(np.squeeze(name)) for name in config["filelist"].flatten()]
    labels = config["labels"].flatten()
    images = _unpack(folder / RELEASE, boxes)

    def rows() -> Iterator[Row]:
        for key, part in _PARTS.items():
            for i in config[key].flatten().astype(int) - 1:  # MATLAB counts from 1
                yield images / names[i], f"{int(labels[i]):04}", part, int(names[i].split("_")[2])

    return make_table(rows())


def _unpack(file: Path, boxes: str) -> Path:
    """Write every image as ``pair_person_view_image.png``, the names of the protocol; returns their folder."""
    folder = data_dir() / "cache" / "cuhk03" / f"{boxes}-{file.stat().st_size}-{file.stat().st_mtime_ns}"
    if folder.exists():
        return folder
    with needs_extra(f"{file}, a MATLAB 7.3 file,"):
        import h5py
    from PIL import Image

    # Written beside and renamed, so that half of the images are never taken for all.
    unfinished = folder.with_name(f".{folder.name}")
    make_folder(unfinished)
    with h5py.File(file) as content:
        for pair, persons in enumerate(content[boxes][0], start=1):
            for person, cells in enumerate(content[persons][:].T, start=1):  # (persons, 10) references
                for number, cell in enumerate(cells, start=1):
                    pixels: Any = content[cell][:].T  # (height, width, 3); MATLAB counts columns first
                    if pixels.ndim == 3:  # else an empty cell: not every person has ten images
                        name = f"{pair}_{person:03}_{1 if number <= 5 else 2}_{number:02}.png"
                        Image.fromarray(pixels).save(unfinished / name)
    unfinished.rename(folder)
    return folder
