"""What all data sets share, whatever their samples are: labels, names of classes, and choosing among samples."""

import copy
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from bonlib.core.checks import as_array, chosen_ids


class LabelledSet(Dataset[tuple[Tensor, int]], ABC):
    """Labelled samples, which a loop asks for by batches of indices.

    It is a map-style dataset too, for ``DataLoader(dataset, batch_sampler=miner, num_workers=…)``. A subclass says
    what a sample is: :class:`~bonlib.datasets.images.ImageSet`, :class:`~bonlib.datasets.strings.TextSet`.

    Attributes:
        labels: ``(num_samples,)`` int64, ``0 .. num_classes - 1``.
        class_names: name of each class.
        attributes: what else is known of each sample, arrays of ``(num_samples,)`` by name. Of these ``query`` and
            ``camera`` decide how a benchmark is evaluated, see :func:`~bonlib.training.metrics.evaluate`.
        source: where the samples are from, plain values that go into the records of runs.
        ks: ranks of recall that are reported for this set.
    """

    labels: Tensor
    class_names: list[str]
    attributes: dict[str, NDArray[Any]]
    source: dict[str, Any]
    ks: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse labels that are not those of the samples.

        Raises:
            ValueError: if lengths differ, a label is no class, or ``ks`` are no ranks.
        """
        labels, count = as_array(self.labels), len(self)
        if labels.shape != (count,) or labels.dtype.kind not in "iu":
            text = f"labels have shape {labels.shape} and dtype {labels.dtype}"
            raise ValueError(f"{text}; give one integer for each of {count} samples.")
        if count and not (labels.min() >= 0 and labels.max() < self.num_classes):
            text = f"labels are from {labels.min()} to {labels.max()} and class_names {self.num_classes}"
            raise ValueError(f"{text}; give labels 0, 1, … and the name of each.")
        if not isinstance(self.ks, list | tuple) or not all(isinstance(k, int) and k > 0 for k in self.ks):
            raise ValueError(f"ks is {self.ks!r}; give ranks, whole numbers from 1 on, such as (1, 5).")
        for name, values in self.attributes.items():
            if len(values) != count:
                raise ValueError(
                    f"attributes[{name!r}] has {len(values)} values; give one for each of {count} samples."
                )

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def batch(self, indices: ArrayLike) -> tuple[Tensor, Tensor]:
        """Samples as the encoder gets them ``(batch, …)``, and labels ``(batch,)``."""

    @abstractmethod
    def samples_at(self, chosen: Tensor) -> dict[str, Any]:
        """The fields that hold the samples, for the samples at these indices alone."""

    @abstractmethod
    def pixels(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """Pictures of the samples, to look at: ``(batch, channels, height, width)`` uint8, ink high where grey."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of a sample, which the encoder has to know."""

    @cached_property
    @abstractmethod
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that stand for samples and labels, one by one, wherever they come from."""

    @cached_property
    def plain(self) -> "LabelledSet":
        """The same set without random changes, as one looks at it and evaluates; itself, where it has none."""
        return self

    @property
    def num_classes(self) -> int:
        """Number of identities."""
        return len(self.class_names)

    def to(self, device: str | torch.device) -> "LabelledSet":
        """The same set with its samples on a device, so that batches need not be copied there; here, as it is."""
        return self

    def changed(self, **fields: Any) -> Self:
        """A copy with other fields; nothing that was computed from the old ones stays."""
        other = copy.copy(self)
        for name in list(vars(other)):
            if isinstance(getattr(type(self), name, None), cached_property):
                del vars(other)[name]
        vars(other).update(fields)
        return other

    def subset(self, kept: ArrayLike) -> Self:
        """The samples at these indices, in that order, or of a mask; the classes that are left are numbered anew."""
        chosen = torch.from_numpy(chosen_ids("kept", kept, len(self)))
        classes, labels = self.labels[chosen].unique(return_inverse=True)
        return self.changed(
            **self.samples_at(chosen),
            labels=labels,
            class_names=[self.class_names[i] for i in classes.tolist()],
            attributes={name: values[chosen.numpy()] for name, values in self.attributes.items()},
        )

    def with_identities(self, count: int, *, seed: int = 0) -> Self:
        """Only the samples of ``count`` identities, drawn with ``seed``; the labels are numbered anew.

        Raises:
            ValueError: if there are not so many identities.
        """
        if not 2 <= count <= self.num_classes:
            raise ValueError(f"count is {count}; allowed are 2 to {self.num_classes}, the identities of this set.")
        chosen = np.sort(np.random.default_rng(seed).permutation(self.num_classes)[:count])
        return self.subset(np.flatnonzero(np.isin(self.labels.numpy(), chosen)))

    def with_label_noise(self, share: float, *, seed: int = 0) -> Self:
        """The same samples, of which a ``share`` drawn with ``seed`` bears the label of another identity.

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
        return self.changed(labels=labels)

    def with_split_identities(self, share: float, *, seed: int = 0) -> Self:
        """The same samples; half of those of a ``share`` of the identities, drawn with ``seed``, bear a second name.

        The share is of the identities with two samples or more. The second names come last, in the order in which
        their identities were drawn.

        Raises:
            ValueError: if the share is not in 0 to 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}; allowed are 0 to 1.")
        rng, labels = np.random.default_rng(seed), self.labels.numpy().copy()
        several = np.flatnonzero(np.bincount(labels, minlength=self.num_classes) > 1)
        split = rng.permutation(several)[: round(share * len(several))]
        for second, c in enumerate(split, self.num_classes):
            own = np.flatnonzero(labels == c)
            labels[rng.permutation(own)[: len(own) // 2]] = second
        names = [*self.class_names, *(f"{self.class_names[c]} (2)" for c in split)]
        return self.changed(labels=torch.from_numpy(labels), class_names=names)

    def ids_of_class(self, name: str) -> Tensor:
        """Indices of the samples of the class of that name, ``(samples,)``.

        Raises:
            ValueError: if there is no such class here; it may be in another split.
        """
        if name not in self.class_names:
            raise ValueError(f"name is {name!r}, which is no class of this split; class_names lists them.")
        return torch.nonzero(self.labels == list(self.class_names).index(name)).flatten()
