"""Encoders by name: a small convolutional net and one of n-grams, torchvision's backbones; saving and loading them."""

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from bonlib.core.checks import check_device, embeddings_of, known_options, needs_extra, plain, whole_number
from bonlib.core.paths import read_torch, write_torch
from bonlib.datasets.strings import VOCABULARY

_CHANNELS = (32, 64, 64, 128)
_FORMAT = "bonlib encoder 1"


class L2Normalize(nn.Module):
    """Scale each row to length one."""

    def forward(self, embeddings: Tensor) -> Tensor:
        """``(batch, dim)`` to ``(batch, dim)``."""
        return normalize(embeddings, dim=1)


def small_convnet(dim: int = 64, in_channels: int = 1) -> nn.Module:
    """Four blocks of convolution, batch norm, pooling and ReLU, then a linear layer: images to unit embeddings.

    Args:
        dim: width of the embeddings.
        in_channels: channels of the images, whose sides must be at least 16 pixels.
    """
    layers: list[nn.Module] = []
    for width_in, width in zip((in_channels, *_CHANNELS), _CHANNELS, strict=False):
        layers += [
            nn.Conv2d(width_in, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.MaxPool2d(2),  # halves height and width
            nn.ReLU(inplace=True),  # after pooling: the same function, on a quarter of the pixels
        ]
    encoder = nn.Sequential(
        *layers,
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.BatchNorm1d(4 * _CHANNELS[-1]),
        nn.Linear(4 * _CHANNELS[-1], dim, bias=False),
        L2Normalize(),
    )
    return encoder.to(memory_format=torch.channels_last)  # a third faster on the CPU


def ngram_net(dim: int = 64, width: int = 128) -> nn.Module:
    """The mean of a vector for each n-gram, then two linear layers: rows of hashed n-grams to unit embeddings.

    The vectors' gradients are sparse: a step costs what its n-grams cost, not the vocabulary.

    Args:
        dim: width of the embeddings.
        width: of the vector of an n-gram.

    Source: Bojanowski et al., "Enriching word vectors with subword information", 2017; the layers are ours.
    """
    encoder = nn.Sequential(
        nn.EmbeddingBag(VOCABULARY, width, mode="mean", sparse=True, padding_idx=0),
        nn.BatchNorm1d(width),
        nn.Linear(width, 2 * width),
        nn.ReLU(),
        nn.Linear(2 * width, dim, bias=False),
        L2Normalize(),
    )
    with torch.no_grad():  # as small as what Adam moves a weight by in ten steps, so that rare n-grams learn in time
        encoder[0].weight.mul_(0.01)  # pyright: ignore[reportOperatorIssue, reportCallIssue, reportIndexIssue]
    return encoder


class FrozenBatchNorm(nn.Module):
    """A backbone whose batch norm layers stay in evaluation mode, with the statistics that its weights came with.

    Their scales and shifts are frozen too. Small batches, or batches from a few buckets, would change the statistics.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        for layer in self._norms():
            layer.requires_grad_(False)
        self.train(self.training)

    def forward(self, images: Tensor) -> Tensor:
        """What the backbone returns."""
        return self.model(images)

    def train(self, mode: bool = True) -> "FrozenBatchNorm":
        """Set the mode of all layers but the batch norms."""
        super().train(mode)
        for layer in self._norms():
            layer.eval()
        return self

    def _norms(self) -> list[nn.Module]:
        return [layer for layer in self.model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


def make_encoder(
    name: str = "small",
    *,
    dim: int = 64,
    in_channels: int = 1,
    seed: int = 0,
    weights: str | None = None,
    freeze_batch_norm: bool = False,
) -> nn.Module:
    """An encoder: images ``(batch, in_channels, height, width)`` or n-grams ``(batch, n)`` to unit embeddings.

    Args:
        name: ``"small"`` for images, ``"ngrams"`` for strings, or a torchvision classification model with a last linear
            layer, such as ``"resnet50"``.
        dim: width of the embeddings.
        in_channels: channels of the images; torchvision's models take 3, strings have 1.
        seed: seed of the initial weights; the global generator is left as it was.
        weights: of a torchvision model, such as ``"DEFAULT"`` or ``"IMAGENET1K_V2"``; torchvision fetches them on first
            use. They expect images with ImageNet's statistics: ``load_dataset(…, statistics="imagenet")``.
        freeze_batch_norm: keep the batch norms of a torchvision model as its weights brought them.

    Raises:
        ValueError: if there is no such model or weights, or it cannot take the images.

    Example:
        >>> make_encoder(dim=16)(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 16])
    """
    dim, in_channels = whole_number("dim", dim, 1), whole_number("in_channels", in_channels, 1)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # that of the CPU alone
        if name not in ("small", "ngrams"):
            return _backbone(name, dim, in_channels, weights, freeze_batch_norm)
        if weights is not None or freeze_batch_norm:
            raise ValueError(f"weights is {weights!r} and freeze_batch_norm {freeze_batch_norm}; {name!r} has neither.")
        return small_convnet(dim, in_channels) if name == "small" else ngram_net(dim)


def _backbone(name: str, dim: int, in_channels: int, weights: str | None, freeze_batch_norm: bool) -> nn.Module:
    with needs_extra(f"encoder {name!r}"):
        from torchvision import models
    if name not in models.list_models(module=models):
        raise ValueError(f"name is {name!r}; allowed are 'small', 'ngrams' and torchvision's classification models.")
    if in_channels != 3:
        raise ValueError(f"in_channels is {in_channels}; {name} takes 3. Repeat grey images over three channels.")
    allowed = [entry.name for entry in models.get_model_weights(name)]
    if weights not in (None, "DEFAULT", *allowed):
        raise ValueError(f"weights is {weights!r}; {name} has {', '.join(allowed)}, 'DEFAULT' or None.")
    model = models.get_model(name, weights=weights)
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        alone = models.get_model(name)
    shapes, wanted = ({key: of.shape for key, of in one.state_dict().items()} for one in (model, alone))
    if shapes != wanted or getattr(model, "transform_input", False):
        raise ValueError(
            f"weights is {weights!r}, with which torchvision makes another {name} than without (auxiliary heads, other "
            "images), so that it could not be loaded again; take other weights, None, or another model."
        )
    linear = [n for n, module in model.named_modules() if isinstance(module, nn.Linear) and "aux" not in n.lower()]
    if not linear:
        raise ValueError(f"name is {name!r}, which has no linear layer to replace; take another, such as 'resnet18'.")
    owner, _, last = linear[-1].rpartition(".")
    module = model.get_submodule(owner)
    setattr(module, last, nn.Linear(getattr(module, last).in_features, dim))
    return nn.Sequential(FrozenBatchNorm(model) if freeze_batch_norm else model, L2Normalize())


def check_takes(encoder: nn.Module, image: Tensor, name: str) -> None:
    """Find out before training whether an encoder takes samples of a shape.

    Args:
        encoder: to try; its mode and statistics are left alone.
        image: ``(channels, height, width)`` float32, or n-grams ``(n,)`` int64.
        name: of the encoder, for the message.

    Raises:
        ValueError: if it does not.
    """
    try:
        with torch.no_grad(), evaluating(encoder):
            embeddings_of(encoder(image[None]))
    except Exception as error:  # each layer has its own way to fail
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        shape = "×".join(map(str, image.shape))
        cure = "give another size" if image.is_floating_point() else "strings need the encoder 'ngrams'"
        raise ValueError(f"encoder {name!r} does not take samples of {shape} ({reason}); {cure}.") from error


@contextmanager
def evaluating(encoder: nn.Module) -> Iterator[None]:
    """Put an encoder into evaluation mode; each layer gets its own mode back, for some may be frozen."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``, or the module itself."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = module.module
        if inner is None:
            return module
        module = inner


def save_encoder(
    file: str | Path,
    encoder: nn.Module,
    *,
    dataset: str = "",
    images: dict[str, Any] | None = None,
    learned: Iterable[str] = (),
    begun: str | Path | None = None,
    **made: Any,
) -> Path:
    """Write an encoder's weights, with all that is needed to make it again.

    Args:
        file: where to; an older file is replaced in one piece.
        encoder: as :func:`make_encoder` made it, perhaps compiled or wrapped since.
        dataset: name of the data set that it learned from, see :func:`dataset_of`.
        images: options of the data set that it takes, such as ``size``, plain values; :func:`load_encoder` gives them
            back.
        learned: names of the identities that it learned from, of which the file keeps hashes: :func:`seen_identities`.
        begun: file of the encoder that it began with, which knows identities too.
        **made: the arguments of :func:`make_encoder` that it was made with, ``seed`` and ``weights`` left out.

    Raises:
        ValueError: if these arguments do not make such an encoder; nothing is written then.
    """
    made, images, state = plain(made), plain(images or {}), unwrapped(encoder).state_dict()
    try:
        with torch.device("meta"):  # takes no memory
            make_encoder(**made).load_state_dict(state, assign=True)
    except (RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"made is {made}, which does not make this encoder: {reason} Give what made it.") from error
    known = _hashed(learned) if begun is None else torch.cat([_learned(begun), _hashed(learned)]).unique()
    content = {"format": _FORMAT, "made": made, "images": images, "state": state, "learned": known, "dataset": dataset}
    write_torch(Path(file), content)
    return Path(file)


def seen_identities(file: str | Path, names: Sequence[str]) -> list[str]:
    """Those of some identities that the encoder of a file learned from, by their names.

    A split that is drawn anew, because identities were added to the data, would test some of them.
    """
    known = set(_learned(file).tolist())
    return [name for name, own in zip(names, _hashed(names).tolist(), strict=True) if own in known]


def dataset_of(file: str | Path) -> str:
    """The name of the data set that the encoder of a file learned from, empty where the file does not tell."""
    return read_torch(Path(file), _FORMAT, "give one that save_encoder wrote").get("dataset", "")


def _learned(file: str | Path) -> Tensor:
    """Hashes of the names of the identities that the encoder of a file learned from: ``(identities,)`` int64."""
    content = read_torch(Path(file), _FORMAT, "give one that save_encoder wrote")
    return content.get("learned", torch.empty(0, dtype=torch.int64))


def _hashed(names: Iterable[str]) -> Tensor:
    """Eight bytes for each name: ``(names,)`` int64."""
    digests = b"".join(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest() for name in names)
    return torch.frombuffer(bytearray(digests), dtype=torch.int64) if digests else torch.empty(0, dtype=torch.int64)


def load_encoder(file: str | Path, *, device: str | torch.device = "cpu") -> tuple[nn.Module, dict[str, Any]]:
    """An encoder that :func:`save_encoder` wrote, in evaluation mode, and the options of the images that it takes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is truncated, or no encoder of bonlib.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"file is {str(file)!r}, which is no file; give one that save_encoder wrote.")
    device = check_device(device)
    content = read_torch(Path(file), _FORMAT, "give one that save_encoder wrote", device)
    if lacking := sorted({"made", "images", "state"} - content.keys()):
        raise ValueError(f"{file} is damaged: it lacks {', '.join(lacking)}; give one that save_encoder wrote.")
    with known_options(f"encoder of {file}"):
        encoder = make_encoder(**content["made"])
    encoder = encoder.to(device)
    encoder.load_state_dict(content["state"])
    return encoder.eval(), content["images"]
