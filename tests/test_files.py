"""Folders and tables of images: decoding, broken files, the cache, transforms, loader workers."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from bonlib import BagOfNegatives, fit, load_dataset
from bonlib.datasets import files, tables
from bonlib.datasets.files import BrokenImage, ImageFiles
from bonlib.datasets.transforms import IMAGENET, fit_size, make_transform
from bonlib.training.embed import embed
from bonlib.training.encoders import make_encoder
from bonlib.training.losses import make_loss


def save(path, value, shape=(20, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*shape, 3), value, dtype=np.uint8)).save(path)


@pytest.fixture
def photos(folders):
    """Ten identities with four images each, of one grey value a image."""
    root = folders / "photos"
    for i in range(10):
        for j in range(4):
            save(root / f"thing {i}" / f"{j}.png", 20 * i + j)
    return root


def test_a_folder_of_identities_becomes_splits_of_identities(photos):
    parts = {split: load_dataset("folder", split, root=photos, size=16) for split in ("train", "validation", "test")}
    assert {split: part.num_classes for split, part in parts.items()} == {"train": 5, "validation": 1, "test": 4}
    assert sorted(n for part in parts.values() for n in part.class_names) == [f"thing {i}" for i in range(10)]
    for part in parts.values():
        assert part.images.shape == (4 * part.num_classes, 3, 16, 16)
        for image, label, path in zip(part.images, part.labels, part.attributes["path"], strict=True):
            name = part.class_names[label]
            assert name in path
            assert image.unique().tolist() == [20 * int(name[6:]) + int(path[-5])]


def test_nested_folders_are_identities_by_their_path(folders):
    for name in ("cats/tabby", "cats/white", "dogs/white", ".hidden/cat"):
        save(folders / "nest" / name / "1.JPG", 9)
    found = load_dataset("folder", "all", root=folders / "nest", size=16)
    assert found.class_names == ["cats/tabby", "cats/white", "dogs/white"]


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (
            ["a/1.jpg", "2.jpg"],
            FileNotFoundError,
            "the first that lies elsewhere is .*2.jpg; make one folder an identity",
        ),
        (["a/notes.txt"], FileNotFoundError, "no image was found"),
        (["train/a/1.jpg", "val/a/1.jpg"], ValueError, "splits, not identities. Give one of them as root"),
    ],
)
def test_other_folders_are_refused(folders, names, error, message):
    for name in names:
        if name.endswith("jpg"):
            save(folders / "x" / name, 1)
        else:
            (folders / "x" / name).parent.mkdir(parents=True)
            (folders / "x" / name).touch()
    with pytest.raises(error, match=message):
        load_dataset("folder", "train", root=folders / "x")
    with pytest.raises(ValueError, match="root is None; 'folder' needs one"):
        load_dataset("folder", "train")


def test_identities_of_one_image_are_shared_out_so_that_every_split_can_find_something(folders):
    for i in range(30):
        for j in range(1 if i % 2 else 3):
            save(folders / "x" / f"{i:02}" / f"{j}.png", i)
    parts = {
        split: load_dataset("folder", split, root=folders / "x", size=16) for split in ("train", "validation", "test")
    }
    for split, single, several in (("train", 8, 8), ("validation", 1, 1), ("test", 6, 6)):
        counts = torch.bincount(parts[split].labels)
        assert abs(int((counts == 1).sum()) - single) <= 1, split
        assert abs(int((counts == 3).sum()) - several) <= 1, split
    with pytest.raises(ValueError, match="There are 4 identities with two images or more; give at least 5"):
        load_dataset("folder", "train", root=few(folders, 4))


def few(folders, count):
    for i in range(count):
        for j in range(2):
            save(folders / "few" / f"{i}" / f"{j}.png", i)
    return folders / "few"


def write_table(file, rows):
    table = pd.DataFrame(rows)
    table.to_parquet(file) if file.suffix == ".parquet" else table.to_csv(file, index=False)
    return file


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_of_paths(photos, suffix):
    rows = [
        {"path": f"thing {i}/{j}.png", "identity": f"0{i}", "camera": j, "split": part}
        for i in range(10)
        for j in range(4)
        for part in ("train" if i < 5 else "query" if j < 1 else "gallery",)
    ]
    file = write_table(photos / f"list{suffix}", rows)
    train = load_dataset("table", "train", root=file, size=16, validation=0)
    test = load_dataset("table", "test", root=file, size=16)
    assert train.class_names == [f"0{i}" for i in range(5)]
    assert test.class_names == [f"0{i}" for i in range(5, 10)]
    assert test.attributes["query"].sum() == 5
    assert set(test.attributes["camera"][test.attributes["query"]]) == {0}
    unsplit = write_table(photos / f"short{suffix}", [{k: row[k] for k in ("path", "identity")} for row in rows])
    parts = [load_dataset("table", split, root=unsplit, size=16) for split in ("train", "validation", "test")]
    assert [part.num_classes for part in parts] == [5, 1, 4]
    assert (parts[0].attributes["camera"] == -1).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"path": "a.png"}], "missing: identity"),
        ([{"path": "a.png", "identity": "a", "split": "dev"}], "has the split 'dev' in data row 1; allowed are train"),
        ([{"path": "a.png", "identity": "a", "split": s} for s in ("train", "")], "no split in data row 2"),
        ([{"path": "a.png", "identity": ""}], "has no identity in data row 1"),
        (
            [{"path": "a.png", "identity": "a", "camera": "left"}],
            "has the camera 'left' in data row 1, which is no integer",
        ),
    ],
)
def test_wrong_tables_are_refused(folders, rows, message):
    with pytest.raises(ValueError, match=message):
        load_dataset("table", "all", root=write_table(folders / "t.csv", rows))
    with pytest.raises(FileNotFoundError, match="which is no file"):
        load_dataset("table", "all", root=folders / "none.csv")
    missing = write_table(folders / "u.csv", [{"path": "gone.png", "identity": "a"}])
    with pytest.raises(FileNotFoundError, match=r"gone.png is listed but cannot be found"):
        load_dataset("table", "all", root=missing)


@pytest.mark.parametrize("in_memory", [True, False])
def test_broken_images_are_named_or_left_out_and_counted(photos, in_memory):
    whole = (photos / "thing 3" / "1.png").read_bytes()
    (photos / "thing 3" / "1.png").write_bytes(whole[: len(whole) // 2])
    for j in range(4):
        (photos / "thing 7" / f"{j}.png").write_text("no image at all")
    options = {"root": photos, "size": 16, "in_memory": in_memory}
    with pytest.raises(BrokenImage, match=r"thing 3/1.png cannot be read: .*on_error='skip'"):
        load_dataset("folder", "all", **options).batch(range(40))  # at once, or when they are asked for
    with pytest.warns(
        UserWarning, match=r"Left out: 5 \(broken\); of 40 images the first that is broken: .*thing 3/1.png"
    ):
        data = load_dataset("folder", "all", on_error="skip", **options)
    assert len(data) == 35
    assert data.class_names == [f"thing {i}" for i in range(10) if i != 7]
    assert data.source == {"benchmark": "folder", "left out": {"broken": 5}}
    images, labels = data.batch(range(35))
    assert [data.class_names[label] for label in labels] == [p.split("/")[-2] for p in data.attributes["path"]]
    assert images.shape == (35, 3, 16, 16)
    with pytest.raises(ValueError, match="on_error is 'ignore'; allowed are 'raise' and 'skip'"):
        load_dataset("folder", "all", on_error="ignore", **options)


def test_what_memory_does_not_hold_is_looked_at_and_not_kept(photos):
    files = ImageFiles([str(path) for path in sorted(photos.rglob("*.png"))] + ["/nowhere.png"], 16)
    (images, lines), (none, same) = files.read_all(), files.read_all(keep=False)
    assert (len(images), len(none)) == (len(files), 0)
    assert lines == same
    assert [bool(line) for line in lines] == [False] * (len(files) - 1) + [True]


def test_in_memory_and_in_files_are_the_same(photos):
    kept, lazy = (load_dataset("folder", "train", root=photos, size=16, in_memory=m) for m in (True, False))
    assert isinstance(kept.images, torch.Tensor)
    assert isinstance(lazy.images, ImageFiles)
    assert torch.equal(kept.batch([3, 0, 7])[0], lazy.batch([3, 0, 7])[0])
    assert torch.equal(kept[5][0], lazy[5][0])
    for change in (lambda d: d.with_identities(2), lambda d: d.subset([9, 2, 4]), lambda d: d.with_label_noise(0.5)):
        a, b = change(kept), change(lazy)
        assert torch.equal(a.batch(range(len(a)))[0], b.batch(range(len(b)))[0])
        assert torch.equal(a.labels, b.labels)
        assert a.class_names == b.class_names
    assert (kept.of_class(kept.class_names[1]) == lazy.of_class(lazy.class_names[1])).all()


def test_the_cache_is_by_source_and_options(photos, monkeypatch):
    first = load_dataset("folder", "train", root=photos, size=16)
    with monkeypatch.context() as patch:
        patch.setattr(files.ImageFiles, "read_all", None)  # would fail if anything were decoded
        assert torch.equal(load_dataset("folder", "train", root=photos, size=16).images, first.images)
    assert load_dataset("folder", "train", root=photos, size=24).images.shape[2:] == (24, 24)
    assert load_dataset("folder", "train", root=photos, size=16, color=False).channels == 1
    path = first.attributes["path"][0]
    Image.fromarray(np.full((20, 20, 3), 255, dtype=np.uint8)).save(path)  # another file of that name
    assert load_dataset("folder", "train", root=photos, size=16).images[0].unique().tolist() == [255]
    monkeypatch.setattr(tables, "_MOST_IN_MEMORY", 100)
    assert isinstance(load_dataset("folder", "train", root=photos, size=16).images, ImageFiles)


def test_workers_keep_the_order_so_that_update_gets_the_right_indices(photos):
    data = load_dataset("folder", "train", root=photos, size=16, in_memory=False)
    bag = BagOfNegatives(data.labels, 8, batch_size=8, per_class=2, bits=2)
    seen = []
    update = bag.update
    bag.update = lambda indices, embeddings: (
        seen.append((list(indices), embeddings.detach())),
        update(indices, embeddings),
    )
    encoder = make_encoder(dim=8, in_channels=3)
    torch.nn.init.zeros_(encoder[-2].weight)

    class Value(torch.nn.Module):  # an encoder whose embeddings tell the image's grey value
        def forward(self, images):
            value = images.mean(dim=(1, 2, 3))
            return torch.stack([value, 1 - value], dim=1).repeat(1, 4).requires_grad_()

    loss = make_loss("batch-hard", "set")
    for _ in fit(
        Value(), data, bag, loss, steps=4, workers=2, optimizer=torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    ):
        pass
    assert len(seen) == 4
    for indices, embeddings in seen:
        assert embeddings[:, 0].tolist() == pytest.approx(data.batch(indices)[0].mean(dim=(1, 2, 3)).tolist(), abs=1e-6)


def test_sizes_scale_the_shorter_side_or_both():
    wide = torch.zeros(3, 20, 40, dtype=torch.uint8)
    wide[:, :, :20] = 200
    assert fit_size(10)(wide).shape == (3, 10, 10)
    assert fit_size((30, 10))(wide).shape == (3, 30, 10)
    middle = fit_size(10)(wide)[0]  # of 10×20, columns 5 to 15
    assert middle[:, 0].tolist() == [200] * 10
    assert middle[:, -1].tolist() == [0] * 10
    with pytest.raises(ValueError, match="size is 4; give a side"):
        fit_size(4)


def test_upright_as_the_camera_says(folders):
    image = Image.fromarray(np.repeat(np.array([[0, 255]], dtype=np.uint8), 16, axis=0).repeat(8, axis=1))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(folders / "photo.png", exif=exif)
    pixels = ImageFiles([str(folders / "photo.png")], 16, color=False)[0][0]
    assert pixels[0].float().mean() < 20 < 235 < pixels[-1].float().mean()


def test_transforms_are_torchvisions():
    image = torch.randint(0, 256, (3, 32, 16), dtype=torch.uint8)
    assert make_transform((32, 16), None) is None
    scaled = image.float() / 255
    normal = make_transform((32, 16), None, statistics="imagenet")(image)
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    assert torch.allclose(normal, (scaled - mean) / std, atol=1e-5)
    flip = make_transform((32, 16), "flip")
    outcomes = {bool(torch.allclose(flip(image), scaled)) for _ in range(40)}
    assert outcomes == {True, False}
    assert all(
        torch.allclose(out, scaled) or torch.allclose(out, scaled.flip(-1)) for out in (flip(image) for _ in range(20))
    )
    assert make_transform((32, 16), "crop")(image).shape == (3, 32, 16)
    assert make_transform(32, "resized-crop")(torch.zeros(3, 32, 32, dtype=torch.uint8)).shape == (3, 28, 28)
    middle = make_transform(32, None, "resized-crop")(torch.arange(32, dtype=torch.uint8).repeat(3, 32, 1))
    assert (middle[0, 0] * 255).round().tolist() == list(range(2, 30))
    for options in ({"augment": "blur"}, {"augment": None, "statistics": "cifar"}):
        with pytest.raises(ValueError, match="; allowed are None"):
            make_transform(32, **options)


def test_training_images_are_augmented_and_others_are_not(photos):
    options = {"root": photos, "size": 16, "augment": "flip", "statistics": "imagenet"}
    train, test = load_dataset("folder", "train", **options), load_dataset("folder", "test", **options)
    assert any(isinstance(step, v2.RandomHorizontalFlip) for step in train.transform.transforms)
    assert not any(isinstance(step, v2.RandomHorizontalFlip) for step in test.transform.transforms)
    torch.manual_seed(0)
    first = train.batch([0, 1])[0]
    torch.manual_seed(0)
    assert torch.equal(train.batch([0, 1])[0], first)
    everything = load_dataset("folder", "all", root=photos, size=16, statistics="imagenet")
    place = everything.attributes["path"].tolist().index(train.attributes["path"][0])
    assert torch.equal(train.plain.batch([0])[0], everything.batch([place])[0])
    plain = load_dataset("folder", "train", root=photos, size=16, augment="flip")
    for _ in range(5):  # embedding looks at images as they are
        assert torch.equal(embed(nn.Flatten(), plain)[0][0], plain.images[0].flatten() / 255)
    with pytest.raises(ValueError, match="ImageNet's statistics are of three channels"):
        load_dataset("folder", "train", **options, color=False)


def test_files_that_change_places_are_decoded_anew(photos):
    """Their sizes and times may be equal, as out of an archive."""
    first = load_dataset("folder", "train", root=photos, size=16)
    a, b = (Path(first.attributes["path"][int(first.labels.tolist().index(label))]) for label in (0, 1))
    for path, value in ((a, 20), (b, 90)):
        Image.fromarray(np.full((20, 20, 3), value, dtype=np.uint8)).save(path, "bmp")
        os.utime(path, (10**9, 10**9))
    before = load_dataset("folder", "train", root=photos, size=16)
    a.rename(a.with_name("aside"))
    b.rename(a)
    a.with_name("aside").rename(b)
    after = load_dataset("folder", "train", root=photos, size=16)
    where = [before.attributes["path"].tolist().index(str(path)) for path in (a, b)]
    assert [int(before.images[i].max()) for i in where] == [20, 90]
    assert [int(after.images[i].max()) for i in where] == [90, 20]
