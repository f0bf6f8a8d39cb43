"""From decoded pixels to what an encoder gets, with torchvision's transforms."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Augmentation = Literal["flip", "crop", "resized-crop"]
Statistics = Literal["imagenet"]
AUGMENTATIONS = ("flip", "crop", "resized-crop")
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # mean and deviation of red, green, blue


def fit_size(size: int | tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """The part that never changes: to a side (scale the shorter, cut the longer), or to just ``(height, width)``.

    Raises:
        ValueError: if a side is below 8 pixels.
    """
    from torchvision.transforms import v2

    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 8 for side in sides):
        raise ValueError(f"size is {size!r}; give a side or (height, width) in pixels, at least 8 each.")
    if isinstance(size, int):
        return v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])
    return v2.Resize(list(sides), antialias=True)


def to_float(image: Tensor) -> Tensor:
    """Uint8 images as float32 in 0 to 1."""
    return image.float() / 255


def make_transform(
    size: int | tuple[int, int],
    augment: Augmentation | None,
    trained_with: Augmentation | None = None,
    statistics: Statistics | None = None,
) -> Callable[[Tensor], Tensor] | None:
    """From one uint8 image ``(channels, height, width)`` to float32, with random changes for training.

    ``"flip"`` mirrors half of the images. ``"crop"`` does too, and shifts by up to a sixteenth of the sides, as is the
    custom of person re-identification. ``"resized-crop"`` mirrors, and cuts out a part of 20 to 100 % of the area and
    scales it to seven eighths of the sides (224 of 256), as is the custom of product and bird retrieval; evaluation
    then takes the middle of that size.

    Args:
        size: of the images that come in.
        augment: one of the above, or ``None`` for evaluation.
        trained_with: what the training images get: after ``"resized-crop"`` evaluation takes the middle.
        statistics: ``"imagenet"`` subtracts the mean and divides by the deviation of ImageNet's colours.

    Returns:
        The transform, or ``None`` where scaling to 0 to 1 is all there is to do. Random ones draw from torch's global
        generator.

    Raises:
        ValueError: if a name is not known.
    """
    from torchvision.transforms import v2

    for name in (augment, trained_with):
        if name not in (None, *AUGMENTATIONS):
            raise ValueError(f"augment is {name!r}; allowed are None, {', '.join(map(repr, AUGMENTATIONS))}.")
    if statistics not in (None, "imagenet"):
        raise ValueError(f"statistics is {statistics!r}; allowed are None and 'imagenet'.")
    height, width = (size, size) if isinstance(size, int) else size
    inner = [height * 7 // 8, width * 7 // 8]
    steps: list[torch.nn.Module] = []
    if augment == "resized-crop":
        steps.append(v2.RandomResizedCrop(inner, scale=(0.2, 1.0), antialias=True))
    elif trained_with == "resized-crop":
        steps.append(v2.CenterCrop(inner))
    if augment == "crop":
        steps.append(v2.RandomCrop([height, width], padding=[width // 16, height // 16]))
    if augment is not None:
        steps.append(v2.RandomHorizontalFlip())
    if not steps and statistics is None:
        return None
    steps.append(v2.ToDtype(torch.float32, scale=True))
    if statistics == "imagenet":
        steps.append(v2.Normalize(*IMAGENET))
    return v2.Compose(steps)
