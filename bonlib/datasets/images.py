"""A dataset of labelled images, in memory or in files."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bonlib.core.checks import chosen_ids
from bonlib.datasets.files import ImageFiles, file_digest
from bonlib.datasets.labelled import LabelledSet
from bonlib.datasets.transforms import to_float


@dataclass
class ImageSet(LabelledSet):
    """Labelled images, which a loop asks for by batches of indices.

    It is a map-style dataset too, for ``DataLoader(dataset, batch_sampler=miner, num_workers=…)``.

    Attributes:
        images: ``(num_samples, channels, height, width)`` uint8, in memory or in files.
        labels: ``(num_samples,)`` int64, ``0 .. num_classes - 1``.
        class_names: name of each class.
        attributes: what else is known of each sample, arrays of ``(num_samples,)`` by name. Of these ``query`` and
            ``camera`` decide how a benchmark is evaluated, see :func:`~bonlib.training.metrics.evaluate`.
        transform: from one uint8 image to what the encoder gets, such as random flips and a normalisation; it draws
            from torch's global generator, as torchvision's transforms do. ``None``: to float32 in 0 to 1.
        source: where the images are from, plain values that go into the records of runs.
        ks: ranks of recall that are reported for this set.
        plain_transform: stands in the place of ``transform`` where one looks and evaluates, where that draws at random.
    """

    images: Tensor | ImageFiles
    labels: Tensor
    class_names: list[str]
    attributes: dict[str, NDArray[Any]] = field(default_factory=dict)
    transform: Callable[[Tensor], Tensor] | None = None
    source: dict[str, Any] = field(default_factory=dict)
    ks: tuple[int, ...] = (1, 2, 4, 8)
    plain_transform: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    @property
    def channels(self) -> int:
        """1 for grey images, 3 for colour."""
        return self.images.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that stand for images and labels, sample by sample, wherever they come from."""
        digest = hashlib.sha256("\n".join(self.class_names).encode(errors="surrogateescape"))
        digest.update(self.labels.cpu().numpy().astype("<i8").tobytes())
        if isinstance(self.images, Tensor):
            digest.update(np.ascontiguousarray(self.images.cpu().numpy()).data)
        else:
            digest.update("\n".join(map(file_digest, self.images.paths)).encode())
        return digest.hexdigest()[:16]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image ``(channels, height, width)`` float32 as the encoder gets it, and its label."""
        image = self.images[index]
        return (self.transform or to_float)(image), int(self.labels[index])

    def batch(self, indices: ArrayLike) -> tuple[Tensor, Tensor]:
        """Images ``(batch, channels, height, width)`` float32 as the encoder gets them, and labels ``(batch,)``."""
        chosen = torch.from_numpy(chosen_ids("indices", indices, len(self)))
        images = self.images[chosen]  # (batch, channels, height, width)
        if self.transform is None:
            return to_float(images), self.labels[chosen]
        return torch.stack([self.transform(image) for image in images]), self.labels[chosen]

    @cached_property
    def plain(self) -> "ImageSet":
        """The same set without random changes, as one looks at it and evaluates; itself, where none are known of."""
        if self.plain_transform is None:
            return self
        return self.changed(transform=self.plain_transform, plain_transform=None)

    def to(self, device: str | torch.device) -> "ImageSet":
        """The same set with its images on a device, so that batches need not be copied there; files stay files."""
        if not isinstance(self.images, Tensor):
            return self
        return self.changed(images=self.images.to(device))

    def pixels(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """Images as they are before the transform, to look at: ``(batch, channels, height, width)`` uint8."""
        return self.images[torch.from_numpy(chosen_ids("indices", indices, len(self)))].cpu().numpy()

    def samples_at(self, chosen: Tensor) -> dict[str, Any]:
        """The images at these indices."""
        images = self.images
        return {"images": images[chosen] if isinstance(images, Tensor) else images.take(chosen.tolist())}

    def of_class(self, name: str) -> NDArray[np.uint8]:
        """All images of the class of that name, ``(images, channels, height, width)`` uint8.

        Raises:
            ValueError: if there is no such class here; it may be in another split.
        """
        return self.pixels(self.ids_of_class(name))

    def __repr__(self) -> str:
        """Sizes in one line."""
        shape = "×".join(map(str, self.images.shape[1:]))
        return f"{type(self).__name__}({len(self):,} images {shape} of {self.num_classes:,} identities)"
