"""Encoders by name: a small convolutional net for the study, and torchvision's backbones."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

_CHANNELS = (32, 64, 64, 128)


class L2Normalize(nn.Module):
    """Scale each row to length one."""

    def forward(self, embeddings: Tensor) -> Tensor:
        """``(batch, dim)`` to ``(batch, dim)``."""
        return normalize(embeddings, dim=1)


def small_convnet(dim: int = 64, in_channels: int = 1) -> nn.Module:
    """Four blocks of convolution, batch norm, ReLU and pooling, then a linear layer: images to unit embeddings.

    Args:
        dim: width of the embeddings.
        in_channels: channels of the images, whose sides must be at least 16 pixels.
    """
    layers: list[nn.Module] = []
    for width_in, width in zip((in_channels, *_CHANNELS), _CHANNELS, strict=False):
        layers += [
            nn.Conv2d(width_in, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        layers += [nn.MaxPool2d(2)]  # halves height and width
    encoder = nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.BatchNorm1d(4 * _CHANNELS[-1]),
        nn.Linear(4 * _CHANNELS[-1], dim, bias=False),
        L2Normalize(),
    )
    return encoder.to(memory_format=torch.channels_last)  # a third faster on the CPU


def make_encoder(name: str = "small", *, dim: int = 64, in_channels: int = 1, seed: int = 0) -> nn.Module:
    """An untrained encoder: images ``(batch, in_channels, height, width)`` to unit embeddings ``(batch, dim)``.

    Args:
        name: ``"small"``, or a torchvision classification model with a last linear layer, such as ``"resnet50"``.
        dim: width of the embeddings.
        in_channels: channels of the images; torchvision's models take 3.
        seed: seed of the initial weights; the global generator is left as it was.

    Raises:
        ValueError: if there is no such model, or it cannot take the images.

    Example:
        >>> make_encoder(dim=16)(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 16])
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return small_convnet(dim, in_channels) if name == "small" else _backbone(name, dim, in_channels)


def _backbone(name: str, dim: int, in_channels: int) -> nn.Module:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise ValueError(f"name is {name!r}; allowed are 'small' and torchvision's classification models.")
    if in_channels != 3:
        raise ValueError(f"in_channels is {in_channels}; {name} takes 3. Repeat grey images over three channels.")
    model = models.get_model(name, weights=None)
    owner, last = next((m, n) for m, n in reversed(_children(model)) if isinstance(getattr(m, n), nn.Linear))
    setattr(owner, last, nn.Linear(getattr(owner, last).in_features, dim))
    return nn.Sequential(model, L2Normalize())


def _children(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every submodule as ``(its owner, its name there)``, in order."""
    return [(owner, name) for owner in model.modules() for name, _ in owner.named_children()]
