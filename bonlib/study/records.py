"""The record of a run: found again by the hash of its config, with all that is needed to repeat and to trust it."""

import hashlib
import json
import math
import os
import platform
import subprocess
import warnings
from collections.abc import Mapping, Set
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from bonlib.core.paths import project_dir, results_dir, write_atomically
from bonlib.datasets import content_key, has_content
from bonlib.datasets.files import file_digest
from bonlib.study.names import method_name

_FORMAT = 1  # of a record; older ones do not state it
# Settings that older records do not have: where they are unset, they do not count.
_LATER = {
    "own_split": False,
    "validation_queries": None,
    "test_queries": None,
    "start": None,
    "fill": False,
    "fill_per_class": None,
    "split_identities": 0.0,
}
_PACKAGES = ("bonlib", "torch", "numpy", "numba", "pytorch-metric-learning", "matplotlib", "pillow")


def config_key(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that stand for a config, whatever the order of its names.

    Files that ``dataset_options`` names count by their content, not by their paths
    (:func:`~bonlib.datasets.content_key`). The device does not count, so that a run that was
    made on a GPU is found from a CPU; its numbers are not the same, for torch's convolutions round more there (TF32).

    Raises:
        FileNotFoundError: if these files are not there.

    Example:
        >>> config_key({"a": 1, "b": 2}) == config_key({"b": 2, "a": 1})
        True
    """
    chosen = {name: value for name, value in config.items() if not (name in _LATER and value == _LATER[name])}
    if "device" in chosen:
        chosen["device"] = "cpu"
    if chosen.get("dataset_options") or has_content(chosen.get("dataset", "")):
        chosen["dataset_options"] = content_key(chosen["dataset"], chosen.get("dataset_options", {}))
    start = chosen.get("start")
    if isinstance(start, str):
        if not (file := Path(start).expanduser()).is_file():
            raise FileNotFoundError(f"start is {start!r}, which is no file; give weights that `bonlib train` wrote.")
        chosen["start"] = file_digest(str(file))
    elif start and ("dataset_options" in start or has_content(start.get("dataset", ""))):
        of = start.get("dataset", chosen["dataset"])
        chosen["start"] = start | {"dataset_options": content_key(of, start.get("dataset_options", {}))}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:12]


def sweep_dir(sweep: str) -> Path:
    """The folder of a sweep's records.

    Raises:
        ValueError: if the name leads elsewhere.
    """
    if not sweep or Path(sweep).name != sweep or sweep in (".", ".."):
        raise ValueError(f"sweep is {sweep!r}; give a plain name, of a folder below {results_dir()}.")
    return results_dir() / sweep


def run_path(config: Mapping[str, Any], sweep: str, key: str | None = None) -> Path:
    """The file of a run in the folder of its sweep, whether it is there or not; ``key`` is of its config by default."""
    name = "-".join(str(config[part]) for part in ("dataset", "miner", "form", "seed") if part in config)
    return sweep_dir(sweep) / f"{name}-{key or config_key(config)}.json"


def save_run(config: Mapping[str, Any], sweep: str, *, key: str | None = None, **contents: Any) -> Path:
    """Write the record of a run, with its provenance, in one piece.

    Args:
        config: what the run was asked to do, plain values.
        sweep: folder below the results directory.
        key: of the config, where it was made before the data could change.
        **contents: what came out, plain values: ``history``, ``metrics``, ``seconds`` …; a ``provenance`` here
            replaces that of this moment.

    Returns:
        The file written.
    """
    record = {
        "format": _FORMAT,
        "key": key or config_key(config),
        "config": dict(config),
        "provenance": provenance(),
    } | contents
    path = run_path(config, sweep, record["key"])
    text = json.dumps(_without_nan(record), indent=1, allow_nan=False)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n"))
    return path


def find_run(config: Mapping[str, Any], sweep: str) -> dict[str, Any] | None:
    """The record of a finished run with just this config, or ``None``; one with an error is not finished."""
    path = run_path(config, sweep)
    if not path.exists():
        return None
    try:
        record = _read(path)
    except ValueError as error:
        warnings.warn(f"{error} The run is made again.", stacklevel=2)
        return None
    return None if "error" in record else record


def load_runs(sweep: str, dataset: str | None = None) -> pd.DataFrame:
    """All runs of a sweep, one a row: config, final metrics, miner statistics, seconds by part, provenance, error.

    Args:
        sweep: folder below the results directory.
        dataset: only runs on this data set.

    Returns:
        A DataFrame with plain config names, ``method`` as it is called in tables, ``metrics.…`` on the test classes,
        ``validation.…`` at the last step, ``data.…`` sizes and source of the data, ``miner_stats.…``,
        ``bags.…``, ``seconds.…``, ``provenance.…``, sorted by name; empty where the folder is.

    Raises:
        ValueError: if there are runs, but none on that data set.
    """
    rows = []
    for record in _records(sweep, dataset):
        row = {"key": record["key"], **record["config"], "error": record.get("error")}
        row["peak_memory_gib"] = record.get("peak_memory_gib")
        row["method"] = _method(record["config"])
        last = (record.get("history") or [{}])[-1]
        row |= {f"validation.{name}": last[name] for name in ("recall@1", "map@r") if name in last}
        for part in ("metrics", "data", "miner_stats", "bags", "seconds", "provenance"):
            row |= {f"{part}.{name}": value for name, value in record.get(part, {}).items()}
        rows.append(row)
    return pd.DataFrame(rows)


def load_history(sweep: str) -> pd.DataFrame:
    """What the runs of a sweep measured on the way, one evaluation a row, with the config of the run.

    ``loss`` is the config's, its name; the mean loss of the steps since the last evaluation is ``mean_loss``.
    """
    rows = []
    for record in _records(sweep):
        for point in record.get("history", []):
            known = {"mean_loss": point.get("loss"), "key": record["key"], "method": _method(record["config"])}
            rows.append(point | known | record["config"])
    return pd.DataFrame(rows)


def load_galleries(sweep: str) -> pd.DataFrame:
    """Recall by gallery size of the runs of a sweep, on the test classes: one gallery a row, with the run's config."""
    return pd.DataFrame([
        entry | {"method": _method(record["config"])} | record["config"]
        for record in _records(sweep)
        for entry in record.get("galleries", [])
    ])  # fmt: skip


def mean_curve(sweep: str, dataset: str, form: str) -> pd.DataFrame:
    """``step``, ``recall@1`` and ``map@r`` of a sweep's random batches, means over seeds; may be empty.

    Raises:
        ValueError: if several methods draw random batches there, such as two losses, or with one seed several runs do.
    """
    wanted = {"dataset": dataset, "miner": "random", "form": form}
    history = load_history(sweep).reindex(columns=[*wanted, "method", "loss", "seed", "step", "recall@1", "map@r"])
    chosen = history[(history[list(wanted)] == list(wanted.values())).all(axis=1)]
    several = sorted({f"{method} under {loss}" for method, loss in zip(chosen["method"], chosen["loss"], strict=True)})
    if len(several) > 1:
        named = ", ".join(several)
        raise ValueError(f"sweep {sweep!r} has several random {form}s on {dataset}: {named}; take one that has one.")
    if chosen.duplicated(["seed", "step"]).any():  # pyright: ignore
        text = f"sweep {sweep!r} has several random {form}s on {dataset} with one seed"
        raise ValueError(f"{text}, which differ in their settings; take one that has one.")
    return chosen.groupby("step")[["recall@1", "map@r"]].mean().reset_index()  # pyright: ignore


def write_bench(name: str, table: pd.DataFrame) -> Path:
    """Write measured costs to ``bench/<name>.json`` in the results directory, with versions, hardware and commit."""
    path = results_dir() / "bench" / f"{name}.json"
    record = {"format": _FORMAT, "provenance": provenance(), "rows": _without_nan(table.to_dict("records"))}
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(record, indent=1) + "\n"))
    return path


def load_bench(name: str) -> pd.DataFrame:
    """Measured costs that :func:`write_bench` wrote; their ``attrs`` hold the provenance.

    Raises:
        FileNotFoundError: if they were not measured.
        ValueError: if the file is damaged, no record, or of a newer version.
    """
    path = results_dir() / "bench" / f"{name}.json"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("[!.]*.json"))) or "none"
        raise FileNotFoundError(f"name is {name!r}, which was not measured here (measured: {known}); run `make bench`.")
    record = _read(path, {"rows", "provenance"})
    table = pd.DataFrame(record["rows"])
    table.attrs |= record["provenance"]
    return table


def provenance() -> dict[str, Any]:
    """Versions, hardware, commit and time of this moment; the commit is ``None`` where there is no checkout."""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", "bonlib")
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changed is None else bool(changed),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _method(config: Mapping[str, Any]) -> str:
    """What a run's method is called: by its own name, else by miner, form and loss."""
    named = (str(config.get(part, "")) for part in ("miner", "form", "loss"))
    return config.get("name") or method_name(*named)


def _records(sweep: str, dataset: str | None = None) -> list[dict[str, Any]]:
    records = [_read(path) for path in sorted(sweep_dir(sweep).glob("[!.]*.json"))]
    chosen = [record for record in records if dataset in (None, record["config"].get("dataset"))]
    if not records:
        made = f"python -m bonlib.study --sweep {sweep} makes those of a sweep of the study"
        warnings.warn(f"There are no records in {sweep_dir(sweep)}; {made}.", stacklevel=3)
    elif not chosen:
        known = sorted({str(record["config"].get("dataset")) for record in records})
        raise ValueError(f"dataset is {dataset!r}; the sweep {sweep!r} has runs on {', '.join(known)}.")
    return chosen


def _read(path: Path, parts: Set[str] = frozenset({"key", "config"})) -> dict[str, Any]:
    """A record from its file, which has at least these parts.

    Raises:
        ValueError: if it is damaged, no record, or of a newer version.
    """
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"The record {path} is damaged ({error}); delete it and run its sweep again.") from error
    if not isinstance(record, dict) or not parts <= record.keys():
        raise ValueError(f"{path} is no record of a run; move it elsewhere.")
    if record.get("format", 1) > _FORMAT:
        raise ValueError(
            f"The record {path} has the format {record['format']}, this version reads {_FORMAT}; update bonlib."
        )
    return record


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: a number that could not be measured is null."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _git(*arguments: str) -> str | None:
    root = project_dir()
    if root is None:  # else git would tell of whatever repository is around the current folder
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
