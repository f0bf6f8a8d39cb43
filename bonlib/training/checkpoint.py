"""The one file that a run goes on from: what it trains and draws, every generator, and what it has measured so far."""

import random
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bonlib.core.distributed import from_rank_zero, of_all_ranks
from bonlib.core.paths import read_torch, write_torch
from bonlib.core.processes import rank, world_size

_FORMAT = "bonlib checkpoint 6"
_CURE = "resume with what it was saved with, or remove the file to begin anew"


@dataclass
class Progress:
    """What a run has done and measured so far; :func:`~bonlib.training.loop.fit` fills it in.

    Attributes:
        step: steps done.
        history: one entry an evaluation: ``step``, ``images``, ``training_seconds``, mean ``loss`` and ``active`` since
            the last, the metrics, and the miner's statistics as ``miner.…``.
        seconds: by part, over all steps.
        loss, active: sums over the steps since the last evaluation.
        since: number of these steps.
    """

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    loss: float = 0.0
    active: float = 0.0
    since: int = 0


def save_checkpoint(
    file: Path, parts: Mapping[str, Any], progress: Progress, made_of: Mapping[str, Any], device: torch.device
) -> None:
    """Write a checkpoint in one piece; all processes call it, rank 0 writes.

    Args:
        file: where to.
        parts: encoder, loss, optimizer and miner, by these names.
        progress: what was measured.
        made_of: plain values that a resumed run must share: a fingerprint of the data, arguments.
        device: whose generator is used.
    """
    generators = of_all_ranks(_generators(device))
    queues = of_all_ranks(_of_this_rank(parts["loss"])) if world_size() > 1 else []  # one's own is in its loss
    if rank() != 0:
        return
    state = {"format": _FORMAT, "made_of": dict(made_of), "progress": asdict(progress)}
    state |= {"generators": generators, "queues": queues} | {name: part.state_dict() for name, part in parts.items()}
    write_torch(file, state)


def load_checkpoint(
    file: Path,
    parts: Mapping[str, Any],
    progress: Progress,
    made_of: Mapping[str, Any],
    device: torch.device,
    *,
    steps: int,
) -> None:
    """Take over a checkpoint where there is one, all of it or nothing; rank 0 looks for it and tells the others.

    Arguments as of :func:`save_checkpoint`; ``parts`` and ``progress`` are changed. ``steps`` is how many the run has.

    Raises:
        ValueError: if it is truncated, foreign, of another version, or of other data, arguments or parts than these;
            the message names the file, the difference and the cure, and nothing is changed.
    """
    state = from_rank_zero(lambda: read_torch(file, _FORMAT, _CURE) if file.exists() else None)
    if state is None:
        return
    wanted = ("made_of", "progress", "generators", "queues", "encoder", "loss", "optimizer", "miner")
    measured = {entry.name for entry in fields(Progress)}
    if lacking := [*(set(wanted) - state.keys()), *(measured - state.get("progress", {}).keys())]:
        raise ValueError(f"checkpoint {file} is damaged: it lacks {', '.join(sorted(lacking))}; {_CURE}.")
    if state["progress"]["step"] > steps:
        done = state["progress"]["step"]
        raise ValueError(f"steps is {steps}, but the checkpoint {file} is at step {done}; give as many or more.")
    for name in {**made_of, **state["made_of"]}:
        saved, value = state["made_of"].get(name), made_of.get(name)
        if saved != value:
            what = "other data: the fingerprint" if name == "data" else f"another {name}: it"
            raise ValueError(f"checkpoint {file} was saved with {what} is {saved!r} there and {value!r} here; {_CURE}.")
    for name in ("encoder", "loss"):
        own, there = (  # of extra state, which has no shape, the name counts
            {key: getattr(value, "shape", ()) for key, value in values.items()}
            for values in (parts[name].state_dict(), state[name])
        )
        if wrong := sorted(key for key in own.keys() | there.keys() if own.get(key) != there.get(key)):
            raise ValueError(
                f"checkpoint {file} is of another {name}: {wrong[0]} is {there.get(wrong[0])} there and "
                f"{own.get(wrong[0])} here; {_CURE}."
            )
    before = parts["optimizer"].state_dict()
    try:
        parts["optimizer"].load_state_dict(state["optimizer"])  # checks, then changes
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"checkpoint {file} is of another optimizer ({error}); {_CURE}.") from error
    try:
        parts["miner"].load_state_dict(state["miner"])  # checks, then changes
    except ValueError as error:
        parts["optimizer"].load_state_dict(before)
        raise ValueError(f"checkpoint {file} is of another miner: {error}") from error
    parts["encoder"].load_state_dict(state["encoder"])
    parts["loss"].load_state_dict(state["loss"] | dict(*state["queues"][rank() : rank() + 1]))
    if rank() < len(state["generators"]):  # else there are more processes than before
        _set_generators(state["generators"][rank()], device)
    for name, value in state["progress"].items():
        setattr(progress, name, value)
    if rank() == 0:
        print(f"Resuming from {file} at step {progress.step}.", file=sys.stderr)


def _of_this_rank(loss: torch.nn.Module) -> dict[str, Any]:
    """What a loss remembers beside its weights, such as a queue of embeddings: each process has its own."""
    weights = {name for name, _ in loss.named_parameters()}
    kept = {name: value for name, value in loss.state_dict().items() if name not in weights}
    return {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in kept.items()}


def _generators(device: torch.device) -> dict[str, Any]:
    """The states of the global generators: losses, dropout and the user's own transforms draw from them."""
    legacy: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    state = {"torch": torch.get_rng_state(), "python": random.getstate()}
    state["numpy"] = legacy | {"state": {name: _plain(value) for name, value in legacy["state"].items()}}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _plain(value: Any) -> Any:
    return torch.from_numpy(value.astype(np.int64)) if isinstance(value, np.ndarray) else value


def _set_generators(state: Mapping[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    inner = state["numpy"]["state"]
    inner = inner | {"key": inner["key"].numpy().astype(np.uint32)} if "key" in inner else inner
    np.random.set_state(dict(state["numpy"]) | {"state": inner})  # noqa: NPY002
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
