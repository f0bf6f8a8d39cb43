"""The glyphs and the in-memory dataset."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from bonlib import BagOfNegatives, list_datasets, load_dataset
from bonlib.datasets.characters.glyphs import Glyphs, default_fonts
from bonlib.datasets.files import ImageFiles
from bonlib.datasets.images import ImageSet
from bonlib.datasets.strings import TextSet

FEW = {"fonts": [str(path) for path in default_fonts()[:8]], "characters": list(range(0x41, 0x250))}

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def letters(folders):
    """The small Latin letters in four faces."""
    return Glyphs("all", fonts=default_fonts()[:4], characters=LETTERS)


def test_every_character_face_and_draw_is_there_once(letters):
    assert letters.class_names == list(LETTERS)
    assert letters.images.shape == (26 * 4 * 2, 1, 32, 32)
    assert letters.images.dtype == torch.uint8
    keys = zip(*(letters.attributes[name].tolist() for name in ("character", "face", "draw")), strict=True)
    assert sorted(keys) == [(ord(c), face, draw) for c in LETTERS for face in range(4) for draw in range(2)]
    assert [letters.class_names[label] for label in letters.labels] == [chr(c) for c in letters.attributes["character"]]
    assert letters.faces == [path.stem for path in default_fonts()[:4]]


def test_fonts_of_one_file_name_in_other_folders_are_not_taken_for_each_other(folders):
    for place, font in zip("xyz", default_fonts(), strict=False):
        (folders / place).mkdir()
        (folders / place / "Regular.ttf").write_bytes(font.read_bytes())
    first, second = (
        Glyphs("all", fonts=[folders / place / "Regular.ttf" for place in places], characters=LETTERS, min_faces=2)
        for places in ("xy", "zy")
    )
    assert not torch.equal(first.images, second.images)


def test_images_hold_ink_and_their_draws_differ(letters):
    ink = letters.images.float().mean(dim=(1, 2, 3))
    assert ink.min() > 2
    assert not torch.equal(letters.images[0], letters.images[1])


def test_look_alikes_are_one_identity_and_blanks_are_none(folders):
    fonts = default_fonts()[:4]
    letters = [*"AАΑBВΒCСDEFGHIJKL", " ", "\u00a0", "\u200b", "\ue000"]
    glyphs = Glyphs("all", fonts=fonts, characters=letters)
    # Latin, Cyrillic and Greek capitals: A А Α, B В Β, C С draw alike; spaces and private code points are dropped.
    assert glyphs.class_names == list("ABCDEFGHIJKL")
    assert set(glyphs.attributes["character"].tolist()) == {ord(c) for c in "ABCDEFGHIJKL"}


def test_missing_glyphs_are_left_out(folders):
    glyphs = Glyphs("all", fonts=default_fonts()[:4], characters=[*LETTERS, "한", "漢"])
    assert "한" not in glyphs.class_names
    assert "漢" not in glyphs.class_names


def test_splits_are_disjoint_in_identity_and_together_all(letters):
    parts = {s: Glyphs(s, fonts=default_fonts()[:4], characters=LETTERS) for s in ("train", "validation", "test")}
    names = {s: set(part.class_names) for s, part in parts.items()}
    assert {s: len(n) for s, n in names.items()} == {"train": 13, "validation": 3, "test": 10}
    assert set.union(*names.values()) == set(LETTERS)
    other = Glyphs("train", fonts=default_fonts()[:4], characters=LETTERS, seed=1)
    assert set(other.class_names) != names["train"]
    everything = {name: letters.of_class(name) for name in LETTERS}
    for part in parts.values():
        assert part.labels.unique().tolist() == list(range(part.num_classes))
        assert all((part.of_class(name) == everything[name]).all() for name in part.class_names)


def test_the_cache_is_used_and_a_damaged_one_is_drawn_anew(letters, folders, monkeypatch):
    (cache,) = (folders / "data" / "glyphs").glob("*.npz")
    options = {"fonts": default_fonts()[:4], "characters": LETTERS}
    content = bytearray(cache.read_bytes())
    content[len(content) // 2] ^= 0xFF
    for damaged in (bytes(content), content[: len(content) // 3], b""):
        cache.write_bytes(damaged)
        with pytest.warns(UserWarning, match="damaged .* made anew"):
            again = Glyphs("all", **options)
        assert torch.equal(again.images, letters.images)
    monkeypatch.setattr("bonlib.datasets.characters.glyphs._draw_all", None)  # would fail if it were drawn
    assert torch.equal(Glyphs("all", **options).images, letters.images)
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_the_default_set_has_thousands_of_identities():
    glyphs = load_dataset("glyphs", "all")
    assert 3000 < glyphs.num_classes < 3400
    assert 70_000 < len(glyphs) < 82_000
    assert np.unique(np.stack([glyphs.labels, glyphs.attributes["face"]]), axis=1).shape[1] * 2 == len(glyphs)
    assert torch.bincount(glyphs.labels).min() >= 16  # eight faces, two draws
    assert {"ö", "ő", "ó", "Ш", "Щ", "ﬀ", "ﬁ"} <= set(glyphs.class_names)


def test_a_batch_is_what_the_single_items_are(letters):
    images, labels = letters.batch([3, 100, 3])
    assert images.dtype == torch.float32
    assert images.max() <= 1
    for i, index in enumerate([3, 100, 3]):
        image, label = letters[index]
        assert torch.equal(images[i], image)
        assert labels[i] == label


def test_a_loader_with_workers_and_a_bag_as_batch_sampler(letters):
    bag = BagOfNegatives(letters.labels, dim=8, batch_size=16, bits=3)
    for images, labels in DataLoader(letters, batch_sampler=bag, num_workers=2):
        assert images.shape == (16, 1, 32, 32)
        assert labels.unique().numel() == 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"split": "dev"}, ValueError, "split is 'dev'; allowed are 'train'"),
        ({"draws": 0}, ValueError, "draws is 0"),
        ({"min_faces": 5}, ValueError, "allowed are 1 to 4"),
        ({"fonts": ["nowhere.ttf"]}, FileNotFoundError, "nowhere.ttf"),
        ({"characters": "abc"}, ValueError, "Only 3 characters"),
    ],
)
def test_bad_options_are_refused(folders, options, error, message):
    with pytest.raises(error, match=message):
        Glyphs(**{"fonts": default_fonts()[:4], "characters": LETTERS} | options)


def test_names(letters):
    assert "glyphs" in list_datasets().index
    with pytest.raises(ValueError, match="name is 'glyph'; allowed are 'glyphs'"):
        load_dataset("glyph", "train")
    with pytest.raises(ValueError, match="no class of this split"):
        letters.of_class("Ω")


def test_fewer_identities_are_numbered_anew_and_keep_their_images():
    data = Glyphs("train", **FEW)
    few = data.with_identities(10, seed=3)
    assert few.num_classes == 10
    assert few.labels.unique().tolist() == list(range(10))
    for label, name in enumerate(few.class_names):
        assert (few.images[few.labels == label].numpy() == data.of_class(name)).all()
    assert all(len(values) == len(few) for values in few.attributes.values())
    assert data.with_identities(10, seed=3).class_names == few.class_names != data.with_identities(10).class_names
    with pytest.raises(ValueError, match="count is 1; allowed are 2 to"):
        data.with_identities(1)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_label_noise_changes_just_that_share(share):
    data = Glyphs("train", **FEW)
    noisy = data.with_label_noise(share, seed=1)
    assert int((noisy.labels != data.labels).sum()) == round(share * len(data))
    assert set(noisy.labels.tolist()) <= set(range(data.num_classes))
    assert noisy.images is data.images
    with pytest.raises(ValueError, match="share is 2; allowed"):
        data.with_label_noise(2)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_split_identities_bear_a_second_name_on_half_of_their_samples(share):
    data = Glyphs("train", **FEW)
    split = data.with_split_identities(share, seed=1)
    second = {name.removesuffix(" (2)"): c for c, name in enumerate(split.class_names) if name.endswith(" (2)")}
    assert len(second) == round(share * data.num_classes) == split.num_classes - data.num_classes
    for c, name in enumerate(data.class_names):
        own, other = int((split.labels == c).sum()), int((split.labels == second.get(name, -1)).sum())
        assert own + other == int((data.labels == c).sum())
        assert own - other in ((0, 1) if name in second else (own,))
    assert split.images is data.images
    single = data.subset(
        np.flatnonzero((data.labels != 0).numpy()).tolist() + data.ids_of_class(data.class_names[0])[:1].tolist()
    )
    assert int(single.with_split_identities(1.0).labels.bincount().min()) >= 1  # one sample has one name
    with pytest.raises(ValueError, match="share is 2; allowed"):
        data.with_split_identities(2)


def test_a_set_moves_to_a_device_and_stays_the_same_set():
    there = Glyphs("validation").with_identities(5).to("meta")
    assert there.images.is_meta
    assert (there.num_classes, len(there.labels)) == (5, len(there.images))
    here = Glyphs("validation")
    assert torch.equal(here.to("cpu").batch([3, 1])[0], here.batch([3, 1])[0])


@pytest.mark.parametrize("kind", ["images", "files", "strings"])
def test_a_mask_is_the_samples_where_it_is_true(kind, tmp_path):
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    if kind == "strings":
        data = TextSet([f"text {i}" for i in range(6)], labels, ["a", "b", "c"])
    else:
        images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 16, 16).contiguous()
        for i, image in enumerate(images):
            Image.fromarray(image[0].numpy()).save(tmp_path / f"{i}.png")
        files = ImageFiles([str(tmp_path / f"{i}.png") for i in range(6)], 16, color=False)
        data = ImageSet(files if kind == "files" else images, labels, ["a", "b", "c"])
    for mask in (labels == 2, (labels == 2).numpy(), (labels == 2).tolist()):
        assert data.subset(mask).class_names == ["c"]
        for mine, whole in zip(data.batch(mask), data.batch([4, 5]), strict=True):
            assert torch.equal(mine, whole)
    for wrong in ([1.5, 2.5], [True, False], [[0, 1]], [6], [-1]):
        for take in (data.subset, data.batch):
            with pytest.raises(ValueError, match=r"kept|indices"):
                take(wrong)


@pytest.mark.parametrize(
    ("labels", "names", "attributes", "message"),
    [
        ([0, 0, 1, 1, 1, 1], ["a", "b"], {}, r"labels have shape \(6,\)"),
        ([0, 1], ["a", "b"], {}, r"one integer for each of 3 samples"),
        ([0.0, 1.0, 1.0], ["a", "b"], {}, "dtype float32"),
        ([0, 1, 2], ["a", "b"], {}, "from 0 to 2 and class_names 2"),
        ([-1, 0, 1], ["a", "b"], {}, "from -1 to 1"),
        ([0, 1, 1], ["a", "b"], {"camera": np.zeros(2)}, r"attributes\['camera'\] has 2 values"),
    ],
)
def test_labels_that_are_not_those_of_the_samples_are_refused(labels, names, attributes, message):
    with pytest.raises(ValueError, match=message):
        TextSet(["x", "y", "z"], torch.tensor(labels), names, attributes)
    with pytest.raises(ValueError, match=message):
        ImageSet(torch.zeros(3, 1, 16, 16, dtype=torch.uint8), torch.tensor(labels), names, attributes)
