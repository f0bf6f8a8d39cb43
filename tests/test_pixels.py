"""Pixels of every mode that Pillow knows: eight bits come out without loss of range, or the file is refused by name."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from bonlib import load_dataset
from bonlib.datasets.files import BrokenImage, ImageFiles, opens

RAMP = np.linspace(0, 65535, 1024).reshape(32, 32).astype(np.uint16)  # from black to white
EIGHT = (RAMP / 257).round().astype(np.uint8)


def decode(tmp_path, image, name="x.png", color=False, **options) -> np.ndarray:
    image.save(tmp_path / name, **options)
    return ImageFiles([str(tmp_path / name)], 32, color)[0].numpy()


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.tiff", "x.ppm"])
@pytest.mark.parametrize("color", [False, True])
def test_sixteen_bits_are_scaled_by_the_range_of_their_format(tmp_path, name, color):
    kinds = ("<u2",) if name == "x.ppm" else ("<u2", ">u2")
    for image in (Image.fromarray(RAMP.astype(kind)) for kind in kinds):
        found = decode(tmp_path, image, name, color)
        for channel in found:
            assert np.abs(channel.astype(int) - EIGHT).max() <= 1
    dark = decode(tmp_path, Image.fromarray(np.full((32, 32), 300, np.uint16)), name)
    assert dark.max() == 1  # not white: 300 of 65,535


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_other_modes_keep_their_range(tmp_path, mode):
    image = Image.fromarray(EIGHT).convert("RGB")
    image = image.quantize(256) if mode in ("P", "PA") else image.convert(mode)
    image = image.convert(mode)
    name = {"CMYK": "x.tif", "YCbCr": "x.tif", "HSV": None, "RGBX": "x.tif", "PA": None}.get(mode, "x.png")
    if name is None:  # no file has this mode, but a plugin may give it
        from bonlib.datasets.files import _eight_bits

        found = np.asarray(_eight_bits(image).convert("L"))[None]
    else:
        found = decode(tmp_path, image, name)
    if mode == "1":
        assert set(np.unique(found)) == {0, 255}
    else:
        assert np.abs(found[0].astype(int) - EIGHT).max() <= (8 if mode in ("P", "PA") else 3)


@pytest.mark.parametrize(("mode", "values"), [("F", np.linspace(0, 1, 1024)), ("I", np.arange(1024) * 1000)])
def test_pixels_whose_range_a_file_does_not_tell_are_refused_by_name(tmp_path, mode, values):
    kind = np.float32 if mode == "F" else np.int32
    Image.fromarray(values.reshape(32, 32).astype(kind)).save(tmp_path / "x.tif")
    with pytest.raises(BrokenImage, match=r"x.tif cannot be read: its pixels are .* save it with 8 or 16 bits"):
        ImageFiles([str(tmp_path / "x.tif")], 32)[0]


def see_through(mode: str) -> Image.Image:
    """A black square on the left half, fully transparent black on the right."""
    alpha = np.zeros((32, 32), np.uint8)
    alpha[:, :16] = 255
    image = Image.new("L", (32, 32))
    image.putalpha(Image.fromarray(alpha))
    return image.convert(mode) if mode != "LA" else image


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.tif"])
def test_transparent_pixels_are_laid_on_white(tmp_path, mode, color, name):
    image = see_through("RGBA")
    if mode == "P" and name == "x.png":
        image = image.quantize(4)
    elif mode == "LA" and name != "x.webp":
        image = see_through("LA")
    found = decode(tmp_path, image, name, color, **({"lossless": True} if name == "x.webp" else {}))
    assert (found[:, :, :14] < 10).all()
    assert (found[:, :, 18:] > 245).all()


def test_a_colour_that_stands_for_transparency_is_laid_on_white(tmp_path):
    grey = Image.fromarray(np.repeat([[10] * 16 + [20] * 16], 32, axis=0).astype(np.uint8))
    for image, clear in ((grey, 10), (grey.convert("RGB"), (10, 10, 10)), (Image.fromarray(RAMP), int(RAMP[0, 0]))):
        found = decode(tmp_path, image, transparency=clear)
        assert found[0, 0, 0] == 255
    assert decode(tmp_path, grey, transparency=10)[0, 0, 20] == 20


def test_a_transparent_index_of_a_gif_is_laid_on_white(tmp_path):
    image = Image.fromarray(np.repeat([[0] * 16 + [1] * 16], 32, axis=0).astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 9, 9, 9])
    found = decode(tmp_path, image, "x.gif", transparency=1)
    assert (found[0, 0, 0], found[0, 0, 20]) == (0, 255)


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    found = decode(tmp_path, Image.new("RGBA", (32, 32), (0, 0, 0, 51)))
    assert set(np.unique(found)) == {204}


def test_a_failure_is_not_kept(folders, monkeypatch):
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "jpeg")
    for i in range(6):
        for j in range(2):
            file = folders / "photos" / str(i) / f"{j}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(buffer.getvalue()[: None if i else len(buffer.getvalue()) - 100])
    options = {"root": folders / "photos", "size": 16}
    with pytest.raises(BrokenImage, match="cannot be read"):
        load_dataset("folder", "all", **options)
    with pytest.warns(UserWarning, match=r"Left out: 2 \(broken\)"):
        assert len(load_dataset("folder", "all", on_error="skip", **options)) == 10
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert len(load_dataset("folder", "all", **options)) == 12
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    with pytest.raises(BrokenImage, match="cannot be read"):  # nor is what another setting allowed
        load_dataset("folder", "all", **options)


def test_a_file_that_can_be_read_later_is_read_then_and_kept(folders, monkeypatch):
    for i in range(6):
        for j in range(2):
            file = folders / "photos" / str(i) / f"{j}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (i, j, 0)).save(file)
    options, decode = {"root": folders / "photos", "size": 16}, ImageFiles._decode

    def failing(self, path):
        if path.endswith("3/1.png"):
            raise BrokenImage("a plugin is missing")
        return decode(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(ImageFiles, "_decode", failing)
        with pytest.raises(BrokenImage, match="a plugin is missing"):
            load_dataset("folder", "all", **options)
    healed = load_dataset("folder", "all", **options)
    assert len(healed) == 12
    with monkeypatch.context() as patch:
        patch.setattr(ImageFiles, "_decode", failing)
        again = load_dataset("folder", "all", **options)  # from the cache
    assert isinstance(again.images, torch.Tensor)
    assert torch.equal(again.images, healed.images)


def test_suffixes_are_those_that_pillow_opens():
    assert all(map(opens, [".jpg", ".png", ".webp", ".tiff", ".jp2", ".pgm", ".tga", ".avif"]))
    assert not any(map(opens, [".pdf", ".mpg", ".h5", ".txt", ".npy", ""]))
