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
    class_names: Sequence[str]
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
