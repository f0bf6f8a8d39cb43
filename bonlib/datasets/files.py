"""Images in files, decoded when they are asked for."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from bonlib.datasets.transforms import fit_size


class BrokenImage(OSError):
    """An image file that cannot be read to its end."""


class ImageFiles:
    """Image files as if they were one uint8 tensor; each is decoded when it is asked for.

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

    def read_all(self) -> tuple[Tensor, list[str]]:
        """Decode all, with a thread for each core.

        Returns:
            Images ``(num_samples, channels, height, width)``, and a line for each file that cannot be read, whose image
            is black; the line is empty for the others.
        """
        from tqdm.auto import tqdm

        images = torch.zeros(self.shape, dtype=torch.uint8)

        def read(i: int) -> str:
            try:
                images[i] = self[i]
            except BrokenImage as error:
                return str(error)
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
                upright = ImageOps.exif_transpose(image)
                pixels = pil_to_tensor(upright.convert("RGB" if self.color else "L"))  # (channels, height, width)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise BrokenImage(f"{path} cannot be read: {error}. Replace it, or give on_error='skip'.") from error
        return self._fit(pixels)
