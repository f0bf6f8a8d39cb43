"""Omniglot from zips and folders, as its maker packs them."""

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from bonlib import load_dataset
from bonlib.datasets.splits import SPLITS, split_groups


def drawing(alphabet, character, number):
    """A stroke that starts at a place of its own, black on white, as in the files."""
    rng = np.random.default_rng([len(alphabet), character, number, *alphabet.encode()])
    pixels = np.full((105, 105), 255, dtype=np.uint8)
    row, column = rng.integers(10, 70, 2)
    pixels[row : row + 25, column : column + 6] = 0
    return Image.fromarray(pixels).convert("1")


def write_zip(folder, name, alphabets, drawings=3):
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        for alphabet, characters in alphabets.items():
            for character in range(1, characters + 1):
                for number in range(1, drawings + 1):
                    buffer = io.BytesIO()
                    drawing(alphabet, character, number).save(buffer, "png")
                    file = f"{name}/{alphabet}/character{character:02}/{400 + character:04}_{number:02}.png"
                    archive.writestr(file, buffer.getvalue())


FIRST = {"Balinese": 4, "Greek": 3, "Latin": 5, "Korean": 6}
SECOND = {"Greek": 3, "Latin": 5, "Sanskrit": 4, "Tagalog": 2}
BOTH = FIRST | SECOND


@pytest.fixture
def root(folders):
    write_zip(folders / "data" / "omniglot", "images_background_small1", FIRST)
    write_zip(folders / "data" / "omniglot", "images_background_small2", SECOND)
    return folders / "data" / "omniglot"


def test_a_character_in_both_sets_is_one_identity_and_each_rotation_another(root):
    everything = load_dataset("omniglot", "all")
    assert everything.num_classes == 4 * sum(BOTH.values())
    assert len(everything) == 3 * everything.num_classes
    names = {
        f"{a}/character{c:02}, {turn}°" for a, n in BOTH.items() for c in range(1, n + 1) for turn in (0, 90, 180, 270)
    }
    assert set(everything.class_names) == names
    assert torch.bincount(everything.labels).unique().tolist() == [3]
    assert everything.source["sets"] == ["images_background_small1.zip", "images_background_small2.zip"]


def test_images_are_the_drawings_small_inverted_and_turned(root):
    everything = load_dataset("omniglot", "all")
    for turn in range(4):
        images = everything.of_class(f"Sanskrit/character02, {90 * turn}°")
        for image, number in zip(images[:, 0], (1, 2, 3), strict=True):
            upright = drawing("Sanskrit", 2, number).convert("L").resize((32, 32), Image.Resampling.BOX)
            assert (image == np.rot90(255 - np.asarray(upright), turn)).all()
            assert image.max() == 255


def test_alphabets_are_split_with_all_their_characters_and_rotations(root):
    parts = {split: load_dataset("omniglot", split) for split in SPLITS}
    alphabets = {split: {name.split("/")[0] for name in part.class_names} for split, part in parts.items()}
    assert sum(map(len, alphabets.values())) == len(set.union(*alphabets.values())) == len(BOTH)
    assert sum(part.num_classes for part in parts.values()) == 4 * sum(BOTH.values())
    for split, part in parts.items():
        assert part.num_classes == 4 * sum(BOTH[name] for name in alphabets[split])
        names = [part.source["alphabets"][i] for i in part.attributes["alphabet"]]
        assert names == [part.class_names[label].split("/")[0] for label in part.labels]
        assert [f"{r}°" for r in part.attributes["rotation"]] == [part.class_names[n].split()[1] for n in part.labels]


@pytest.mark.parametrize("seed", range(5))
def test_groups_come_near_the_shares(seed):
    sizes = np.random.default_rng(seed).integers(10, 60, 50)
    parts = split_groups(sizes, seed)
    assert sorted(np.concatenate([parts[name] for name in SPLITS])) == list(range(50))
    for name, share in SPLITS.items():
        assert sizes[parts[name]].sum() / sizes.sum() == pytest.approx(share, abs=60 / sizes.sum())


def test_unpacked_sets_give_the_same_and_torchvisions_folder_is_found(root, folders):
    packed = load_dataset("omniglot", "all")
    for place in (folders / "unpacked", folders / "fetched" / "omniglot-py"):
        for file in root.glob("*.zip"):
            zipfile.ZipFile(file).extractall(place)
    for place in (folders / "unpacked", folders / "fetched"):
        again = load_dataset("omniglot", "all", root=place)
        assert torch.equal(again.images, packed.images)
        assert again.class_names == packed.class_names
    for inner in list((folders / "unpacked").iterdir()):  # as Windows unpacks
        deeper = folders / "deeper" / inner.name
        deeper.mkdir(parents=True)
        inner.rename(deeper / inner.name)
    again = load_dataset("omniglot", "all", root=folders / "deeper")
    assert torch.equal(again.images, packed.images)


def test_no_set_says_where_to_get_them(folders):
    with pytest.raises(FileNotFoundError, match=r"expected images_background_small1.zip .*no such folder.*brendenlake"):
        load_dataset("omniglot", "train")
    (folders / "other").mkdir()
    (folders / "other" / "images.zip").touch()
    with pytest.raises(FileNotFoundError, match=r"there is: \['images.zip'\]"):
        load_dataset("omniglot", "train", root=folders / "other")
    with pytest.raises(ValueError, match="split is 'dev'"):
        load_dataset("omniglot", "dev")
