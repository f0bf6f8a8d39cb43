"""Benchmarks of product, bird and car retrieval, as their makers published them: a folder in, a table out."""

from pathlib import Path
from typing import TYPE_CHECKING

from bonlib.datasets.layout import base, make_table, without_camera

if TYPE_CHECKING:
    import pandas as pd


def online_products(root: Path, seed: int) -> "pd.DataFrame":
    """Stanford Online Products: ``Ebay_train.txt`` and ``Ebay_test.txt`` list the images, classes are disjoint.

    Source: Song et al., "Deep metric learning via lifted structured feature embedding", 2016.
    """
    from pytorch_metric_learning.datasets import StanfordOnlineProducts

    folder = _named(
        base(root, ["Ebay_train.txt", "Ebay_test.txt"], ["Stanford_Online_Products"]), "Stanford_Online_Products"
    )
    parts = {part: StanfordOnlineProducts(str(folder.parent), split=part) for part in ("train", "test")}
    return make_table(row for part, data in parts.items() for row in without_camera(data.paths, data.labels, part))


def birds(root: Path, seed: int) -> "pd.DataFrame":
    """CUB-200-2011: the first 100 classes train, the last 100 test.

    Source: Wah et al., "The Caltech-UCSD Birds-200-2011 dataset", 2011; the split is the metric learning field's.
    """
    from pytorch_metric_learning.datasets import CUB

    folder = _named(base(root, ["images.txt", "image_class_labels.txt", "images"], ["CUB_200_2011"]), "CUB_200_2011")
    parts = {part: CUB(str(folder.parent), split=part) for part in ("train", "test")}
    return make_table(
        row
        for part, data in parts.items()
        for row in without_camera(data.paths, [Path(path).parent.name for path in data.paths], part)
    )


def cars(root: Path, seed: int) -> "pd.DataFrame":
    """Cars-196: the first 98 classes train, the last 98 test.

    Reads the makers' ``cars_annos.mat`` and ``car_ims/``, or the copy sorted by classes (``names.csv``,
    ``car_data/``) that pytorch-metric-learning reads.

    Source: Krause et al., "3D object representations for fine-grained categorization", 2013; the split is the metric
    learning field's.
    """
    if (root / "names.csv").exists():
        from pytorch_metric_learning.datasets import Cars196

        base(root, ["anno_train.csv", "anno_test.csv", "car_data/car_data"])
        parts = {part: Cars196(str(root), split=part) for part in ("train", "test")}
        return make_table(
            row
            for part, data in parts.items()
            for row in without_camera(data.paths, [f"{label:03}" for label in data.labels], part)
        )
    from scipy.io import loadmat

    folder = base(root, ["cars_annos.mat", "car_ims"])
    lines = loadmat(folder / "cars_annos.mat", squeeze_me=True)["annotations"]
    return make_table(
        row
        for line in lines
        for row in without_camera(
            [folder / str(line["relative_im_path"])],
            [f"{int(line['class']):03}"],
            "train" if int(line["class"]) <= 98 else "test",
        )
    )


def in_shop(root: Path, seed: int) -> "pd.DataFrame":
    """In-Shop Clothes Retrieval: ``Eval/list_eval_partition.txt`` says what trains, queries and is searched.

    Source: Liu et al., "DeepFashion: powering robust clothes recognition and retrieval with rich annotations", 2016.
    """
    list_file = "Eval/list_eval_partition.txt"
    folder = base(root, [list_file, "Img"], ["In-shop Clothes Retrieval Benchmark", "In-shop", "In_shop"])
    count, _, *lines = (folder / list_file).read_text().splitlines()
    rows = [line.split() for line in lines if line.strip()]
    if len(rows) != int(count):
        raise ValueError(f"{folder / list_file} announces {count} images and lists {len(rows)}; copy it anew.")
    return make_table(
        row for image, item, part in rows for row in without_camera([folder / "Img" / image], [item], part)
    )


def _named(folder: Path, name: str) -> Path:
    """The readers of pytorch-metric-learning go by the name of the published folder.

    Raises:
        FileNotFoundError: if it was given another name.
    """
    if folder.resolve().name != name:
        raise FileNotFoundError(f"{folder} holds the data under another name; expected {name}; rename or link it.")
    return folder.resolve()
