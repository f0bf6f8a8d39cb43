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
from torch.utils.data import Dataset

from bonlib.datasets.files import ImageFiles, file_digest


@dataclass
class ImageSet(Dataset[tuple[Tensor, int]]):
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
    """

    images: Tensor | ImageFiles
    labels: Tensor
    class_names: list[str]
    attributes: dict[str, NDArray[Any]] = field(default_factory=dict)
    transform: Callable[[Tensor], Tensor] | None = None
    source: dict[str, Any] = field(default_factory=dict)
    ks: tuple[int, ...] = (1, 2, 4, 8)

    @property
    def num_classes(self) -> int:
        """Number of identities."""
        return len(self.class_names)

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

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image ``(channels, height, width)`` float32 as the encoder gets it, and its label."""
        image = self.images[index]
        return image.float() / 255 if self.transform is None else self.transform(image), int(self.labels[index])

    def batch(self, indices: ArrayLike) -> tuple[Tensor, Tensor]:
        """Images ``(batch, channels, height, width)`` float32 as the encoder gets them, and labels ``(batch,)``."""
        chosen = torch.as_tensor(indices)
        images = self.images[chosen]  # (batch, channels, height, width)
        if self.transform is None:
            return images.float() / 255, self.labels[chosen]
        return torch.stack([self.transform(image) for image in images]), self.labels[chosen]

    def to(self, device: str | torch.device) -> "ImageSet":
        """The same set with its images on a device, so that batches need not be copied there; files stay files."""
        if not isinstance(self.images, Tensor):
            return self
        moved = self.images.to(device)
        return ImageSet(moved, self.labels, self.class_names, self.attributes, self.transform, self.source, self.ks)

    def pixels(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """Images as they are before the transform, to look at: ``(batch, channels, height, width)`` uint8."""
        return self.images[torch.as_tensor(indices)].cpu().numpy()

    def subset(self, kept: ArrayLike) -> "ImageSet":
        """The samples at these indices, in that order; the classes that are left are numbered anew."""
        chosen = torch.as_tensor(kept, dtype=torch.int64)
        classes, labels = self.labels[chosen].unique(return_inverse=True)
        images = self.images
        return ImageSet(
            images[chosen] if isinstance(images, Tensor) else images.take(chosen.tolist()),
            labels,
            [self.class_names[i] for i in classes.tolist()],
            {name: values[chosen.numpy()] for name, values in self.attributes.items()},
            self.transform,
            self.source,
            self.ks,
        )

    def with_identities(self, count: int, *, seed: int = 0) -> "ImageSet":
        """Only the images of ``count`` identities, drawn with ``seed``; the labels are numbered anew.

        Raises:
            ValueError: if there are not so many identities.
        """
        if not 2 <= count <= self.num_classes:
            raise ValueError(f"count is {count}; allowed are 2 to {self.num_classes}, the identities of this set.")
        chosen = np.sort(np.random.default_rng(seed).permutation(self.num_classes)[:count])
        return self.subset(np.flatnonzero(np.isin(self.labels.numpy(), chosen)))

    def with_label_noise(self, share: float, *, seed: int = 0) -> "ImageSet":
        """The same images, of which a ``share`` drawn with ``seed`` bears the label of another identity.

        Raises:
            ValueError: if the share is not in 0 to 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; allowed are 0 to 1.")
        rng = np.random.default_rng(seed)
        wrong = torch.from_numpy(rng.permutation(len(self))[: round(share * len(self))])
        labels = self.labels.clone()
        shifts = torch.from_numpy(rng.integers(1, self.num_classes, len(wrong)))  # never by nothing
        labels[wrong] = (labels[wrong] + shifts) % self.num_classes
        return ImageSet(self.images, labels, self.class_names, self.attributes, self.transform, self.source, self.ks)

    def of_class(self, name: str) -> NDArray[np.uint8]:
        """All images of the class of that name, ``(images, channels, height, width)`` uint8.

        Raises:
            ValueError: if there is no such class here; it may be in another split.
        """
        if name not in self.class_names:
            raise ValueError(f"name is {name!r}, which is no class of this split; class_names lists them.")
        return self.pixels(torch.nonzero(self.labels == list(self.class_names).index(name)).flatten())

    def __repr__(self) -> str:
        """Sizes in one line."""
        shape = "×".join(map(str, self.images.shape[1:]))
        return f"{type(self).__name__}({len(self):,} images {shape} of {self.num_classes:,} identities)"
