"""One run of the study: from a config to a record."""

import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bonlib.core.checks import check_device, known_options, real_number, whole_number
from bonlib.core.distributed import from_rank_zero, rank, world_size
from bonlib.core.hashes import make_hasher
from bonlib.core.layout import Form, Ids
from bonlib.core.paths import data_dir
from bonlib.core.table import default_bits
from bonlib.datasets import content_key, holds_text, load_dataset
from bonlib.datasets.labelled import LabelledSet
from bonlib.miners import make_miner
from bonlib.study.analysis import bag_of, bag_quality
from bonlib.study.memory import keep_freed_memory
from bonlib.study.records import config_key, provenance, save_run, sweep_dir
from bonlib.training.checkpoint import Progress
from bonlib.training.embed import embed
from bonlib.training.encoders import check_takes, load_encoder, make_encoder, save_encoder
from bonlib.training.loop import PARTS, Precision, Schedule, Step, fit
from bonlib.training.losses import make_loss
from bonlib.training.metrics import measure, recall_by_gallery

CHECKPOINT_EVERY = 50  # steps
_OWN_SETTINGS = {  # which the options of its parts must not set
    "dataset_options": {"split", "name", "table", "source"},
    "encoder_options": {"name", "dim", "in_channels", "seed"},
    "miner_options": {"labels", "dim", "form", "batch_size", "per_class", "seed", "steps"},
    "loss_options": {"margin", "dim", "num_classes", "margins", "seed"},
}
_USUAL_HASHER = {"two-stage-bag": "hyperplanes"}
_USUAL_LOSS = {"set": "batch-hard", "triplet": "triplet", "pair": "contrastive"}


@dataclass(frozen=True)
class Config:
    """All that decides what a run does. Two runs that differ only in ``miner`` differ in nothing but the batches."""

    name: str = ""  # of the method in tables and figures; empty: made of miner, form and loss
    dataset: str = "glyphs"
    dataset_options: dict[str, Any] = field(default_factory=dict)  # of the data set's class, such as draws
    identities: int | None = None  # train on so many, drawn with the seed; None: all
    own_split: bool = False  # whether the seed decides too which identities are for training
    label_noise: float = 0.0  # share of the training images that bear a wrong label, drawn with the seed
    split_identities: float = 0.0  # share of the training identities of which half the images bear a second name
    encoder: str = ""  # empty: "small", for strings "ngrams"
    encoder_options: dict[str, Any] = field(default_factory=dict)  # of a torchvision backbone, such as weights
    dim: int = 64  # width of the embeddings
    start: dict[str, Any] | str | None = None  # encoder to begin with: a file, or settings of a run that is made first
    fill: bool = False  # whether a bag looks at the whole data set once before the first step; its seconds are refresh
    fill_per_class: int | None = None  # samples of each identity that it looks at; None: all
    miner: str = "bag"
    bits: int | None = None  # of the code; None: by the number of samples
    miner_options: dict[str, Any] = field(
        default_factory=dict
    )  # of the miner's class, such as bags; hasher_options of the hash
    form: Form = "set"
    loss: str = ""  # empty: the usual one of the form
    margin: float | None = None  # None: the usual one of the loss
    loss_options: dict[str, Any] = field(default_factory=dict)  # of the loss, such as memory_size
    loss_lr: float | None = None  # of the loss's own parameters, such as proxies; None: as the encoder's
    batch_size: int = 132  # 33×4, 44×3: one size for all forms, so that all see the same number of images
    per_class: int = 4  # in sets
    steps: int = 2500
    lr: float = 1e-3
    schedule: Schedule = "constant"
    evaluate_every: int | None = None  # steps; None: ten times in all, at most every 50 steps
    validation_queries: int | None = None  # at most, each against all of validation; None: every sample is one
    precision: Precision = "float32"
    device: str = "cpu"
    workers: int = 0  # processes that decode images, for a data set that is not in memory
    test_queries: int | None = None  # the same for the test classes
    measure_bags: bool = False  # compare the bags in the end with the exact nearest negatives
    test: bool = True  # whether to evaluate on the test classes in the end; choices are made without
    seed: int = 0  # of initial weights and batches; the data set and its split have a seed of their own

    def __post_init__(self) -> None:
        for name in ("name", "dataset", "encoder", "miner", "form", "loss", "schedule", "precision", "device"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is {getattr(self, name)!r}; give text.")
        if not self.encoder:
            object.__setattr__(self, "encoder", usual_encoder(self.dataset, self.dataset_options))
        if not self.loss:
            object.__setattr__(self, "loss", _USUAL_LOSS.get(self.form, ""))
        for name, least in (("steps", 1), ("batch_size", 1), ("per_class", 1), ("dim", 1), ("seed", 0), ("workers", 0)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least))
        for name, least in (("lr", 0), ("label_noise", 0), ("split_identities", 0)):
            object.__setattr__(self, name, real_number(name, getattr(self, name), least))
        for name in ("margin", "loss_lr"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, real_number(name, getattr(self, name), 0))
        for name in ("identities", "fill_per_class", "bits", "validation_queries", "test_queries"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole_number(name, getattr(self, name), 1))
        for name in ("test", "measure_bags", "own_split", "fill"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; allowed are True and False (true and false in files)."
                )
        for name in ("dataset_options", "encoder_options", "miner_options", "loss_options"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f"{name} is {getattr(self, name)!r}; give a dictionary of options.")
            if taken := sorted(set(getattr(self, name)) & _OWN_SETTINGS[name]):
                raise ValueError(f"{name} sets {', '.join(taken)}, which the run sets; leave it out there.")
        if not isinstance(self.start, dict | str | None):
            raise ValueError(f"start is {self.start!r}; give a file of weights, or a dictionary of settings.")
        if isinstance(self.start, dict) and (
            taken := sorted({"start", "fill", "fill_per_class", "test", "encoder", "dim"} & set(self.start))
        ):
            raise ValueError(f"start sets {', '.join(taken)}, which the run sets; leave it out there.")
        known = {entry.name for entry in fields(self)}
        if isinstance(self.start, dict) and (unknown := sorted(set(self.start) - known)):
            raise ValueError(f"start has no setting {', '.join(unknown)}; allowed are {', '.join(sorted(known))}.")
        if self.own_split and "split_seed" in self.dataset_options:
            raise ValueError("own_split is True and dataset_options has split_seed; give one of them.")
        if self.fill_per_class is not None and not (self.fill and _hashes_identities(self)):
            text = f"fill_per_class is {self.fill_per_class}; it goes with fill True and a bag of identities"
            raise ValueError(f"{text}, such as the miner 'two-stage-bag'; leave it out.")
        if self.evaluate_every is None:
            object.__setattr__(self, "evaluate_every", max(self.steps // 10, 50))
        else:
            object.__setattr__(self, "evaluate_every", whole_number("evaluate_every", self.evaluate_every, 0))


def usual_encoder(dataset: str, options: Mapping[str, Any]) -> str:
    """The encoder of the study for a data set."""
    return "ngrams" if holds_text(dataset, options) else "small"


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
        self.provenance = provenance()  # of the code as it was loaded, whatever is edited while it runs
        self.train, self.validation = self._split("train"), self._split("validation")
        if config.test:
            self._split("test")
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
            _begin_with(self.encoder, config)
        options = {name: getattr(config, name) for name in ("form", "batch_size", "per_class", "seed")}
        if config.form == "set" and (most := self.train.num_classes * config.per_class) < config.batch_size:
            text = f"{self.train.num_classes} training identities make batches of {most}, not {config.batch_size}."
            warnings.warn(f"{text} With so few, expect no gain of hard negatives.", stacklevel=3)
            options["batch_size"] = most
        options |= config.miner_options | ({} if config.bits is None else {"bits": config.bits})
        if own := options.pop("hasher_options", None):
            entries = self.train.num_classes if _hashes_identities(config) else len(self.train)
            bits = options.pop("bits", None) or default_bits(entries)
            options["hasher"] = make_hasher(
                options.get("hasher", _USUAL_HASHER.get(config.miner, "autoencoder")),
                config.dim,
                bits,
                seed=config.seed,
                **own,
            )
        self.miner = make_miner(config.miner, self.train.labels, config.dim, **options)
        self.loss = make_loss(
            config.loss, config.form, margin=config.margin, seed=config.seed,
            dim=config.dim, num_classes=self.train.num_classes, margins=getattr(self.miner, "margins", None),
            **config.loss_options,
        )  # fmt: skip
        self.progress = Progress(seconds=dict.fromkeys(PARTS, 0.0))
        self._begun = False

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
            checkpoint=self.checkpoint, checkpoint_every=CHECKPOINT_EVERY if self.checkpoint else 0,
        )  # fmt: skip

    def _fill(self) -> None:
        """Let the bag look at the whole data set."""
        began, config, bag = time.perf_counter(), self.config, bag_of(self.miner)
        if bag is None:
            raise ValueError(f"fill is True, but the miner {config.miner!r} has no table to fill; leave it out.")
        torch.manual_seed(config.seed)  # of augmentation
        self.encoder.to(config.device)

        def look(ids: Ids) -> Tensor:
            return embed(self.encoder, self.train, indices=ids, device=config.device, workers=config.workers)[0]

        # The same to the last bit for all processes.
        bag.fill(lambda ids: from_rank_zero(lambda: look(ids)), per_class=config.fill_per_class)
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


def make_config(settings: dict[str, Any]) -> Config:
    """A config from plain settings.

    Raises:
        ValueError: if there is no such setting, or a value is out of its range.
    """
    known = {entry.name for entry in fields(Config)}
    if unknown := sorted(set(settings) - known):
        raise ValueError(
            f"There is no setting {', '.join(map(repr, unknown))}; allowed are {', '.join(sorted(known))}."
        )
    return Config(**settings)


def _begin_with(encoder: nn.Module, config: Config) -> None:
    """Give an encoder the weights that a run begins with, from a file or from a run that is made first and kept.

    Raises:
        ValueError: if the weights are of another encoder.
    """
    if isinstance(config.start, str):
        file = Path(config.start).expanduser()
    else:
        first: dict[str, Any] = asdict(config) | {"miner": "random", "miner_options": {}, "bits": None, "name": ""}
        first |= {"loss": "", "loss_options": {}, "margin": None, "evaluate_every": 0, "schedule": "constant"}
        first |= (config.start or {}) | {"start": None, "fill": False, "fill_per_class": None, "test": False}
        first["device"] = config.device.partition(":")[0]
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
            made = {"name": config.encoder, "dim": config.dim, "in_channels": run.train.channels}
            save_encoder(
                file, run.encoder, **made | {k: v for k, v in config.encoder_options.items() if k != "weights"}
            )
            file.with_suffix(".checkpoint.pt").unlink(missing_ok=True)
    loaded, _ = load_encoder(file)
    try:
        encoder.load_state_dict(loaded.state_dict())
    except RuntimeError as error:
        raise ValueError(f"start is {file}, which holds another encoder than {config.encoder!r}: {error}") from error


def _hashes_identities(config: Config) -> bool:
    return config.miner == "two-stage-bag" and config.miner_options.get("unit", "identity") == "identity"


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
        if on_gpu:  # "cuda" is then this one, so that config and key are the same for all
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
