"""One plain training loop, the same for every miner and loss."""

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from bonlib.core.checks import as_array, check_device, embeddings_of, real_number, whole_number
from bonlib.core.distributed import RankMiner, from_rank_zero
from bonlib.core.miner import Miner
from bonlib.core.processes import world_size
from bonlib.datasets.labelled import LabelledSet
from bonlib.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from bonlib.training.described import described_dataset, described_loss, described_optimizer
from bonlib.training.embed import embed
from bonlib.training.encoders import unwrapped
from bonlib.training.metrics import evaluate
from bonlib.training.optimizers import make_optimizer, values_of

Precision = Literal["float32", "bfloat16"]
Schedule = Literal["constant", "cosine"]
PARTS: tuple[str, ...] = ("draw", "data", "compute", "hash", "refresh", "evaluate")
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
    seconds: dict[str, float]  # of this step, by PARTS: compute is forward and backward, hash the miner's update
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
    validation_queries: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 50,
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
    workers: int = 0,
    progress: Progress | None = None,
) -> Iterator[Step]:
    """Train an encoder, a step each time that it is iterated, so that a caller can draw, log or stop.

    Where torch.distributed is initialised, every process calls this with the same arguments, its own ``device``
    aside: each forwards its share of the global batch (:class:`~bonlib.core.distributed.RankMiner`), gradients are
    averaged by ``DistributedDataParallel``, rank 0 evaluates and saves. A loss that mines inside the batch sees the
    process's share.

    With ``checkpoint`` training goes on where an earlier call saved, says so, and comes to the same numbers as if it
    had not stopped, history included: on the CPU bit for bit, where ``workers`` is 0 (workers draw batches ahead, which
    are lost at a stop). Rank 0 finds the file and tells the others.

    Args:
        encoder: images to embeddings ``(batch, dim)``, or to a tuple, dict or dataclass whose first such entry they
            are; moved to ``device``, trained in place. Layers in evaluation mode stay so, unless all are.
        dataset: an :class:`~bonlib.datasets.images.ImageSet`, or a map-style dataset of ``(image, label)``.
        miner: draws the batches and is told the embeddings.
        loss: called with ``(embeddings, labels, index_tuple)``, returns the loss and the share of active tuples; see
            :func:`~bonlib.training.losses.make_loss`. One that returns the loss alone is taken too. Its parameters, if
            any, are trained too.
        steps: steps in total, those before a resumption included.
        lr: learning rate of Adam, where no optimiser is given; embeddings with sparse gradients get its sparse kind.
        loss_lr: that of the loss's own parameters, such as proxies; by default the same.
        schedule: ``"constant"``, or ``"cosine"`` to lower the learning rate to zero along half a cosine.
        optimizer: another optimiser, over the parameters of encoder and loss. A scheduler of your own can step it
            between two steps, where ``schedule`` is ``"constant"``.
        validation: a dataset of other classes to evaluate on.
        evaluate_every: evaluate after every so many steps, and after the last; 0 never.
        validation_queries: queries at most at each evaluation, see :func:`~bonlib.training.metrics.evaluate`.
        checkpoint: file to save to and to resume from.
        checkpoint_every: save there after every so many steps, and after the last; 0 after the last alone.
        device: ``"cpu"`` or ``"cuda"``.
        precision: ``"float32"``, or ``"bfloat16"`` for autocast.
        workers: processes that load and decode images; with 0 it is done here, which is best for sets in memory.
        progress: filled in while training goes on: the history of evaluations, seconds by part.

    Yields:
        A :class:`Step` after each step.

    Raises:
        ValueError: if an argument is out of its range, the miner was made for another number of samples, or the
            checkpoint is damaged, of another version, data, arguments or parts; nothing is changed then.
        FloatingPointError: if loss, embeddings or gradients are NaN or infinite; weights, running statistics and queues
            are then as before that step.

    Warns:
        CollapseWarning: once, when all embeddings of a batch are nearly alike.
    """
    steps, workers = whole_number("steps", steps, 1), whole_number("workers", workers, 0)
    evaluate_every = whole_number("evaluate_every", evaluate_every, 0)
    checkpoint_every = whole_number("checkpoint_every", checkpoint_every, 0)
    if validation_queries is not None:
        validation_queries = whole_number("validation_queries", validation_queries, 1)
    lr, loss_lr = real_number("lr", lr, 0), None if loss_lr is None else real_number("loss_lr", loss_lr, 0)
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision is {precision!r}; allowed are 'float32' and 'bfloat16'.")
    if schedule not in ("constant", "cosine"):
        raise ValueError(f"schedule is {schedule!r}; allowed are 'constant' and 'cosine'.")
    if evaluate_every and validation is None:
        raise ValueError(f"evaluate_every is {evaluate_every} but validation is None; give a dataset of other classes.")
    if len(dataset) != miner.num_samples:  # pyright: ignore[reportArgumentType]
        raise ValueError(
            f"miner was made with {miner.num_samples} labels, dataset has {len(dataset)} samples; "  # pyright: ignore
            "make the miner with the labels of this dataset."
        )
    if not _same_classes(getattr(dataset, "labels", None), miner):
        raise ValueError("miner was made with labels of other classes than the dataset has; give it dataset.labels.")
    device = check_device(device)
    if workers and device.type != "cpu" and getattr(getattr(dataset, "images", None), "is_cuda", False):
        raise ValueError(f"workers is {workers}, but the images are on a GPU already; give workers=0.")
    encoder.to(device)
    if not encoder.training:  # else what is in evaluation mode was put there on purpose
        encoder.train()
    loss.to(device)
    optimizer = optimizer or make_optimizer(encoder, loss, lr, loss_lr)
    progress = Progress() if progress is None else progress
    if progress.step:
        raise ValueError(f"progress is of a run at step {progress.step}; give a new one: Progress().")
    model, criterion, shared = _shared(encoder, loss, miner)
    parts = {"encoder": unwrapped(encoder), "loss": unwrapped(loss), "optimizer": optimizer, "miner": miner}
    file, made_of = Path(checkpoint) if checkpoint is not None else None, {}
    if file is not None:
        made_of = {"data": described_dataset(dataset), "validation": validation and described_dataset(validation)}
        made_of |= {
            "evaluate_every": evaluate_every,
            "validation_queries": validation_queries,
            "schedule": schedule,
            "precision": precision,
        }
        made_of |= {"loss": described_loss(loss)} | described_optimizer(optimizer)
        made_of |= {"steps": steps} if schedule == "cosine" else {}
    peaks = [group["lr"] for group in optimizer.param_groups]
    if file is not None:
        load_checkpoint(file, parts, progress, made_of, device, steps=steps)
    clock, warned = _Clock(device), False
    batches = _batches(dataset, shared, workers, clock)
    for step in range(progress.step + 1, steps + 1):
        with clock.part("refresh"):
            if shared.due:
                shared.refresh(lambda ids: embed(encoder, dataset, indices=ids, device=device, workers=workers)[0])
        indices, images, labels = next(batches)
        with clock.part("compute"), _put_back_unless_finite(model, criterion, step) as check:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                embeddings = embeddings_of(model(images))  # (batch, dim)
            value, active = _loss_and_active(criterion(embeddings.float(), labels, shared.index_tuple))
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            check(value, embeddings, optimizer)
            if schedule == "constant":
                optimizer.step()
            else:  # of the step alone, so that a resumed run needs no state for it
                with _rates(optimizer, peaks, (1 + math.cos(math.pi * (step - 1) / steps)) / 2):
                    optimizer.step()
        with clock.part("hash"):
            shared.update(indices, embeddings)
        if not warned and _spread(embeddings) < _COLLAPSED:
            warned = True
            text = f"All embeddings of the batch are nearly alike at step {step}: collapse."
            warnings.warn(f"{text} Draw easier negatives, or lower lr.", CollapseWarning, stacklevel=2)
        last, metrics = step == steps, None
        with clock.part("evaluate"):
            if evaluate_every and validation is not None and (step % evaluate_every == 0 or last):
                metrics = from_rank_zero(
                    lambda: evaluate(encoder, validation, most=validation_queries, device=device, workers=workers)
                )
        done = Step(step, value.item(), active, step * miner.batch_size, clock.take(), metrics)
        _measure(progress, done, miner)
        if file is not None and (last or (checkpoint_every and step % checkpoint_every == 0)):
            save_checkpoint(file, parts, progress, made_of, device)
        yield done


@contextmanager
def _rates(optimizer: torch.optim.Optimizer, peaks: list[float], share: float) -> Iterator[None]:
    """Learning rates that are a share of their peaks, for one step."""
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak * share
    yield
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group["lr"] = peak


def _measure(progress: Progress, done: Step, miner: Miner) -> None:
    """Add a step to what was measured so far."""
    progress.step = done.step
    for part, value in done.seconds.items():
        progress.seconds[part] = progress.seconds.get(part, 0.0) + value
    progress.loss, progress.active, progress.since = (
        progress.loss + done.loss, progress.active + done.active, progress.since + 1
    )  # fmt: skip
    if done.metrics is None:
        return
    progress.history.append({
        "step": done.step,
        "images": done.images,
        "training_seconds": sum(value for part, value in progress.seconds.items() if part != "evaluate"),
        "loss": progress.loss / progress.since,
        "active": progress.active / progress.since,
        **done.metrics,
        **{f"miner.{name}": value for name, value in miner.stats().items()},
    })  # fmt: skip
    progress.loss, progress.active, progress.since = 0.0, 0.0, 0


def _same_classes(labels: Any, miner: Miner) -> bool:
    """Whether labels group the samples as the miner's do, whatever the classes are called; unknown ones do."""
    if labels is None or miner.num_samples != len(labels):
        return labels is None
    ours = miner.class_of.astype(np.int64)
    theirs = np.unique(as_array(labels), return_inverse=True)[1]
    pairs = np.unique(ours * (int(theirs.max()) + 1) + theirs)
    return len(pairs) == len(miner.classes) == int(theirs.max()) + 1


def _loss_and_active(returned: Any) -> tuple[Tensor, float]:
    value, active = returned if isinstance(returned, tuple) else (returned, math.nan)
    return value, float(active)


class _Clock:
    """Seconds of a step by part, each measured when the device has done all it was given."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._seconds = device, dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = self._now()
        yield
        self._seconds[name] += self._now() - began

    def take(self) -> dict[str, float]:
        """What was measured since the last time."""
        taken, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return taken

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


@contextmanager
def _put_back_unless_finite(model: nn.Module, criterion: nn.Module, step: int) -> Iterator[Any]:
    """Running statistics and queues change in the forward pass: put them back where what came of it is not finite."""
    kept = [(buffer, buffer.clone()) for part in (model, criterion) for buffer in part.buffers()]
    extra = [
        (module, getattr(module, "before_step", module.get_extra_state)())
        for part in (model, criterion)
        for module in part.modules()
        if type(module).get_extra_state is not nn.Module.get_extra_state
    ]

    def check(value: Tensor, embeddings: Tensor, optimizer: torch.optim.Optimizer) -> None:
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [values_of(p.grad) for p in trained if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        total = embeddings.detach().sum(dtype=torch.float64)  # in which no sum of finite ones overflows
        sums = {"loss": value.detach(), "sum of the embeddings": total, "gradients' norm": norm}
        found = torch.stack([part.double().to(value.device) for part in sums.values()]).tolist()
        wrong = [
            f"The {name} is {number}" for name, number in zip(sums, found, strict=True) if not math.isfinite(number)
        ]
        if not wrong:
            return
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)
        for module, state in extra:
            getattr(module, "put_back", module.set_extra_state)(state)
        optimizer.zero_grad(set_to_none=True)
        raise FloatingPointError(
            f"{wrong[0]} at step {step}; weights and running statistics are as before it. Try a lower lr, "
            "precision='float32', or look for broken images."
        )

    yield check


def _shared(encoder: nn.Module, loss: nn.Module, miner: Miner) -> tuple[nn.Module, nn.Module, Miner | RankMiner]:
    """Encoder, loss and miner as they are, or wrapped for several processes."""
    if world_size() == 1:
        return encoder, loss, miner
    learns = any(parameter.requires_grad for parameter in loss.parameters())
    return DistributedDataParallel(encoder), DistributedDataParallel(loss) if learns else loss, RankMiner(miner)


def _batches(
    dataset: Dataset[Any], miner: Miner | RankMiner, workers: int, clock: _Clock
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Batches without end: indices, images, labels."""
    directly = isinstance(dataset, LabelledSet) and not workers
    # Of its own: a loader draws a seed for its workers, and a resumed run makes one at another step.
    generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
    while True:
        if directly:
            source = iter(miner)
        else:
            loader = DataLoader(Indexed(dataset), batch_sampler=miner, num_workers=workers, generator=generator)
            source = iter(loader)
        while True:
            with clock.part("draw" if directly else "data"):  # a loader draws while it loads
                drawn = next(source, None)
            if drawn is None:
                break
            if directly:
                with clock.part("data"):
                    images, labels = dataset.batch(drawn)  # pyright: ignore[reportAttributeAccessIssue]
                yield drawn, images, labels
            else:
                (images, labels), indices = drawn
                yield indices.tolist(), images, labels


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


@torch.no_grad()
def _spread(embeddings: Tensor) -> float:
    """Share of the embeddings' energy that varies within the batch: 0 when all are alike, about 1 at the start."""
    embeddings = embeddings.float()
    return float(embeddings.var(dim=0, correction=0).sum() / embeddings.square().sum(dim=1).mean().clamp_min(1e-30))
