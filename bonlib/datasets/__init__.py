"""Data sets by name."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from bonlib.datasets.catalog import BENCHMARKS, PERSONS, combined_persons, load_files
from bonlib.datasets.glyphs import Glyphs
from bonlib.datasets.images import ImageSet
from bonlib.datasets.omniglot import find_sets, omniglot
from bonlib.datasets.scripts import HANGUL, IDEOGRAPHS, cjk, find_faces, hangul
from bonlib.paths import data_dir

if TYPE_CHECKING:
    import pandas as pd

_DATASETS: dict[str, Callable[..., ImageSet]] = {
    "glyphs": Glyphs,
    "hangul": hangul,
    "cjk": cjk,
    "omniglot": omniglot,
    **{name: partial(load_files, name) for name in BENCHMARKS},
    "combined-persons": combined_persons,
}


def load_dataset(name: str, split: str, **options: Any) -> ImageSet:
    """Load a split of a data set.

    Args:
        name: one of the names in :func:`list_datasets`.
        split: ``"train"``, ``"validation"``, ``"test"`` or ``"all"``; identities of different splits are disjoint.
        **options: of the data set: ``draws``, ``fonts`` … of :class:`~bonlib.datasets.glyphs.Glyphs`, ``root`` and
            those of :func:`~bonlib.datasets.from_table.image_set` for sets in files.

    Raises:
        ValueError: if the name is not known.
        FileNotFoundError: if the files or fonts are not there; the message says how to get them.
    """
    if name not in _DATASETS:
        raise ValueError(f"name is {name!r}; allowed are {', '.join(map(repr, _DATASETS))}.")
    return _DATASETS[name](split, **options)


def list_datasets() -> "pd.DataFrame":
    """Every data set by name: ``what`` it is, ``identities``, ``images``, ``licence``, how to ``get`` it, ``here``.

    ``here`` tells whether it can be loaded now: drawn from fonts, or from its default folder below
    :func:`~bonlib.paths.data_dir`, which is looked for, not read. Sizes of drawn sets depend on the fonts.
    """
    import pandas as pd

    drawn = [
        ("glyphs", "characters in the faces that matplotlib ships", 3198, 77_574, "free fonts", "comes with it", True),
        ("hangul", "Korean syllables in 16 installed faces", 11_172, 152_415, "free fonts", "font packages",
         len(find_faces(HANGUL, least=len(HANGUL))) >= 16),
        ("cjk", "Chinese characters in 6 to 16 installed faces", 17_611, 170_573, "free fonts", "font packages",
         len(find_faces(IDEOGRAPHS, least=5000)) >= 6),
        ("omniglot", "handwritten characters in four rotations", 6492, 129_840, "MIT",
         "github.com/brendenlake/omniglot, or download=True", bool(find_sets(data_dir() / "omniglot"))),
    ]  # fmt: skip
    stored = [
        (
            name,
            entry.what,
            *entry.sizes,
            entry.licence,
            entry.get,
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
    columns = ["name", "what", "identities", "images", "licence", "get", "here"]
    table = pd.DataFrame([*drawn, *stored, joint], columns=columns).set_index("name")
    return table.astype({"identities": "Int64", "images": "Int64"})
