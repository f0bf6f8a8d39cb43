"""What :func:`~bonlib.datasets.load_dataset` reads from files, and where each data set comes from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bonlib.core.checks import whole_number
from bonlib.core.paths import data_dir
from bonlib.datasets import folders, own
from bonlib.datasets.benchmarks import persons, products
from bonlib.datasets.benchmarks.layout import check_counts as compare_counts
from bonlib.datasets.images import ImageSet
from bonlib.datasets.splits import Split
from bonlib.datasets.tables import check_rows, image_set, table_fingerprint

if TYPE_CHECKING:
    import pandas as pd

_RESEARCH = "research; see its page"
_PERSON = {"size": (256, 128), "augment": "crop", "ks": (1, 5, 10, 20)}
_PRODUCT = {"size": 256, "augment": "resized-crop"}


@dataclass(frozen=True)
class Benchmark:
    """A data set in files."""

    what: str
    read: Callable[[Path, int], "pd.DataFrame"]  # from root and seed
    published: dict[str, tuple[int, int]] = field(default_factory=dict)  # part → images, identities
    licence: str = _RESEARCH
    get: str = ""
    defaults: dict[str, Any] = field(default_factory=dict)  # of image_set: the field's custom

    @property
    def sizes(self) -> tuple[int | None, int | None]:
        """Identities and images in all, where published; junk and distractors of a gallery are no identities."""
        if not self.published:
            return None, None
        shown = [part for part in ("all", "train", "test", "query") if part in self.published]
        return sum(self.published[part][1] for part in shown), sum(images for images, _ in self.published.values())


BENCHMARKS: dict[str, Benchmark] = {
    "online-products": Benchmark(
        "Stanford Online Products: product photos from a marketplace", products.online_products,
        {"train": (59_551, 11_318), "test": (60_502, 11_316)}, _RESEARCH,
        "github.com/rksltnl/Deep-Metric-Learning-CVPR16 names the archive",
        _PRODUCT | {"ks": (1, 10, 100, 1000)},
    ),
    "in-shop": Benchmark(
        "In-Shop Clothes Retrieval (DeepFashion): query and gallery", products.in_shop,
        {"train": (25_882, 3_997), "query": (14_218, 3_985), "gallery": (12_612, 3_985)}, _RESEARCH,
        "mmlab.ie.cuhk.edu.hk/projects/DeepFashion.html, after signing an agreement",
        _PRODUCT | {"ks": (1, 10, 20, 30)},
    ),
    "cub200": Benchmark(
        "CUB-200-2011: birds", products.birds, {"train": (5_864, 100), "test": (5_924, 100)}, _RESEARCH,
        "data.caltech.edu/records/65de6-vp158", _PRODUCT,
    ),
    "cars196": Benchmark(
        "Cars-196: cars by model and year", products.cars, {"train": (8_054, 98), "test": (8_131, 98)}, _RESEARCH,
        "its page is gone; copies exist, such as the one pytorch-metric-learning reads", _PRODUCT,
    ),
    "market1501": Benchmark(
        "Market-1501: persons, 6 cameras", persons.market1501,
        {"train": (12_936, 751), "query": (3_368, 750), "gallery": (19_732, 752)}, _RESEARCH,
        "zheng-lab.cecs.anu.edu.au/Project/project_reid.html", _PERSON,
    ),
    "dukemtmc": Benchmark(
        "DukeMTMC-reID: persons, 8 cameras", persons.duke,
        {"train": (16_522, 702), "query": (2_228, 702), "gallery": (17_661, 1_110)}, "withdrawn by its makers",
        "no longer offered by its makers; read where you have it", _PERSON,
    ),
    "msmt17": Benchmark(
        "MSMT17: persons, 15 cameras", persons.msmt17,
        {"train": (32_621, 1_041), "query": (11_659, 3_060), "gallery": (82_161, 3_060)}, _RESEARCH,
        "pkuvmc.com/dataset.html, after signing an agreement", _PERSON,
    ),
    "cuhk01": Benchmark(
        "CUHK01: persons, 2 cameras", persons.cuhk01, {"all": (3_884, 971)}, _RESEARCH,
        "ee.cuhk.edu.hk/~xgwang/CUHK_identification.html, on request", _PERSON,
    ),
    "cuhk02": Benchmark(
        "CUHK02: persons, 5 pairs of cameras", persons.cuhk02, {"all": (7_264, 1_816)}, _RESEARCH,
        "ee.cuhk.edu.hk/~xgwang/CUHK_identification.html, on request", _PERSON,
    ),
    "cuhk03": Benchmark(
        "CUHK03, new protocol, hand-labelled boxes", persons.cuhk03,
        {"train": (7_368, 767), "query": (1_400, 700), "gallery": (5_328, 700)}, _RESEARCH,
        "github.com/zhunzhong07/person-re-ranking, folder CUHK03-NP", _PERSON,
    ),
    "cuhk03-detected": Benchmark(
        "CUHK03, new protocol, detected boxes", persons.cuhk03_detected,
        {"train": (7_365, 767), "query": (1_400, 700), "gallery": (5_332, 700)}, _RESEARCH,
        "github.com/zhunzhong07/person-re-ranking, folder CUHK03-NP", _PERSON,
    ),
    "viper": Benchmark(
        "VIPeR: persons, 2 cameras, 2 images each", persons.viper, {"all": (1_264, 632)}, _RESEARCH,
        "vision.soe.ucsc.edu/node/178", _PERSON,
    ),
    "3dpes": Benchmark(
        "3DPeS: persons, 8 cameras", persons.pes3d, {"all": (1_011, 192)}, _RESEARCH,
        "openvisor.org/3dpes.asp", _PERSON,
    ),
    "folder": Benchmark(
        "any folder of images: root/<identity>/<image>", folders.image_folder, {}, "yours", "give root"
    ),
    "table": Benchmark(
        "any CSV or parquet file: path, identity, perhaps camera and split", own.image_table, {}, "yours",
        "give root",
    ),
}  # fmt: skip
PERSONS = tuple(name for name, entry in BENCHMARKS.items() if entry.defaults is _PERSON)


def load_files(
    name: str, split: Split, *, root: str | Path | None = None, seed: int = 0, check_counts: bool = True, **options: Any
) -> ImageSet:
    """A split of a benchmark, a folder or a table.

    Args:
        name: one of ``BENCHMARKS``.
        split: ``"train"``, ``"validation"``, ``"test"`` or ``"all"``.
        root: where its files are; by default a folder of its name below :func:`~bonlib.core.paths.data_dir`.
        seed: of what the benchmark leaves to chance, and of the choice of validation identities.
        check_counts: compare the numbers of images and identities with the published ones.
        **options: of :func:`~bonlib.datasets.tables.image_set`; by default sizes and augmentation are
            the field's custom.

    Raises:
        FileNotFoundError: if the layout is not the published one.
        ValueError: if the numbers are not the published ones, or root is needed.
    """
    table = _read(name, root, seed, check_counts)
    return image_set(table, split, seed=seed, source={"benchmark": name}, **custom_options(name) | options)


def custom_options(name: str) -> dict[str, Any]:
    """Options of :func:`~bonlib.datasets.tables.image_set` that are the custom on a benchmark; none for other sets."""
    return _PERSON if name == "combined-persons" else BENCHMARKS[name].defaults if name in BENCHMARKS else {}


def files_fingerprint(name: str, root: str | Path | None, seed: int = 0) -> str:
    """Sixteen hexadecimal digits that stand for the files of a set below ``root``, not for where they lie."""
    return table_fingerprint(_read(name, root, seed, check=False))


def combined_persons(
    split: Split,
    *,
    root: str | Path | None = None,
    parts: Sequence[str] | Mapping[str, str] | None = None,
    seed: int = 0,
    check_counts: bool = True,
    **options: Any,
) -> ImageSet:
    """Several benchmarks of person re-identification as one; identities and cameras are told apart.

    Args:
        split: ``"train"``, ``"validation"``, ``"test"`` or ``"all"``.
        root: folder that holds one folder a benchmark, by name; by default :func:`~bonlib.core.paths.data_dir`.
        parts: names of the benchmarks, or a mapping from names to folders; by default those found in ``root``.
        seed: as in :func:`load_files`.
        check_counts: as in :func:`load_files`.
        **options: of :func:`~bonlib.datasets.tables.image_set`.

    Raises:
        ValueError: if fewer than two benchmarks are named or found.
    """
    roots = person_folders(root, parts)
    table = persons.combined({name: _read(name, folder, seed, check_counts) for name, folder in roots.items()})
    return image_set(
        table,
        split,
        seed=seed,
        source={"benchmark": "combined", "parts": list(roots)},
        **custom_options("combined-persons") | options,
    )


def person_folders(
    root: str | Path | None = None, parts: Sequence[str] | Mapping[str, str] | None = None
) -> dict[str, Path]:
    """Folders of the benchmarks that :func:`combined_persons` joins, by name; arguments are its own.

    Raises:
        ValueError: if fewer than two benchmarks are named or found.
    """
    folder = data_dir() if root is None else Path(root).expanduser()
    names = [name for name in PERSONS if (folder / name).is_dir()] if parts is None else list(parts)
    if len(names) < 2 or not set(names) <= set(PERSONS):
        raise ValueError(
            f"parts is {names}, in {folder}; give two or more of {', '.join(PERSONS)}, each a folder there, or a "
            "mapping from names to folders."
        )
    return {name: Path(parts[name]).expanduser() if isinstance(parts, Mapping) else folder / name for name in names}


def _read(name: str, root: str | Path | None, seed: int, check: bool) -> "pd.DataFrame":
    entry = BENCHMARKS[name]
    if root is None and not entry.published:
        raise ValueError(f"root is None; {name!r} needs one: {entry.what}.")
    folder = data_dir() / name if root is None else Path(root).expanduser()
    seed = whole_number("seed", seed, 0)
    try:
        table = entry.read(folder, seed)
    except ImportError:
        raise
    except Exception as error:  # whatever a damaged list or archive leads to
        if str(folder) in str(error):
            raise
        raise ValueError(
            f"{name} below {folder} is not as published, or damaged ({type(error).__name__}: {error}); copy it anew."
        ) from error
    if entry.published:  # those of users have looked themselves, and know the rows
        columns = [table[name].tolist() for name in ("path", "identity", "part", "camera")]
        rows = list(zip(map(Path, columns[0]), *columns[1:], strict=True))
        check_rows(rows, table["path"].tolist(), str(folder))
    if check:
        compare_counts(table, entry.published, name)
    return table
