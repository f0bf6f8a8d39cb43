"""One plain training loop, the same for every miner and loss."""

import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from bonlib.distributed import RankMiner, broadcast_value, rank, world_size
from bonlib.evaluation import embed, evaluate
from bonlib.paths import read_torch, write_atomically
from bonlib.sampling import Miner

Precision = Literal["float32", "bfloat16"]
Schedule = Literal["constant", "cosine"]
PARTS = ("draw", "data", "compute", "hash", "refresh", "evaluate")
_FORMAT = "bonlib checkpoint 2"
_COLLAPSED = 1e-3  # share of the embeddings' energy that still varies


class CollapseWarning(UserWarning):
    """All embeddings of a batch are nearly alike: nothing can be learned from their distances."""


@dataclass(frozen=True)
class Step:
    """What one step of :func:`fit` did."""

    step: int  # counted from 1
    loss: float
    active: float  # share of tuples with a positive loss
    images: int  # forwarded in training so far, by all processes
    seconds: dict[
        str, float
    ]  # of this step: draw, data, compute (forward and backward), hash (update), refresh, evaluate
    metrics: dict[str, float] | None  # on the validation classes, at steps that evaluate


def fit(
    encoder: nn.Module,
    dataset: Dataset[Any],
    miner: Miner,
    loss: nn.Module,
    *,
    steps: int,
    lr: float = 1e-3,
    loss_lr: float | None = None,
    schedule: Schedule = "constant",
    optimizer: torch.optim.Optimizer | None = None,
    validation: Dataset[Any] | None = None,
    evaluate_every: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 0,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    workers: int = 0,
) -> Iterator[Step]:
    """Train an encoder; yields after each step, so that a caller can draw, log or stop.

    Where torch.distributed is initialised, every process calls this with the same arguments, its own ``device``
    aside: each forwards its share of the global batch (:class:`~bonlib.distributed.RankMiner`), gradients are averaged
    by ``DistributedDataParallel``, rank 0 evaluates and saves. A loss that mines inside the batch sees the process's
    share.

    With ``checkpoint`` training goes on where an earlier call saved, and comes to the same numbers as if it had not
    stopped: on the CPU bit for bit, where ``workers`` is 0 (workers draw batches ahead, which are lost at a stop).

    Args:
        encoder: images to embeddings ``(batch, dim)``; moved to ``device``, trained in place.
        dataset: an :class:`~bonlib.datasets.images.ImageSet`, or a map-style dataset of ``(image, label)``.
        miner: draws the batches and is told the embeddings.
        loss: called with ``(embeddings, labels, index_tuple)``, returns the loss and the share of active tuples; see
            :func:`~bonlib.losses.make_loss`. Its parameters, if any, are trained too.
        steps: steps in total, those before a resumption included.
        lr: learning rate of Adam, where no optimiser is given.
        loss_lr: that of the loss's own parameters, such as proxies; by default the same.
        schedule: ``"constant"``, or ``"cosine"`` to lower the learning rate to zero along half a cosine.
        optimizer: another optimiser, over the parameters of encoder and loss.
        validation: a dataset of other classes to evaluate on.
        evaluate_every: evaluate after every so many steps, and after the last; 0 never.
        checkpoint: file to save to and to resume from.
        checkpoint_every: save after every so many steps; the last is always saved.
        device: ``"cpu"`` or ``"cuda"``.
        precision: ``"float32"``, or ``"bfloat16"`` for autocast.
        workers: processes that load and decode images; with 0 it is done here, which is best for sets in memory.

    Yields:
        A :class:`Step` after each step.

    Raises:
        ValueError: if an argument is out of its range, or the checkpoint is damaged, of a newer version or of other
            parts; nothing is changed then.
        FloatingPointError: if the loss is NaN or infinite; the weights are then as before that step.

    Warns:
        CollapseWarning: once, when all embeddings of a batch are nearly alike.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; give at least 1.")
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision is {precision!r}; allowed are 'float32' and 'bfloat16'.")
    if schedule not in ("constant", "cosine"):
        raise ValueError(f"schedule is {schedule!r}; allowed are 'constant' and 'cosine'.")
    if evaluate_every and validation is None:
        raise ValueError(f"evaluate_every is {evaluate_every} but validation is None; give a dataset of other classes.")
    device = torch.device(device)
    encoder.to(device).train()
    loss.to(device)
    if optimizer is None:
        groups: list[dict[str, Any]] = [{"params": list(encoder.parameters())}]
        if own := list(loss.parameters()):
            groups.append({"params": own, "lr": lr if loss_lr is None else loss_lr})
        optimizer = torch.optim.Adam(groups, lr=lr)
    peaks = [group["lr"] for group in optimizer.param_groups]
    batch_size = miner.batch_size
    model, criterion, shared = _shared(encoder, loss, miner)
    parts = {"encoder": encoder, "loss": loss, "optimizer": optimizer, "miner": miner}
    file = Path(checkpoint) if checkpoint is not None else None
    done = _load(file, parts) if file is not None and file.exists() else 0
    batches = _batches(dataset, shared, workers)
    warned = False
    for step in range(done + 1, steps + 1):
        began = _now(device)
        if shared.due:
            shared.refresh(lambda ids: embed(encoder, dataset, indices=ids, device=device, workers=workers)[0])
        looked = _now(device) - began
        indices, images, labels, seconds = next(batches)
        seconds["refresh"] = looked
        began = time.perf_counter()
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            embeddings = model(images)  # (batch, dim)
        value, active = criterion(embeddings.float(), labels, shared.index_tuple)
        if not torch.isfinite(value):
            raise FloatingPointError(
                f"The loss is {value.item()} at step {step}; the weights are as before it. Try a lower lr, "
                "precision='float32', or look for broken images."
            )
        if schedule == "cosine":  # of the step alone, so that a resumed run needs no state for it
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        seconds["compute"] = -began + (began := _now(device))
        shared.update(indices, embeddings)
        seconds["hash"] = -began + (began := _now(device))
        if not warned and _spread(embeddings) < _COLLAPSED:
            warned = True
            text = f"All embeddings of the batch are nearly alike at step {step}: collapse."
            warnings.warn(f"{text} Draw easier negatives, or lower lr.", CollapseWarning, stacklevel=2)
        began, metrics = _now(device), None
        if evaluate_every and validation is not None and (step % evaluate_every == 0 or step == steps):
            here = evaluate(encoder, validation, device=device, workers=workers) if rank() == 0 else None
            metrics = broadcast_value(here)
        seconds["evaluate"] = _now(device) - began
        if file is not None and rank() == 0 and (step == steps or (checkpoint_every and step % checkpoint_every == 0)):
            _save(file, parts, step)
        yield Step(step, value.item(), active, step * batch_size, seconds, metrics)


def _shared(encoder: nn.Module, loss: nn.Module, miner: Miner) -> tuple[nn.Module, nn.Module, Miner | RankMiner]:
    """Encoder, loss and miner as they are, or wrapped for several processes."""
    if world_size() == 1:
        return encoder, loss, miner
    learns = any(parameter.requires_grad for parameter in loss.parameters())
    return DistributedDataParallel(encoder), DistributedDataParallel(loss) if learns else loss, RankMiner(miner)


def _batches(
    dataset: Dataset[Any], miner: Miner | RankMiner, workers: int
) -> Iterator[tuple[list[int], Tensor, Tensor, dict[str, float]]]:
    """Batches without end: indices, images, labels, and the seconds that drawing and loading took."""
    directly = hasattr(dataset, "batch") and not workers
    while True:
        if directly:
            source = iter(miner)
        else:
            source = iter(DataLoader(Indexed(dataset), batch_sampler=miner, num_workers=workers))
        while True:
            began = time.perf_counter()
            drawn = next(source, None)
            if drawn is None:
                break
            between = time.perf_counter()
            if directly:
                images, labels = dataset.batch(drawn)  # pyright: ignore[reportAttributeAccessIssue]
                yield drawn, images, labels, {"draw": between - began, "data": time.perf_counter() - between}
            else:  # the loader draws while it loads
                (images, labels), indices = drawn
                yield indices.tolist(), images, labels, {"draw": 0.0, "data": between - began}


class Indexed(Dataset[Any]):
    """A dataset that tells of each sample its index too, ``(sample, index)``, so that ``update`` can be told it.

    Args:
        dataset: any map-style dataset.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # pyright: ignore[reportArgumentType]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.dataset[index], index


def _now(device: torch.device) -> float:
    """Seconds, when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@torch.no_grad()
def _spread(embeddings: Tensor) -> float:
    """Share of the embeddings' energy that varies within the batch: 0 when all are alike, about 1 at the start."""
    embeddings = embeddings.float()
    return float(embeddings.var(dim=0, correction=0).sum() / embeddings.square().sum(dim=1).mean().clamp_min(1e-30))


def _save(file: Path, parts: dict[str, Any], step: int) -> None:
    # Losses and dropout layers draw from torch's global generators, so these belong to the state.
    state = {"format": _FORMAT, "step": step, "rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state_all()}
    state |= {name: part.state_dict() for name, part in parts.items()}
    write_atomically(file, lambda temporary: torch.save(state, temporary))


def _load(file: Path, parts: dict[str, Any]) -> int:
    """Take over a checkpoint, all of it or nothing; returns its step.

    Raises:
        ValueError: if it is truncated, foreign, of a newer version, or of other parts than these.
    """
    state = read_torch(file, _FORMAT, "remove it and train anew")
    for name in ("encoder", "loss"):
        own, saved = (  # of extra state, which has no shape, the name counts
            {key: getattr(value, "shape", ()) for key, value in part.items()}
            for part in (parts[name].state_dict(), state[name])
        )
        if wrong := sorted(key for key in own.keys() | saved.keys() if own.get(key) != saved.get(key)):
            raise ValueError(
                f"checkpoint {file} is of another {name}: {wrong[0]} is {saved.get(wrong[0])} there and "
                f"{own.get(wrong[0])} here; resume with the arguments that it was saved with."
            )
    before = parts["miner"].state_dict()
    parts["miner"].load_state_dict(state["miner"])  # checks, then changes
    try:
        parts["optimizer"].load_state_dict(state["optimizer"])  # checks, then changes
    except ValueError as error:
        parts["miner"].load_state_dict(before)
        raise ValueError(f"checkpoint {file} is of another optimizer ({error}); resume with that one.") from error
    for name in ("encoder", "loss"):
        parts[name].load_state_dict(state[name])
    torch.set_rng_state(state["rng"])
    if len(state["cuda_rng"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    return state["step"]
