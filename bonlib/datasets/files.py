"""Images in files, decoded when they are asked for."""

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bonlib.datasets.transforms import fit_size

_NAMED_ONLY = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # formats that Pillow knows by name and does not decode
_SYSTEM = {"thumbs.db", "desktop.ini", "icon\r"}  # files that Windows and macOS put into folders
SYSTEM_FOLDERS = {"@eadir", "__macosx", "#recycle", "$recycle.bin"}  # what storage and archives put beside them
_SIXTEEN_BITS = ("PNG", "PPM")  # formats of at most 16 bits that Pillow may give as mode I
_TICK = 10**9  # ns after a change within which another one may bear the same time
_PARTS, _PART = 32, 4096  # of a file that is larger than all of them together: how many, bytes of each


class BrokenImage(OSError):
    """An image file that cannot be read to its end."""


def why_no_image(path: Path) -> str | None:
    """Why a file is left out of a set of images, or ``None`` where it is one by its name."""
    if path.name.startswith("."):
        return "hidden"
    if path.name.lower() in _SYSTEM:
        return "of the system"
    if path.is_symlink() and not path.exists():
        return "broken link"
    if path.is_dir():
        return "of the system" if path.name.lower() in SYSTEM_FOLDERS else "folder without images"
    if not path.is_file():
        return "no file"
    return None if opens(suffix := path.suffix.lower()) else f"suffix {suffix or 'missing'}"


def opens(suffix: str) -> bool:
    """Whether Pillow can open files of this suffix, in lower case, now; plugins add to them."""
    from PIL import Image

    name = Image.registered_extensions().get(suffix)  # first, for it fills Image.OPEN
    return name in Image.OPEN and name not in _NAMED_ONLY


def file_digest(path: str) -> str:
    """Size and content of a file as a short text, wherever it lies; of a large one, parts spread over all of it.

    A process reads a file once, and again where the system tells that it has changed.
    """
    stat = os.stat(path)
    stamp = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
    settled = time.time_ns() - stat.st_ctime_ns > _TICK
    return (_digest if settled else _digest.__wrapped__)(path, *stamp)


@lru_cache(maxsize=2**20)
def _digest(path: str, *stamp: int) -> str:
    with Path(path).open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        digest = hashlib.sha256()
        for start in (0,) if size <= _PARTS * _PART else np.linspace(0, size - _PART, _PARTS).astype(int).tolist():
            opened.seek(start)
            digest.update(opened.read(_PARTS * _PART if size <= _PARTS * _PART else _PART))
        return f"{size}-{digest.hexdigest()[:16]}"


class ImageFiles:
    """Image files as if they were one uint8 tensor; each is decoded when it is asked for.

    Eight bits a channel come out, by these rules: 16-bit grey is scaled by the range of its format (65,535 is white);
    transparent pixels are laid on white; 32-bit and floating point pixels, whose range a file does not tell, are
    refused.

    Args:
        paths: of the images, in any format that Pillow reads.
        size: side of the images in pixels (the shorter side is scaled to it, the longer one cut), or ``(height,
            width)`` (scaled to just that).
        color: three channels, otherwise one.
    """

    def __init__(self, paths: Sequence[str], size: int | tuple[int, int], color: bool = True) -> None:
        self.paths, self.size, self.color = list(paths), size, color
        self._fit = fit_size(size)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(num_samples, channels, height, width)``."""
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return len(self.paths), 3 if self.color else 1, height, width

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def __getitem__(self, index: ArrayLike) -> Tensor:
        """One image ``(channels, height, width)`` for an int, several for a tensor of indices, uint8.

        Raises:
            BrokenImage: if a file is truncated or no image.
        """
        chosen = np.asarray(index)
        if chosen.ndim == 0:
            return self._decode(self.paths[int(chosen)])
        images = [self._decode(self.paths[i]) for i in chosen.tolist()]
        return torch.stack(images) if images else torch.empty((0, *self.shape[1:]), dtype=torch.uint8)

    def take(self, indices: Sequence[int]) -> "ImageFiles":
        """Only these files, in that order."""
        return ImageFiles([self.paths[i] for i in indices], self.size, self.color)

    def read_all(self, *, keep: bool = True) -> tuple[Tensor, list[str]]:
        """Decode all, with a thread for each core.

        Args:
            keep: the pixels; else they are only looked at, for sets that memory does not hold.

        Returns:
            Images ``(num_samples, channels, height, width)``, none of them without ``keep``; and a line for each file
            that cannot be read, whose image is black; the line is empty for the others.
        """
        from tqdm.auto import tqdm

        images = torch.zeros((len(self) if keep else 0, *self.shape[1:]), dtype=torch.uint8)

        def read(i: int) -> str:
            try:
                pixels = self[i]
            except BrokenImage as error:
                return str(error)
            if keep:
                images[i] = pixels
            return ""

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            bar = tqdm(
                pool.map(read, range(len(self))),
                total=len(self),
                desc="decoding",
                leave=False,
                disable=len(self) < 5000,
            )
            return images, list(bar)

    def _decode(self, path: str) -> Tensor:
        from PIL import Image, ImageOps
        from torchvision.transforms.v2.functional import pil_to_tensor

        try:
            with Image.open(path) as image:
                # Read before the pixels are: what the file says of itself is gone then.
                raw, tags = str(image.tile[0][3]) if image.tile else "", dict(getattr(image, "tag_v2", {}))
                upright = _eight_bits(ImageOps.exif_transpose(image), image.format, raw, tags)
                pixels = pil_to_tensor(upright.convert("RGB" if self.color else "L"))  # (channels, height, width)
        except Exception as error:  # Pillow's plugins raise whatever comes
            raise BrokenImage(f"{path} cannot be read: {error}. Replace it, or give on_error='skip'.") from error
        return self._fit(pixels)


def _eight_bits(image: Any, kind: str | None = None, raw: str = "", tags: Mapping[int, Any] | None = None) -> Any:
    """The image in a mode that Pillow converts to grey or colour without loss of range.

    Args:
        image: upright.
        kind: format of its file.
        raw: how the file stores pixels, in Pillow's words, such as ``L;2``.
        tags: of a TIFF.

    Raises:
        ValueError: if its range is not known.
    """
    from PIL import Image

    mode, tags = image.mode, tags or {}
    if mode.startswith("I;16") or (mode == "I" and kind in _SIXTEEN_BITS):
        values = np.asarray(image).astype(np.int64)
        most = 2 ** int(tags.get(258, (16,))[0]) - 1  # BitsPerSample: 12 and others are in the low bits
        pixels = (values * 255 + most // 2) // most
        grey = Image.fromarray((255 - pixels if tags.get(262) == 0 else pixels).clip(0, 255).astype(np.uint8))
        if isinstance(clear := image.info.get("transparency"), int):
            grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
        image = grey
    elif mode in ("I", "F"):
        numbers = "32-bit integers" if mode == "I" else "floating point numbers"
        raise ValueError(f"its pixels are {numbers}, whose range the file does not tell; save it with 8 or 16 bits")
    elif mode == "LAB":
        image = image.convert("RGB")
    elif mode in ("L", "RGB") and "transparency" in image.info:
        image.info["transparency"] = _in_eight_bits(image.info["transparency"], raw)
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels)
    return image


def _in_eight_bits(key: Any, raw: str) -> Any:
    """The colour that stands for transparency, as the file has it, as Pillow makes it of the file's pixels."""
    bits = next((depth for depth in (16, 1, 2, 4) if f";{depth}" in raw), 8)

    def scaled(value: int) -> int:
        return value >> 8 if bits == 16 else value * 255 // (2**bits - 1)

    return tuple(map(scaled, key)) if isinstance(key, tuple) else scaled(key) if isinstance(key, int) else key
