"""Every benchmark in its published layout, written small; whole loops run on it."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from bonlib import BagOfNegatives, evaluate, fit, list_datasets, load_dataset
from bonlib.datasets.benchmarks import layout
from bonlib.datasets.benchmarks.catalog import BENCHMARKS, PERSONS
from bonlib.datasets.tables import image_set, make_table
from bonlib.training.encoders import make_encoder
from bonlib.training.losses import make_loss


def picture(path, seed=0):
    """A small image of one colour with noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *path.name.encode()])
    colour = np.random.default_rng(seed).integers(0, 256, 3)
    Image.fromarray((colour + rng.integers(-9, 10, (24, 16, 3))).clip(0, 255).astype(np.uint8)).save(path)


def online_products(root):
    for part, first in (("train", 1), ("test", 13)):
        lines = ["image_id class_id super_class_id path"]
        for label in range(first, first + 12):
            for i in range(4):
                name = f"bicycle_final/{label:012}_{i}.JPG"
                picture(root / "Stanford_Online_Products" / name, label)
                lines.append(f"{len(lines)} {label} 1 {name}")
        (root / "Stanford_Online_Products" / f"Ebay_{part}.txt").write_text("\n".join(lines) + "\n")


def cub200(root):
    images, classes = [], []
    for label in (*range(1, 13), *range(101, 107)):
        for i in range(4):
            name = f"{label:03}.Bird_{label}/Bird_{label}_{i}.jpg"
            picture(root / "CUB_200_2011" / "images" / name, label)
            images.append(f"{len(images) + 1} {name}")
            classes.append(f"{len(images)} {label}")
    (root / "CUB_200_2011" / "images.txt").write_text("\n".join(images) + "\n")
    (root / "CUB_200_2011" / "image_class_labels.txt").write_text("\n".join(classes) + "\n")


def cars196(root):
    lines = []
    for label in (*range(1, 13), *range(99, 105)):
        for _ in range(4):
            name = f"car_ims/{len(lines) + 1:06}.jpg"
            picture(root / name, label)
            lines.append((name, 1, 1, 2, 2, label, 0))
    fields = ["relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test"]
    annotations = np.array([lines], dtype=object)
    table = np.zeros((1, len(lines)), dtype=[(name, object) for name in fields])
    for i, line in enumerate(annotations[0]):
        for name, value in zip(fields, line, strict=True):
            table[name][0, i] = value
    savemat(root / "cars_annos.mat", {"annotations": table})


def in_shop(root):
    lines = []
    for item in range(1, 25):
        for i in range(4):
            name = f"img/WOMEN/Dresses/id_{item:08}/0{i}_front.jpg"
            picture(root / "Img" / name, item)
            part = "train" if item <= 12 else "query" if i < 2 else "gallery"
            lines.append(f"{name}    id_{item:08}    {part}")
    (root / "Eval").mkdir()
    text = "\n".join([str(len(lines)), "image_name item_id evaluation_status", *lines])
    (root / "Eval" / "list_eval_partition.txt").write_text(text + "\n")


def bounding_boxes(root, junk=()):
    for folder, persons in (("bounding_box_train", range(1, 13)), ("bounding_box_test", range(20, 26))):
        for person in persons:
            for i in range(4):
                picture(root / folder / f"{person:04}_c{i % 2 + 1}s1_{i:06}_0{i}.jpg", person)
    for person in range(20, 26):
        picture(root / "query" / f"{person:04}_c1s1_000099_00.jpg", person)
    for name in junk:
        picture(root / "bounding_box_test" / name)
    (root / "bounding_box_train" / "Thumbs.db").write_text("as in the published archive")


def market1501(root):
    bounding_boxes(root / "Market-1501-v15.09.15", ("-1_c1s1_000001_01.jpg", "0000_c1s1_000002_01.jpg"))


def dukemtmc(root):
    bounding_boxes(root / "DukeMTMC-reID")


def cuhk03(root):
    bounding_boxes(root / "CUHK03-NP" / "labeled")
    bounding_boxes(root / "CUHK03-NP" / "detected")


def msmt17(root):
    lists = {name: [] for name in ("train", "val", "query", "gallery")}
    for side, persons in (("train", 12), ("test", 6)):
        for person in range(persons):
            for i in range(6):
                name = f"{person:04}/{person:04}_00{i}_{i % 3 + 1:02}_0303morning_0015_{i}.jpg"
                picture(root / "MSMT17_V1" / side / name, person + (side == "test") * 50)
                part = ("val" if i == 5 else "train") if side == "train" else ("query" if i == 0 else "gallery")
                lists[part].append(f"{name} {person}")
    for name, lines in lists.items():
        (root / "MSMT17_V1" / f"list_{name}.txt").write_text("\n".join(lines) + "\n")


def cuhk01(root):
    for person in range(1, 25):
        for i in range(1, 5):
            picture(root / "campus" / f"{person:04}{i:03}.png", person)


def cuhk02(root):
    for pair in range(1, 6):
        for person in range(1, 6):
            for camera in (1, 2):
                for i in (1, 2):
                    picture(root / f"Dataset/P{pair}/cam{camera}/{person:03}_{i}.png", 10 * pair + person)


def viper(root):
    for person in range(40):
        picture(root / "VIPeR" / "cam_a" / f"{person:03}_45.bmp", person)
        picture(root / "VIPeR" / "cam_b" / f"{person:03}_90.bmp", person)


def pes3d(root):
    for person in range(1, 25):
        for i in range(4):
            picture(root / "3DPeS" / "RGB" / f"{person}_{i // 2 + 1}_FRAME_{20 + i}_RGB.bmp", person)


WRITE = {
    "online-products": online_products, "cub200": cub200, "cars196": cars196, "in-shop": in_shop,
    "market1501": market1501, "dukemtmc": dukemtmc, "cuhk03": cuhk03, "cuhk03-detected": cuhk03, "msmt17": msmt17,
    "cuhk01": cuhk01, "cuhk02": cuhk02, "viper": viper, "3dpes": pes3d,
}  # fmt: skip
# train (validation included), test: identities and images; queries
EXPECTED = {
    "online-products": (12, 48, 12, 48, 0), "cub200": (12, 48, 6, 24, 0), "cars196": (12, 48, 6, 24, 0),
    "in-shop": (12, 48, 12, 48, 24), "market1501": (12, 48, 7, 31, 6), "dukemtmc": (12, 48, 6, 30, 6),
    "cuhk03": (12, 48, 6, 30, 6), "cuhk03-detected": (12, 48, 6, 30, 6), "msmt17": (12, 72, 6, 36, 6),
    "cuhk01": (12, 48, 12, 48, 24), "cuhk02": (20, 80, 5, 20, 10), "viper": (20, 40, 20, 40, 20),
    "3dpes": (12, 48, 12, 48, 12),
}  # fmt: skip


@pytest.fixture
def benchmark(request, folders):
    """A benchmark's name, and its folder, written."""
    root = folders / "data" / request.param
    root.mkdir(parents=True)
    WRITE[request.param](root)
    return request.param, root


every = pytest.mark.parametrize("benchmark", list(WRITE), indirect=True)


def test_every_published_benchmark_is_tried():
    assert set(WRITE) == set(EXPECTED) == {name for name, entry in BENCHMARKS.items() if entry.published}


@every
def test_splits_are_as_published(benchmark):
    name, root = benchmark
    options = {"root": root, "check_counts": False, "size": 16, "augment": None}
    train, test = (load_dataset(name, split, validation=0, **options) for split in ("train", "test"))
    queries = int(test.attributes["query"].sum()) if "query" in test.attributes else 0
    assert (train.num_classes, len(train), test.num_classes, len(test), queries) == EXPECTED[name]
    if name != "msmt17":  # which numbers both from 0; ours are told apart by the side
        assert not set(train.class_names) & set(test.class_names)
    if name in PERSONS:
        assert (train.attributes["camera"] >= 1).all()
        query = test.attributes["query"]
        for label in np.unique(test.labels[query]):  # each query has a match by another camera
            of = test.labels.numpy() == label
            assert set(test.attributes["camera"][of & ~query]) - set(test.attributes["camera"][of & query])
    fewer = load_dataset(name, "train", validation=0.25, **options)
    validation = load_dataset(name, "validation", validation=0.25, **options)
    assert sorted(fewer.class_names + validation.class_names) == train.class_names
    assert validation.num_classes == round(0.25 * train.num_classes)


@every
def test_a_whole_loop_runs_load_train_evaluate(benchmark):
    name, root = benchmark
    options = {"root": root, "check_counts": False, "size": 32}
    train, test = load_dataset(name, "train", **options), load_dataset(name, "test", **options)
    encoder = make_encoder(dim=8, in_channels=train.channels)
    per_class = 2 if name == "viper" else 4
    bag = BagOfNegatives(train.labels, 8, batch_size=16, per_class=per_class, bits=2)
    steps = list(fit(encoder, train, bag, make_loss("batch-hard", "set"), steps=3))
    assert [step.step for step in steps] == [1, 2, 3]
    scores = evaluate(encoder, test)
    ranks = [scores[f"recall@{k}"] for k in BENCHMARKS[name].defaults.get("ks", (1, 2, 4, 8))]
    assert 0 <= ranks[0] <= ranks[-1] <= 1
    assert ranks == sorted(ranks)
    assert ("map" in scores) == ("query" in test.attributes)


@every
def test_counts_are_held_against_the_published_ones(benchmark):
    name, root = benchmark
    with pytest.raises(ValueError, match=r"images of \d+ identities, published are [\d,]+ of .*check_counts=False"):
        load_dataset(name, "train", root=root)


@every
def test_a_wrong_layout_says_what_was_expected_found_and_missing(benchmark, tmp_path):
    name, _ = benchmark
    empty = tmp_path / "empty"
    (empty / "something").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"expected .*; found something/; the first missing path is .*empty"):
        load_dataset(name, "train", root=empty)
    with pytest.raises(FileNotFoundError, match=r"nowhere.*, which is no folder; expected"):
        load_dataset(name, "train", root=tmp_path / "nowhere")


def test_published_counts_of_all_and_parts(folders):
    table = make_table([(Path(f"{i}.jpg"), str(i // 2), "train" if i < 6 else "test", -1) for i in range(10)])
    layout.check_counts(table, {"train": (6, 3), "test": (4, 2)}, "x")
    layout.check_counts(table, {"all": (10, 5)}, "x")
    with pytest.raises(ValueError, match=r"x is not complete.*test: 4 images of 2 identities, published are 4 of 3"):
        layout.check_counts(table, {"train": (6, 3), "test": (4, 3)}, "x")


def test_junk_is_left_out_and_distractors_stay_in_the_gallery(folders):
    market1501(folders)
    test = load_dataset("market1501", "test", root=folders, check_counts=False, size=16)
    names = [Path(path).name for path in test.attributes["path"]]
    assert "-1_c1s1_000001_01.jpg" not in names
    distractor = names.index("0000_c1s1_000002_01.jpg")
    assert not test.attributes["query"][distractor]
    assert test.class_names[test.labels[distractor]] == "0000"


def test_random_halves_differ_by_seed_alone(folders):
    viper(folders)
    options = {"root": folders, "check_counts": False, "size": 16, "validation": 0}
    names = [load_dataset("viper", "train", seed=seed, **options).class_names for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]


def test_cars_by_class_folders_too(folders):
    root = folders / "cars"
    names = [f"Car {i}" for i in range(1, 197)]
    lines = {"train": [], "test": []}
    for label in (1, 2, 98, 99, 196):
        for part in lines:
            picture(root / "car_data" / "car_data" / part / names[label - 1] / f"{label}{part}.jpg", label)
            lines[part].append(f"{label}{part}.jpg,1,1,2,2,{label}")
    (root / "names.csv").write_text("\n".join(names))
    for part, rows in lines.items():
        (root / f"anno_{part}.csv").write_text("\n".join(rows) + "\n")
    options = {"root": root, "check_counts": False, "size": 16, "validation": 0}
    assert load_dataset("cars196", "train", **options).class_names == ["001", "002", "098"]
    assert load_dataset("cars196", "test", **options).class_names == ["099", "196"]


def test_benchmarks_of_persons_combine(folders):
    for name in ("market1501", "viper", "cuhk02"):
        (folders / name).mkdir()
        WRITE[name](folders / name)
    options = {"root": folders, "check_counts": False, "size": 16, "validation": 0}
    train, test = (
        load_dataset("combined-persons", "train", **options),
        load_dataset("combined-persons", "test", **options),
    )
    expected = np.sum([EXPECTED[name] for name in ("market1501", "viper", "cuhk02")], axis=0)
    found = (train.num_classes, len(train), test.num_classes, len(test), test.attributes["query"].sum())
    assert found == tuple(expected)
    of = np.array([train.class_names[label].split()[0] for label in train.labels])
    seen = [set(train.attributes["camera"][of == name]) for name in ("market1501", "viper", "cuhk02")]
    assert all(seen)
    assert len(set.union(*seen)) == sum(map(len, seen))  # no camera of one is one of another
    two = load_dataset("combined-persons", "train", parts={n: folders / n for n in ("viper", "cuhk02")}, **options)
    assert two.num_classes == expected[0] - EXPECTED["market1501"][0]
    with pytest.raises(ValueError, match="give two or more of market1501"):
        load_dataset("combined-persons", "train", parts=["viper"], **options)


def test_the_list_tells_what_is_here(folders):
    table = list_datasets()
    assert {"glyphs", "hangul", "omniglot", "folder", "table", "combined-persons", *BENCHMARKS} <= set(table.index)
    assert table.loc["glyphs", "here"]
    assert not table.loc["market1501", "here"]
    assert table.loc["market1501", ["identities", "samples"]].tolist() == [1501, 36_036]
    (folders / "data" / "market1501").mkdir(parents=True)
    assert list_datasets().loc["market1501", "here"]
    assert "withdrawn" in table.loc["dukemtmc", "licence"]
    assert torch.tensor(table["get"].str.len().to_numpy(dtype=int)).min() > 0


def test_an_empty_split_says_so(folders):
    viper(folders)
    with pytest.raises(ValueError, match="'validation' has no images; give validation above 0"):
        load_dataset("viper", "validation", root=folders, check_counts=False, validation=0)
    table = BENCHMARKS["viper"].read(folders, 0)
    with pytest.raises(ValueError, match=r"validation is 1.0; allowed are 0 to 0.99"):
        image_set(table, "train", validation=1)


def test_cuhk03_as_one_file_of_matlab(folders):
    root = folders / "cuhk03"
    (root / "cuhk03_release").mkdir(parents=True)
    rng, pixels, files = np.random.default_rng(0), {}, []
    with h5py.File(root / "cuhk03_release" / "cuhk-03.mat", "w") as mat:
        pairs = mat.create_dataset("labeled", (1, 2), dtype=h5py.ref_dtype)
        for pair in range(2):
            cells = mat.create_dataset(f"pair{pair}", (10, 3), dtype=h5py.ref_dtype)  # transposed, as MATLAB stores it
            pairs[0, pair] = cells.ref
            for person in range(3):
                for number in range(10):
                    there = number in (0, 1, 6, 7)
                    image = rng.integers(0, 256, (12, 8, 3), dtype=np.uint8) if there else np.zeros(2, dtype=np.uint64)
                    cells[number, person] = mat.create_dataset(f"i{pair}_{person}_{number}", data=image.T).ref
                    if there:
                        files.append(f"{pair + 1}_{person + 1:03}_{1 if number < 5 else 2}_{number + 1:02}.png")
                        pixels[files[-1]] = image
    labels = [3 * int(name[0]) + int(name[2:5]) for name in files]
    persons = sorted(set(labels))
    of = {name: [i + 1 for i, label in enumerate(labels) if chosen(label, files[i])] for name, chosen in {
        "train_idx": lambda label, _: label in persons[:4],
        "query_idx": lambda label, name: label in persons[4:] and name.endswith("_01.png"),
        "gallery_idx": lambda label, name: label in persons[4:] and not name.endswith("_01.png"),
    }.items()}  # fmt: skip
    cell = np.empty((len(files), 1), dtype=object)
    cell[:, 0] = files
    savemat(root / "cuhk03_new_protocol_config_labeled.mat", {"filelist": cell, "labels": np.c_[labels], **of})
    options = {"root": root, "check_counts": False, "size": (12, 8), "augment": None, "validation": 0}
    for _ in range(2):  # unpacked once, then found again
        train, test = load_dataset("cuhk03", "train", **options), load_dataset("cuhk03", "test", **options)
        assert (train.num_classes, len(train)) == (4, 16)
        assert (test.num_classes, len(test), test.attributes["query"].sum()) == (2, 8, 2)
        for image, path, camera in zip(train.images, train.attributes["path"], train.attributes["camera"], strict=True):
            name = Path(path).name
            assert (image.permute(1, 2, 0).numpy() == pixels[name]).all()
            assert camera == int(name.split("_")[2])
    with pytest.raises(FileNotFoundError, match=r"the first missing path is .*cuhk03_new_protocol_config_detected.mat"):
        load_dataset("cuhk03-detected", "train", **options)


def names_of(name, root):
    options = {"root": root, "check_counts": False, "size": 16, "augment": None, "validation": 0}
    parts = [load_dataset(name, split, **options) for split in ("train", "test")]
    return [[(path, part.class_names[label]) for path, label in zip(part.attributes["path"], part.labels, strict=True)]
            for part in parts]  # fmt: skip


@every
def test_files_that_systems_add_and_blank_last_lines_and_marks_change_nothing(benchmark):
    name, root = benchmark
    before = names_of(name, root)
    folders = {path.parent for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".png", ".bmp")}
    for folder in folders:
        for added in ("._0001_c1s1_000001_01.jpg", "._x.bmp", ".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt"):
            (folder / added).write_bytes(b"\x00\x05\x16\x07")
        (folder / "a folder.jpg").mkdir()
    for listed in [*root.rglob("*list*.txt"), *root.rglob("Ebay_*.txt"), *root.rglob("image*.txt")]:
        listed.write_bytes(b"\xef\xbb\xbf" + listed.read_bytes().replace(b"\n", b"\r\n") + b"\r\n  \r\n\n")
    assert names_of(name, root) == before


@pytest.mark.parametrize(
    ("name", "file", "line", "message"),
    [
        (
            "msmt17",
            "MSMT17_V1/list_train.txt",
            "0001/a.jpg",
            r"list_train.txt has 1 words in line \d+, published are 2",
        ),
        ("online-products", "Stanford_Online_Products/Ebay_test.txt", "1 2", r"Ebay_test.txt has 2 words in line \d+"),
        ("cub200", "CUB_200_2011/images.txt", "9999 001.Bird_1/Bird_1_0.jpg", "has no class of image 9999"),
        ("in-shop", "Eval/list_eval_partition.txt", "img/x.jpg id_1 train", r"announces 96 images and lists 97"),
    ],
)
def test_lists_that_are_not_as_published_are_named(folders, name, file, line, message):
    root = folders / "data" / name
    root.mkdir(parents=True)
    WRITE[name](root)
    with (root / file).open("a") as opened:
        opened.write(line + "\n")
    with pytest.raises(ValueError, match=message):
        load_dataset(name, "train", root=root, check_counts=False, size=16)


def test_the_copy_of_cars_by_classes_is_read_as_published(folders):
    root = folders / "cars"
    names = [f"Car {label}/x" for label in range(1, 105)]
    lists = {"train": [], "test": []}
    for label in (*range(1, 13), *range(99, 105)):
        for i in range(4):
            part = "train" if i % 2 else "test"
            picture(root / "car_data/car_data" / part / f"Car {label}-x" / f"{label:03}{i}.jpg", label)
            lists[part].append(f"{label:03}{i}.jpg,1,1,2,2,{label}")
    for part, lines in lists.items():
        (root / f"anno_{part}.csv").write_text("\n".join(lines) + "\n\n")
    (root / "names.csv").write_bytes(b"\xef\xbb\xbf" + "\n".join(names).encode() + b"\n\n")
    options = {"root": root, "check_counts": False, "size": 16, "augment": None, "validation": 0}
    train, test = (load_dataset("cars196", split, **options) for split in ("train", "test"))
    assert (train.num_classes, len(train), test.num_classes, len(test)) == (12, 48, 6, 24)
