"""A dataset of labelled images in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset


@dataclass
class ImageSet(Dataset[tuple[Tensor, int]]):
    """Labelled images as one uint8 tensor; batches are cut from it without a loader process.

    It is a map-style dataset too, for ``DataLoader(dataset, batch_sampler=miner, num_workers=…)``.

    Attributes:
        images: ``(num_samples, channels, height, width)`` uint8.
        labels: ``(num_samples,)`` int64, ``0 .. num_classes - 1``.
        class_names: name of each class.
        attributes: what else is known of each sample, arrays of ``(num_samples,)`` by name.
    """

    images: Tensor
    labels: Tensor
    class_names: list[str]
    attributes: dict[str, NDArray[np.generic]] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of identities."""
        return len(self.class_names)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image ``(channels, height, width)`` float32 in 0 to 1, and its label."""
        return self.images[index].float() / 255, int(self.labels[index])

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images ``(batch, channels, height, width)`` float32 in 0 to 1, and labels ``(batch,)``."""
        chosen = torch.as_tensor(indices)
        return self.images[chosen].float() / 255, self.labels[chosen]

    def with_identities(self, count: int, *, seed: int = 0) -> "ImageSet":
        """Only the images of ``count`` identities, drawn with ``seed``; the labels are numbered anew.

        Raises:
            ValueError: if there are not so many identities.
        """
        if not 2 <= count <= self.num_classes:
            raise ValueError(f"count is {count}; allowed are 2 to {self.num_classes}, the identities of this set.")
        chosen = np.sort(np.random.default_rng(seed).permutation(self.num_classes)[:count])
        kept = torch.isin(self.labels, torch.from_numpy(chosen))
        return ImageSet(
            self.images[kept],
            torch.searchsorted(torch.from_numpy(chosen), self.labels[kept]),
            [self.class_names[i] for i in chosen],
            {name: values[kept.numpy()] for name, values in self.attributes.items()},
        )

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
        return ImageSet(self.images, labels, self.class_names, self.attributes)

    def of_class(self, name: str) -> NDArray[np.uint8]:
        """All images of the class of that name, ``(images, channels, height, width)`` uint8.

        Raises:
            ValueError: if there is no such class here; it may be in another split.
        """
        if name not in self.class_names:
            raise ValueError(f"name is {name!r}, which is no class of this split; class_names lists them.")
        return self.images[self.labels == list(self.class_names).index(name)].numpy()

    def __repr__(self) -> str:
        """Sizes in one line."""
        shape = "×".join(map(str, self.images.shape[1:]))
        return f"{type(self).__name__}({len(self):,} images {shape} of {self.num_classes:,} identities)"
