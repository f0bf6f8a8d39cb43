"""All that decides what a run of the study does, checked before anything is done."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from bonlib.bag import BagOfNegatives
from bonlib.core.checks import real_number, whole_number
from bonlib.core.layout import Form
from bonlib.datasets import holds_text
from bonlib.training.loop import Precision, Schedule

_OWN_SETTINGS = {  # which the options of its parts must not set
    "dataset_options": {"split", "name", "table", "source"},
    "encoder_options": {"name", "dim", "in_channels", "seed"},
    "miner_options": {"labels", "dim", "form", "batch_size", "per_class", "seed", "steps"},
    "loss_options": {"margin", "dim", "num_classes", "seed"},
}
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
    fill: bool = False  # whether bag and class centres begin with a look at the whole data set; its seconds are refresh
    fill_per_class: int | None = None  # samples of each identity that it looks at; None: all
    miner: str = "bag"
    bits: int | None = None  # of the code; None: by the number of samples
    miner_options: dict[str, Any] = field(default_factory=dict)  # of the miner's class, such as bags
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
        _check_start(self.start, self.dataset)
        if self.own_split and "split_seed" in self.dataset_options:
            raise ValueError("own_split is True and dataset_options has split_seed; give one of them.")
        identities = self.miner == "two-stage-bag" and self.miner_options.get("unit", "identity") == "identity"
        if self.fill_per_class is not None and not (self.fill and identities):
            text = f"fill_per_class is {self.fill_per_class}; it goes with fill True and a bag of identities"
            raise ValueError(f"{text}, such as the miner 'two-stage-bag'; leave it out.")
        if self.evaluate_every is None:
            object.__setattr__(self, "evaluate_every", max(self.steps // 10, 50))
        else:
            object.__setattr__(self, "evaluate_every", whole_number("evaluate_every", self.evaluate_every, 0))


def make_config(settings: dict[str, Any]) -> Config:
    """A config from plain settings.

    Raises:
        ValueError: if there is no such setting, or a value is out of its range.
    """
    known = {entry.name for entry in fields(Config)}
    if unknown := sorted(set(settings) - known):
        told = f"There is no setting {', '.join(map(repr, unknown))}; allowed are {', '.join(sorted(known))}."
        if of_miner := [name for name in unknown if name in inspect.signature(BagOfNegatives).parameters]:
            told += f" What the miner takes stands in miner_options, as in {{{of_miner[0]!r}: …}}."
        raise ValueError(told)
    return Config(**settings)


def usual_encoder(dataset: str, options: Mapping[str, Any]) -> str:
    """The encoder of the study for a data set."""
    return "ngrams" if holds_text(dataset, options) else "small"


def _check_start(start: Any, dataset: str) -> None:
    """Refuse what is no start of a run on a data set.

    Raises:
        ValueError: if it is none, or sets what the run sets, or what could bring test identities into training.
    """
    if not isinstance(start, dict | str | None):
        raise ValueError(f"start is {start!r}; give a file of weights, or a dictionary of settings.")
    given = set(start) if isinstance(start, dict) else set()
    if taken := sorted({"start", "fill", "fill_per_class", "test", "encoder", "dim", "device"} & given):
        raise ValueError(f"start sets {', '.join(taken)}, which the run sets; leave it out there.")
    known = {entry.name for entry in fields(Config)}
    if unknown := sorted(given - known):
        raise ValueError(f"start has no setting {', '.join(unknown)}; allowed are {', '.join(sorted(known))}.")
    same = isinstance(start, dict) and start.get("dataset", dataset) == dataset
    if same and (taken := sorted({"seed", "own_split", "dataset_options"} & given)):
        raise ValueError(f"start sets {', '.join(taken)}, which could train on what this run tests; leave it out.")
