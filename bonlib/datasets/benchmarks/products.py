"""Benchmarks of product, bird and car retrieval, as their makers published them: a folder in, a table out."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bonlib.datasets.benchmarks.layout import base, read_lines, split_lines
from bonlib.datasets.tables import UNKNOWN_CAMERA, Row, make_table

if TYPE_CHECKING:
    import pandas as pd


def online_products(root: Path, seed: int) -> "pd.DataFrame":
    """Stanford Online Products: ``Ebay_train.txt`` and ``Ebay_test.txt`` list the images, classes are disjoint.

    Source: Song et al., "Deep metric learning via lifted structured feature embedding", 2016.
    """
    folder = base(root, ["Ebay_train.txt", "Ebay_test.txt"], ["Stanford_Online_Products"])

    def rows() -> Iterator[Row]:
        for part in ("train", "test"):
            listed = folder / f"Ebay_{part}.txt"
            if not read_lines(listed)[0].startswith("image_id"):
                raise ValueError(f"{listed} does not begin with the names of its columns, as published; copy it anew.")
            for _, product, _, image in split_lines(listed, 4, header=True):
                yield folder / image, product, part, UNKNOWN_CAMERA

    return make_table(rows())


def birds(root: Path, seed: int) -> "pd.DataFrame":
    """CUB-200-2011: the first 100 classes train, the last 100 test.

    Source: Wah et al., "The Caltech-UCSD Birds-200-2011 dataset", 2011; the split is the metric learning field's.
    """
    folder = base(root, ["images.txt", "image_class_labels.txt", "images"], ["CUB_200_2011"])
    species = dict(split_lines(folder / "image_class_labels.txt", 2))

    def rows() -> Iterator[Row]:
        for number, image in split_lines(folder / "images.txt", 2):
            if number not in species:
                raise ValueError(f"{folder / 'image_class_labels.txt'} has no class of image {number}; copy it anew.")
            part = "train" if int(species[number]) <= 100 else "test"
            yield folder / "images" / image, Path(image).parent.name, part, UNKNOWN_CAMERA

    return make_table(rows())


def cars(root: Path, seed: int) -> "pd.DataFrame":
    """Cars-196: the first 98 classes train, the last 98 test.

    Reads the makers' ``cars_annos.mat`` and ``car_ims/``, or the copy sorted by classes (``names.csv``,
    ``anno_train.csv``, ``anno_test.csv``, ``car_data/``).

    Source: Krause et al., "3D object representations for fine-grained categorization", 2013; the split is the metric
    learning field's.
    """
    if (root / "names.csv").exists():
        lists = [f"anno_{part}.csv" for part in ("train", "test")]
        folder = base(root, [*lists, "car_data/car_data"])
        names = [name.replace("/", "-") for name in read_lines(root / "names.csv")]
        found = [
            (folder / "car_data/car_data" / part / names[int(line.split(",")[-1]) - 1] / line.split(",")[0],
             int(line.split(",")[-1]))
            for part in ("train", "test") for line in read_lines(root / f"anno_{part}.csv")
        ]  # fmt: skip
    else:
        from scipy.io import loadmat

        folder = base(root, ["cars_annos.mat", "car_ims"])
        lines = loadmat(folder / "cars_annos.mat", squeeze_me=True)["annotations"]
        found = [(folder / str(line["relative_im_path"]), int(line["class"])) for line in lines]
    return make_table(
        (path, f"{model:03}", "train" if model <= 98 else "test", UNKNOWN_CAMERA) for path, model in found
    )


def in_shop(root: Path, seed: int) -> "pd.DataFrame":
    """In-Shop Clothes Retrieval: ``Eval/list_eval_partition.txt`` says what trains, queries and is searched.

    Source: Liu et al., "DeepFashion: powering robust clothes recognition and retrieval with rich annotations", 2016.
    """
    list_file = "Eval/list_eval_partition.txt"
    folder = base(root, [list_file, "Img"], ["In-shop Clothes Retrieval Benchmark", "In-shop", "In_shop"])
    lines = split_lines(folder / list_file)
    count, rows = "".join(lines[0]) if lines else "none", lines[2:]
    if count != str(len(rows)):
        raise ValueError(f"{folder / list_file} announces {count} images and lists {len(rows)}; copy it anew.")
    if wrong := [row for row in rows if len(row) != 3]:
        raise ValueError(f"{folder / list_file} has the line {' '.join(wrong[0])!r}; published are three words.")
    return make_table((folder / "Img" / image, item, part, UNKNOWN_CAMERA) for image, item, part in rows)
