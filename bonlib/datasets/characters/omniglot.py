"""Omniglot: an identity is a handwritten character in one of four rotations."""

import hashlib
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bonlib.core.paths import data_dir
from bonlib.datasets.cache import cached_arrays
from bonlib.datasets.files import file_digest, why_no_image
from bonlib.datasets.images import ImageSet
from bonlib.datasets.splits import Split, check_split, seed_of_split, split_groups

SETS = ("images_background", "images_evaluation", "images_background_small1", "images_background_small2")
SIZE = 32  # side of an image, pixels
_TURNS = (0, 90, 180, 270)  # degrees, the field's custom
_VERSION = 1  # raise it when the same files would give other images


def omniglot(
    split: Split = "train",
    *,
    root: str | Path | None = None,
    download: bool = False,
    seed: int = 0,
    split_seed: int | None = None,
) -> ImageSet:
    """Omniglot from zips or folders on the disk: every character known there, times four rotations.

    Takes whatever of the full sets (``images_background``, ``images_evaluation``) and the two minimal ones
    (``images_background_small1``, ``…small2``) is there. A character that stands in several sets is one identity, a
    drawing that does is one image. Whole alphabets are split, with all rotations, in the shares 50, 10 and 40 %.

    Args:
        split: ``"train"``, ``"validation"``, ``"test"`` or ``"all"``.
        root: folder of the sets, as zips or unpacked, or torchvision's ``omniglot-py`` in it; by default ``omniglot/``
            below :func:`~bonlib.core.paths.data_dir`.
        download: fetch the full sets with torchvision first, where they are missing.
        seed: seed of the split.
        split_seed: another name of it, which all data sets have.

    Returns:
        Images 32×32, ink high; ``attributes``: ``alphabet`` (position in ``source["alphabets"]``), ``rotation`` in
        degrees counter-clockwise, and ``drawing``, the number of the person who drew.

    Raises:
        ValueError: if the split is none.
        FileNotFoundError: if no set is in ``root``.

    Source: Lake, Salakhutdinov, Tenenbaum, "Human-level concept learning through probabilistic program induction",
    Science 2015; rotations as classes after Vinyals et al., "Matching networks", 2016.
    """
    check_split(split)
    folder = Path(root).expanduser() if root is not None else data_dir() / "omniglot"
    if download:
        from torchvision.datasets import Omniglot

        for background in (True, False):
            Omniglot(folder, background=background, download=True)
    sets = find_sets(folder)
    if not sets:
        there = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"root is {str(folder)!r}; expected {SETS[2]}.zip and {SETS[3]}.zip, or {SETS[0]} and {SETS[1]}, there is: "
            f"{there}. Get them from github.com/brendenlake/omniglot (folder python/), or give download=True."
        )
    content = [[path.name, digest] for path, digest in set_digests(root)]
    arrays = cached_arrays("cache/omniglot", [_VERSION, content], lambda: _read_all(sets))
    names, alphabets = arrays["characters"].tolist(), arrays["alphabets"].tolist()
    alphabet_of = np.array([alphabets.index(name.split("/")[0]) for name in names])  # (characters,)
    chosen = split_groups(np.bincount(alphabet_of), seed_of_split(seed, split_seed))[split]
    here = np.flatnonzero(np.isin(alphabet_of[arrays["character"]], chosen))
    characters = np.unique(arrays["character"][here])
    turned = np.concatenate([np.rot90(arrays["images"][here], turn, axes=(1, 2)) for turn in range(len(_TURNS))])
    position = np.searchsorted(characters, arrays["character"][here])
    labels = np.concatenate([position * len(_TURNS) + turn for turn in range(len(_TURNS))])
    return ImageSet(
        images=torch.from_numpy(turned).unsqueeze(1),  # (num_samples, 1, 32, 32)
        labels=torch.from_numpy(labels),
        class_names=[f"{names[c]}, {turn}°" for c in characters for turn in _TURNS],
        attributes={
            "alphabet": np.tile(alphabet_of[arrays["character"][here]], len(_TURNS)),
            "rotation": np.repeat(_TURNS, len(here)),
            "drawing": np.tile(arrays["drawing"][here], len(_TURNS)),
        },
        source={"sets": [path.name for path in sets], "alphabets": alphabets},
    )


def set_digests(root: str | Path | None) -> list[tuple[Path, str]]:
    """The sets that are in ``root``, each with what stands for its content."""
    found = find_sets(Path(root).expanduser() if root is not None else data_dir() / "omniglot")
    return [(path, _digest(path)) for path in found]


def _digest(path: Path) -> str:
    if path.is_file():
        return file_digest(str(path))
    files = [file for file in sorted(path.rglob("*.png")) if why_no_image(file) is None]
    lines = [f"{file.relative_to(path).as_posix()} {file_digest(str(file))}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def find_sets(folder: Path) -> list[Path]:
    """The sets of Omniglot in a folder, each as its unpacked folder or its zip; none where there is none."""
    places = [
        place / f"{name}{end}" for name in SETS for place in (folder, folder / "omniglot-py") for end in ("", ".zip")
    ]
    found: dict[str, Path] = {}
    for path in places:
        if path.exists():
            found.setdefault(path.stem, path)
    return list(found.values())


def _read_all(sets: list[Path]) -> dict[str, NDArray[Any]]:
    """Every drawing once, by alphabet, character and number."""
    from PIL import Image

    drawings: dict[tuple[str, str, int], NDArray[np.uint8]] = {}
    for path in sets:
        for (alphabet, character, file), opened in _drawings_in(path):
            number = re.fullmatch(r"\d+_(\d+)\.png", file)
            if number is None:
                raise ValueError(
                    f"{path} holds {file}, which is not named as published (0001_01.png); move it elsewhere."
                )
            key = (alphabet, character, int(number[1]))
            if key not in drawings:
                try:
                    with Image.open(opened) as image:
                        small = image.convert("L").resize((SIZE, SIZE), Image.Resampling.BOX)
                except Exception as error:
                    raise ValueError(f"{path} holds {file}, which cannot be read ({error}); copy it anew.") from error
                drawings[key] = 255 - np.asarray(small)  # ink is black in the files
    if not drawings:
        raise ValueError(f"{', '.join(map(str, sets))} hold no drawings; copy them anew.")
    keys = sorted(drawings)
    characters = sorted({f"{alphabet}/{character}" for alphabet, character, _ in keys})
    place = {name: i for i, name in enumerate(characters)}
    return {
        "images": np.stack([drawings[key] for key in keys]),  # (drawings, 32, 32)
        "character": np.array([place[f"{alphabet}/{character}"] for alphabet, character, _ in keys]),
        "drawing": np.array([number for _, _, number in keys]),
        "characters": np.array(characters),
        "alphabets": np.array(sorted({alphabet for alphabet, _, _ in keys})),
    }


def _drawings_in(path: Path) -> Iterator[tuple[tuple[str, ...], Any]]:
    """``(alphabet, character, file name)`` and an opened file of every drawing of a set."""
    if path.is_dir():
        for file in sorted(path.rglob("*/*/*.png")):  # some unpack a set into a folder of its name
            if file.name.startswith("."):  # macOS adds them
                continue
            with file.open("rb") as opened:
                yield file.parts[-3:], opened
    else:
        try:
            archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is no zip, or damaged ({error}); copy it anew.") from error
        with archive:
            for name in sorted(name for name in archive.namelist() if name.endswith(".png")):
                if name.startswith("__MACOSX") or name.rpartition("/")[2].startswith("."):
                    continue
                with archive.open(name) as opened:
                    yield tuple(name.split("/")[-3:]), opened
