"""One run of the study: from a config to a record."""

import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike
from torch import Tensor, nn

from bonlib.core.checks import as_array, check_device, known_options
from bonlib.core.distributed import RankMiner, from_rank_zero
from bonlib.core.layout import Ids
from bonlib.core.means import class_means
from bonlib.core.miner import Miner
from bonlib.core.paths import data_dir
from bonlib.core.processes import rank, world_size
from bonlib.datasets import content_key, load_dataset
from bonlib.datasets.labelled import LabelledSet
from bonlib.miners import make_miner
from bonlib.study.analysis import bag_of, bag_quality
from bonlib.study.config import Config, make_config
from bonlib.study.memory import keep_freed_memory
from bonlib.study.records import config_key, provenance, save_run, sweep_dir
from bonlib.training.checkpoint import Progress
from bonlib.training.embed import embed
from bonlib.training.encoders import check_takes, load_encoder, make_encoder, save_encoder, seen_identities
from bonlib.training.loop import PARTS, Step, fit
from bonlib.training.losses import MinedLoss, has_centres, make_loss, set_centres
from bonlib.training.metrics import measure, recall_by_gallery

CHECKPOINT_EVERY = 50  # steps


class Experiment:
    """A run: iterate over it to train, then :meth:`save` evaluates on the test classes and writes the record.

    All splits are loaded before training, so that what is wrong with the data is found then.

    Args:
        config: what to do.
        checkpoint: file to save to while training, and to go on from, where an earlier process or cell was stopped; it
            is removed when the record is written.

    Attributes:
        config: what to do.
        train, validation: data sets of disjoint classes.
        encoder, miner, loss: what :func:`~bonlib.training.loop.fit` takes.
        progress: what was measured so far; ``history`` and ``seconds`` are parts of it.

    Raises:
        ValueError, OSError: if a setting or the data are not as they should be.
    """

    def __init__(self, config: Config, checkpoint: Path | None = None) -> None:
        self.config, self.checkpoint = config, checkpoint
        check_device(config.device)
        keep_freed_memory()
        _check_parts(config)
        self.provenance = provenance()  # of the code as it was loaded, whatever is edited while it runs
        self.train, self.validation = self._split("train"), self._split("validation")
        test = self._split("test") if config.test else None
        _check_pairs("validation", self.validation if config.evaluate_every else None)
        _check_pairs("test", test)
        self._unseen = [*self.validation.class_names, *(test.class_names if test else [])]
        self._key = config_key(asdict(config))  # of the data as they are now
        self._content = str(content_key(config.dataset, config.dataset_options).get("content", ""))
        if config.identities is not None:
            self.train = self.train.with_identities(config.identities, seed=config.seed)
        if config.split_identities:
            self.train = self.train.with_split_identities(config.split_identities, seed=config.seed)
        if config.label_noise:
            self.train = self.train.with_label_noise(config.label_noise, seed=config.seed)
        if config.device.startswith("cuda") and not config.workers:
            self.train = self.train.to(config.device)  # once, rather than batch by batch
        self.begun: Path | None = None  # file of the encoder that it begins with
        self._make()

    def _split(self, name: str) -> LabelledSet:
        own = {"split_seed": self.config.seed} if self.config.own_split else {}
        return load_dataset(self.config.dataset, name, **self.config.dataset_options | own)

    def _make(self) -> None:
        """Encoder, miner and loss as they are before the first step."""
        config = self.config
        with known_options(f"encoder {config.encoder!r}"):
            self.encoder = make_encoder(
                config.encoder, dim=config.dim, in_channels=self.train.channels, seed=config.seed,
                **config.encoder_options,
            )  # fmt: skip
        check_takes(self.encoder, self.validation[0][0].cpu(), config.encoder)
        if config.start is not None:
            self.begun = _begin_with(self.encoder, config)
            if seen := seen_identities(self.begun, self._unseen):
                warnings.warn(
                    f"start is {self.begun}, which learned from identities of the same names as {len(seen)} of those "
                    f"that this run is measured on, such as {seen[0]!r}. Where they are the same, the data have "
                    "changed, and their split with them: begin anew, or fix the split (a table has a column for it).",
                    stacklevel=3,
                )
        batch_size = config.batch_size
        if config.form == "set" and (most := self.train.num_classes * config.per_class) < batch_size:
            text = f"{self.train.num_classes} training identities make batches of {most}, not {batch_size}."
            warnings.warn(f"{text} With so few, expect no gain of hard negatives.", stacklevel=3)
            batch_size = most
        self.miner = _make_miner(config, self.train.labels, batch_size)
        self.loss = _make_loss(config, self.train.num_classes)
        self.progress = Progress(seconds=dict.fromkeys(PARTS, 0.0))
        self._begun = False

    @property
    def made(self) -> dict[str, Any]:
        """What :func:`~bonlib.training.encoders.save_encoder` is told of the encoder."""
        sizes = {"name": self.config.encoder, "dim": self.config.dim, "in_channels": self.train.channels}
        return sizes | _without_weights(self.config)

    @property
    def history(self) -> list[dict[str, float]]:
        """What was measured at the steps that evaluated."""
        return self.progress.history

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by part, over all steps so far."""
        return self.progress.seconds

    def __iter__(self) -> Iterator[Step]:
        """Train to the last step: from the first, or from the checkpoint where there is one."""
        if self._begun:  # stopped before, perhaps between two checkpoints
            self._make()
        self._begun = True
        if self.config.fill and not (self.checkpoint and from_rank_zero(self.checkpoint.exists)):
            self._fill()
        torch.manual_seed(self.config.seed)  # some losses of pytorch-metric-learning draw from the global generator
        yield from fit(
            self.encoder, self.train, self.miner, self.loss,
            steps=self.config.steps, lr=self.config.lr, loss_lr=self.config.loss_lr, schedule=self.config.schedule,
            device=self.config.device, precision=self.config.precision, workers=self.config.workers,
            validation=self.validation, evaluate_every=self.config.evaluate_every or 0,
            validation_queries=self.config.validation_queries, progress=self.progress,
            checkpoint=self.checkpoint, checkpoint_every=CHECKPOINT_EVERY,
        )  # fmt: skip

    def _fill(self) -> None:
        """Let the bag, and the class centres of the loss, look at the whole data set."""
        began, config, bag = time.perf_counter(), self.config, bag_of(self.miner)
        if bag is None and not has_centres(self.loss):
            text = f"the miner {config.miner!r} has no table to fill and the loss {config.loss!r} no class centres"
            raise ValueError(f"fill is True, but {text}; leave it out.")
        torch.manual_seed(config.seed)  # of augmentation
        self.encoder.to(config.device)

        def look(ids: Ids) -> Tensor:
            return embed(self.encoder, self.train, indices=ids, device=config.device, workers=config.workers)[0]

        # The same to the last bit for all processes.
        if bag is not None:
            RankMiner(bag).fill(look, per_class=config.fill_per_class)
        if has_centres(self.loss):
            labels, count = self.train.labels, self.train.num_classes
            means = from_rank_zero(lambda: class_means(look(np.arange(len(labels))).cpu(), labels.cpu(), count))
            set_centres(self.loss, means)
        self.progress.seconds["refresh"] = time.perf_counter() - began

    def save(self, sweep: str) -> Path:
        """Evaluate on the test classes, if asked to, and write the record into the folder ``sweep``; returns it."""
        if self.progress.step < self.config.steps:
            done = f"{self.progress.step} of {self.config.steps}"
            raise ValueError(f"The run is at step {done}; train to the end before it is recorded.")
        galleries: list[dict[str, float]] = []
        metrics, data = {}, {"identities": self.train.num_classes, "images": len(self.train)}
        if self.config.test:
            test = self._split("test")
            found = embed(self.encoder, test, device=self.config.device, workers=self.config.workers)
            found = found[0].to(self.config.device), found[1].to(self.config.device)
            metrics = measure(*found, test, most=self.config.test_queries)
            data |= {"test_identities": test.num_classes, "test_images": len(test)}
            if "query" not in test.attributes:
                galleries = recall_by_gallery(*found)
        quality = {}
        bag = bag_of(self.miner)
        if self.config.measure_bags and bag is not None:
            embeddings, _ = embed(self.encoder, self.train, device=self.config.device, workers=self.config.workers)
            quality = bag_quality(bag, embeddings, anchors=500, seed=self.config.seed)
        # Linux counts the peak in KiB, macOS in bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
        saved = save_run(
            asdict(self.config),
            sweep,
            key=self._key,
            metrics=metrics,
            data=data | {"content": self._content, "source": self.train.source, "fingerprint": self.train.fingerprint},
            miner_stats=self.miner.stats(),
            bags=quality,
            galleries=galleries,
            seconds=self.seconds,
            peak_memory_gib=round(peak, 3),
            history=self.history,
            provenance=self.provenance,
        )
        if self.checkpoint:
            self.checkpoint.unlink(missing_ok=True)
        return saved


def _check_pairs(split: str, data: LabelledSet | None) -> None:
    """Refuse, before the training, a split that is to be measured and holds nothing to find."""
    if data is None:
        return
    labels, query = as_array(data.labels), data.attributes.get("query")
    found = np.bincount(labels).max() > 1 if query is None else np.isin(labels[query], labels[~query]).any()
    if not found:
        text = f"The split {split!r} has no identity with two samples, so there is nothing to find; give it some"
        raise ValueError(f"{text}, or set {'test to false' if split == 'test' else 'evaluate_every to 0'}.")


def _check_parts(config: Config) -> None:
    """Make the parts of a run once for nothing, so that what is wrong with a setting is said before data are drawn.

    Raises:
        ValueError: if a part is unknown, or does not take its options.
    """
    # As of more identities than the study has: where a data set has fewer than a setting asks for, its labels tell.
    _make_miner(config, np.repeat(np.arange(100_000), max(config.per_class, 2)), config.batch_size)
    loss = _make_loss(config, 10_000)
    if (most := getattr(loss.loss, "memory_size", None)) is not None and most < config.batch_size:
        raise ValueError(f"memory_size is {most} and batch_size {config.batch_size}; give a memory that holds a batch.")
    if config.form == "set" and config.per_class == 1 and config.loss != "cross-batch-memory" and not has_centres(loss):
        raise ValueError(f"per_class is 1, so that a batch holds no positives for the loss {config.loss!r}; give 2.")
    with torch.device("meta"), known_options(f"encoder {config.encoder!r}"):  # which draws no weights
        make_encoder(config.encoder, dim=config.dim, in_channels=3, **_without_weights(config))


def _without_weights(config: Config) -> dict[str, Any]:
    """Options of the encoder that do not say where its weights are from."""
    return {name: value for name, value in config.encoder_options.items() if name != "weights"}


def _make_miner(config: Config, labels: ArrayLike | Tensor, batch_size: int) -> Miner:
    """The miner of a run over samples of these labels."""
    options = {name: getattr(config, name) for name in ("form", "per_class", "seed")} | {"batch_size": batch_size}
    options |= config.miner_options | ({} if config.bits is None else {"bits": config.bits})
    return make_miner(config.miner, labels, config.dim, **options)


def _make_loss(config: Config, num_classes: int) -> MinedLoss:
    """The loss of a run over so many identities."""
    return make_loss(
        config.loss, config.form, margin=config.margin, seed=config.seed,
        dim=config.dim, num_classes=num_classes, **config.loss_options,
    )  # fmt: skip


def _begin_with(encoder: nn.Module, config: Config) -> Path:
    """Give an encoder the weights that a run begins with, from a file or from a run that is made first and kept.

    Returns:
        The file.

    Raises:
        ValueError: if the weights are of another encoder.
    """
    if isinstance(config.start, str):
        file = Path(config.start).expanduser()
    else:
        first: dict[str, Any] = asdict(config) | {"miner": "random", "miner_options": {}, "bits": None, "name": ""}
        first |= {"loss": "", "loss_options": {}, "margin": None, "evaluate_every": 0, "schedule": "constant"}
        first |= (config.start or {}) | {"start": None, "fill": False, "fill_per_class": None, "test": False}
        file = data_dir() / "starts" / f"{config_key(first)}.pt"
        if not from_rank_zero(file.exists):
            if world_size() > 1:
                raise ValueError(
                    f"start is {config.start}, a run that is not made yet; make it with one process first, without "
                    "torchrun, or give a file of weights."
                )
            run = Experiment(make_config(first | {"device": config.device}), file.with_suffix(".checkpoint.pt"))
            for _ in run:
                pass
            save_encoder(file, run.encoder, learned=run.train.class_names, **run.made)
            file.with_suffix(".checkpoint.pt").unlink(missing_ok=True)
    loaded, _ = load_encoder(file)
    try:
        encoder.load_state_dict(loaded.state_dict())
    except RuntimeError as error:
        raise ValueError(f"start is {file}, which holds another encoder than {config.encoder!r}: {error}") from error
    return file


def checkpoint_path(config: Config, sweep: str) -> Path:
    """Where the checkpoint of a run is kept: ``checkpoints/`` in the folder of its sweep, by the key of its config."""
    return sweep_dir(sweep) / "checkpoints" / f"{config_key(asdict(config))}.pt"


def main(settings: str, sweep: str) -> None:
    """Do a run and write its record; under torchrun with all its processes, NCCL on GPUs and gloo on the CPU.

    Args:
        settings: a :class:`Config` as JSON.
        sweep: folder of the record.
    """
    config = make_config(json.loads(settings))
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1:
        on_gpu = config.device.startswith("cuda")
        if on_gpu and config.device != "cuda":
            raise ValueError(
                f"device is {config.device!r} with {processes} processes; give 'cuda', each takes its own."
            )
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(minutes=10))
        if on_gpu:  # "cuda" is then this one, so that the config is the same for all
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    experiment = Experiment(config, checkpoint_path(config, sweep))
    for _ in experiment:
        pass
    if rank() == 0:
        experiment.save(sweep)
    if processes > 1:
        dist.barrier()  # nobody leaves while rank 0 measures
        dist.destroy_process_group()


if (
    __name__ == "__main__"
):  # python -m bonlib.study.experiment '{"miner": "bag"}' sweep, or torchrun … -m bonlib.study.experiment …
    main(*sys.argv[1:])
