"""The whole study: sweeps of runs, notebooks by papermill, and the docs. ``python -m bonlib.study --help``."""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from bonlib.core.paths import project_dir, results_dir, write_atomically
from bonlib.datasets import content_key, load_dataset
from bonlib.datasets.splits import SPLITS
from bonlib.study.config import Config, make_config
from bonlib.study.experiment import checkpoint_path
from bonlib.study.records import find_run, load_runs, run_path, save_run, sweep_dir
from bonlib.study.statistics import mean_interval

TRAINING_NOTEBOOK = "04_training"
PRESETS = {
    "quick": ("quick",),
    "full": (
        *("stages", "field", "dial", "batches", "many", "long", "sooner"),
        *("tune", "classes", "transfer", "law", "harm", "large"),
        *("ablation_stages", "ablation_triplets", "ablation_sets", "ablation_hash", "ablation_ranks"),
    ),
}


@dataclass(frozen=True)
class Task:
    """One notebook or run to execute in a process of its own."""

    name: str
    command: list[str]
    weight: float  # rough seconds, for the progress bar
    config: dict[str, Any] | None = None  # of a run
    sweep: str = ""
    output: Path | None = None  # of a notebook
    key: str = ""  # of what the notebook is made from, written beside the output when it is done


def read_sweep(file: Path) -> list[Config]:
    """The runs of a sweep file: every method with every seed, or with the ``seeds`` of its own.

    The YAML has ``common`` settings of :class:`~bonlib.study.config.Config`, a list of ``seeds`` and a list of
    ``methods``, each with the settings in which it differs.

    Raises:
        ValueError: if a setting is not one of Config's, or two runs are the same.
    """
    import yaml

    content = yaml.safe_load(file.read_text())
    configs = []
    for method in content["methods"]:
        settings = content.get("common", {}) | method
        for seed in settings.pop("seeds", content["seeds"]):
            try:
                configs.append(make_config(settings | {"seed": seed}))
            except ValueError as error:
                raise ValueError(f"{file.name}: {error}") from error
    if len({repr(replace(config, device="cpu")) for config in configs}) < len(configs):
        raise ValueError(f"{file.name} names a run twice; each method must differ from the others.")
    return sorted(configs, key=lambda config: config.seed)  # all methods with one seed, before the next


def on_dataset(configs: Iterable[Config], dataset: str, root: str | None = None) -> list[Config]:
    """The same runs on another data set, whose files are in ``root``; those that have become one are one."""
    source = {"root": str(Path(root).expanduser().resolve())} if root else {}
    changed = [replace(config, dataset=dataset, dataset_options=source, encoder="") for config in configs]
    return list({repr(config): config for config in changed}.values())


def page_parameters(sweep: str, dataset: str | None = None, root: str | None = None) -> dict[str, dict[str, Any]]:
    """What the notebooks of a preset are executed with: its first sweep, and the data set where one is chosen."""
    records = {"00_start_here": {"sweep": sweep, "dataset": dataset or "glyphs"}}
    records |= {"01_hard_negatives": {"sweep": sweep}, "06_comparison": {"sweep": sweep}}
    if dataset is None:
        return records
    source = {"dataset": dataset, "root": str(Path(root).expanduser().resolve()) if root else ""}
    return records | dict.fromkeys(("02_hashing", "03_buckets", "04_training"), source)


def run_tasks(configs: Iterable[Config], sweep: str, *, notebooks: bool = True) -> list[Task]:
    """Tasks for the runs of a sweep that are not finished yet."""
    return [_run_task(config, sweep, notebooks) for config in configs if find_run(asdict(config), sweep) is None]


def _run_task(config: Config, sweep: str, notebooks: bool) -> Task:
    settings = asdict(config)
    name = run_path(settings, sweep).stem
    if notebooks:
        output = _build() / "runs" / sweep / f"{name}.ipynb"
        named = ("dataset", "miner", "form", "steps", "seed")
        others = {key: value for key, value in settings.items() if key not in named}
        chosen = {key: settings[key] for key in named} | {"sweep": sweep, "options": others}
        command = _papermill(TRAINING_NOTEBOOK, output, chosen)
    else:
        command = [sys.executable, "-m", "bonlib.study.experiment", json.dumps(settings), sweep]
    return Task(name, command, 40 + 0.11 * config.steps, settings, sweep)


def notebook_tasks(preset: str, parameters: dict[str, dict[str, Any]], *, fresh: bool) -> list[Task]:
    """Tasks for the notebooks whose executed copy is missing or older than what it was made from."""
    tasks, ground = [], _ground()
    for notebook in sorted((_root() / "notebooks").glob("[0-9]*.ipynb")):
        output = _build() / "notebooks" / preset / notebook.name
        chosen = parameters.get(notebook.stem, {})
        key, stamp = _fingerprint(notebook, chosen, ground), _stamp(output)
        if fresh or not output.exists() or not stamp.exists() or stamp.read_text() != key:
            tasks.append(Task(notebook.stem, _papermill(notebook.stem, output, chosen), 60, output=output, key=key))
    return tasks


def execute(tasks: list[Task], *, jobs: int, bar: "tqdm[Any]", threads: int) -> list[str]:
    """Run tasks, ``jobs`` at once; a failed one is recorded and the others go on.

    Returns:
        Names of the tasks that failed.
    """
    stop, failed, began_with = threading.Event(), [], bar.n
    started: dict[str, float] = {}
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(_execute_one, task, threads, started, stop): task for task in tasks}
        finished = 0.0
        try:
            while waiting:
                done, _ = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
                for future in done:
                    task = waiting.pop(future)
                    finished += task.weight
                    if error := future.result():
                        failed.append(task.name)
                        bar.write(f"{task.name} failed:\n{error}")
                # What runs counts by the clock, up to nearly its whole weight.
                ages = [
                    (task, time.monotonic() - started[task.name]) for task in waiting.values() if task.name in started
                ]
                running = sum(min(age, 0.95 * task.weight) for task, age in ages)
                bar.update(max(began_with + finished + running - bar.n, 0))
        except BaseException:
            stop.set()  # ends the processes; what is finished is kept
            pool.shutdown(cancel_futures=True)
            raise
    return failed


def _execute_one(task: Task, threads: int, started: dict[str, float], stop: threading.Event) -> str:
    """Run one task to its end; returns the end of its error output, or nothing where it went well."""
    started[task.name] = time.monotonic()
    # Small operations of two processes that share two cores slow each other 80-fold unless each keeps to its threads.
    environment = os.environ | {
        name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    }
    if task.config is not None:  # a run's own figures stay with its notebook
        environment["BONLIB_FIGURES"] = str(_build() / "runs" / task.sweep / task.name)
    if task.output is not None:
        task.output.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        task.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    while True:
        try:
            _, errors = process.communicate(timeout=0.5)
            break
        except subprocess.TimeoutExpired:
            if stop.is_set():
                process.terminate()
    if process.returncode == 0:
        if task.output is not None:
            write_atomically(_stamp(task.output), lambda path: path.write_text(task.key))
        return ""
    error = "\n".join(errors.strip().splitlines()[-15:])
    if task.config is not None and not stop.is_set() and find_run(task.config, task.sweep) is None:
        save_run(task.config, task.sweep, error=error)
    return error or f"exit code {process.returncode}"


def check_parameters(notebook: Path, parameters: Iterable[str]) -> None:
    """Papermill only warns of a parameter that a notebook does not have; here it is an error.

    Raises:
        ValueError: if the notebook has no such parameter.
    """
    from papermill import inspect_notebook

    known = inspect_notebook(str(notebook))
    if unknown := set(parameters) - set(known):
        raise ValueError(f"{notebook.name} has no parameter {sorted(unknown)}; it has {sorted(known)}.")


def _papermill(stem: str, output: Path, parameters: dict[str, Any]) -> list[str]:
    import yaml

    notebook = _root() / "notebooks" / f"{stem}.ipynb"
    check_parameters(notebook, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    chosen = ["-y", yaml.safe_dump(parameters)] if parameters else []
    return [sys.executable, "-m", "papermill", str(notebook), str(output), "--no-progress-bar", *chosen]


def _ground() -> str:
    """What all executed notebooks stand on, as a digest: the package and the records."""
    package = [path.read_text() for path in sorted((_root() / "bonlib").rglob("*.py"))]
    found = sorted((path.relative_to(results_dir()), path) for path in results_dir().rglob("*.json"))
    found = [(str(name), path) for name, path in found if name.parts[0] != "scratch"]  # a page's own
    records = [(name, hashlib.sha256(path.read_bytes()).hexdigest()) for name, path in found]
    return hashlib.sha256(json.dumps([package, records]).encode()).hexdigest()


def _fingerprint(notebook: Path, parameters: dict[str, Any], ground: str) -> str:
    """Of what an executed notebook was made from: its source, its parameters, and what all stand on."""
    cells = [cell["source"] for cell in json.loads(notebook.read_text())["cells"]]
    return hashlib.sha256(json.dumps([cells, parameters, ground]).encode()).hexdigest()


def _stamp(output: Path) -> Path:
    return output.with_suffix(".key")


def _make_site(notebooks: Path) -> Path:
    """The docs with these notebooks in the place of the committed ones; returns the first page."""
    site = _build() / "site"
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", str(_root() / "docs"), str(site)]
    subprocess.run(command, check=True, env=os.environ | {"BONLIB_NOTEBOOKS": str(notebooks)})
    return site / "index.html"


def _root() -> Path:
    root = project_dir()
    if root is None:
        raise FileNotFoundError(
            "The study runs in a checkout of the repository (git clone), not from the installed package."
        )
    return root


def _build() -> Path:
    return _root() / "build"


def _sweep_file(sweep: str) -> Path:
    file = _root() / "notebooks" / "sweeps" / f"{sweep}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
        raise ValueError(f"sweep is {sweep!r}; allowed are {known}, the files of {file.parent}.")
    return file


def results_lines(sweep: str) -> Iterator[str]:
    """R@1 on the test classes by method, one a line."""
    runs = load_runs(sweep)
    if "metrics.recall@1" not in runs:
        return
    runs = runs.dropna(subset=["metrics.recall@1"])  # a failed run has none
    for of, group in runs.groupby(runs["dataset"] + ", " + runs["method"], sort=False):
        score, seeds = mean_interval(group["metrics.recall@1"].tolist()), group["seed"].nunique()
        several = f"{len(group)} runs of " * (len(group) > seeds)
        yield f"  {of!s:34} R@1 {score}  ({several}{seeds} seed{'s' * (seeds > 1)})"


def main(arguments: list[str] | None = None) -> int:
    """Run a preset; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bonlib.study", description=main.__doc__)
    parser.add_argument(
        "--preset", choices=tuple(PRESETS), default="quick", help="quick: minutes; full: the committed records"
    )
    parser.add_argument(
        "--sweep", action="append", help="run only this file of notebooks/sweeps, without the notebooks"
    )
    parser.add_argument("--dataset", help="run the sweeps on this data set; the records' folder bears its name too")
    parser.add_argument("--root", help="where its files are")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 4), help="processes at once")
    parser.add_argument("--fresh", action="store_true", help="do again what is already done")
    parser.add_argument("--no-notebooks", action="store_true", help="runs without papermill, and no site")
    options = parser.parse_args(arguments)
    if options.root and not options.dataset:
        parser.error(f"--root is {options.root}; it goes with --dataset, such as folder.")
    if options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}; give at least 1.")
    # Of another data set only the first sweep is shown on a page.
    sweeps = options.sweep or list(PRESETS[options.preset][: 1 if options.dataset else None])
    threads = max((os.cpu_count() or 1) // options.jobs, 1)
    if options.preset == "quick" and not options.sweep:
        os.environ["BONLIB_FIGURES"] = str(_root() / "figures" / "quick")  # the committed figures are of the full study
    began = time.perf_counter()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a kill ends the processes too, as Ctrl-C does

    runs: list[Task] = []
    try:
        for i, sweep in enumerate(sweeps):
            configs = read_sweep(_sweep_file(sweep))
            if options.dataset:
                configs = on_dataset(configs, options.dataset, options.root)
                content = content_key(options.dataset, configs[0].dataset_options).get("content", "")
                content = content and hashlib.sha256(json.dumps(content).encode()).hexdigest()[:6]
                sweeps[i] = sweep = "_".join(filter(None, (sweep, options.dataset, content)))
            for config in configs if options.fresh else []:
                run_path(asdict(config), sweep).unlink(missing_ok=True)
                checkpoint_path(config, sweep).unlink(missing_ok=True)
            runs += run_tasks(configs, sweep, notebooks=not options.no_notebooks)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    shown = not (options.no_notebooks or options.sweep)
    own = options.preset == "quick" or options.dataset  # else the notebooks' own parameters are right
    chosen = page_parameters(sweeps[0], options.dataset, options.root) if own else {}
    # New records make the pages that read them stale.
    plan = partial(notebook_tasks, options.preset, chosen, fresh=options.fresh or bool(runs))
    pages = plan() if shown else []
    needed = {json.dumps([t.config["dataset"], t.config["dataset_options"]]) for t in runs if t.config}
    for dataset, settings in map(json.loads, sorted(needed | {'["glyphs", {}]'})):
        try:
            for split in SPLITS:  # once, before processes would each draw or decode it
                load_dataset(dataset, split, **settings)
        except (OSError, ValueError) as error:
            print(f"{dataset}: {error}", file=sys.stderr)
            return 2
    work = sum(task.weight for task in runs + pages)
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left"
    with tqdm(total=work, desc="study", smoothing=0, bar_format=form) as bar:
        try:
            bar.set_description_str(f"{len(runs)} training")
            failed = execute(runs, jobs=options.jobs, bar=bar, threads=threads)
            bar.set_description_str(f"{len(pages)} notebooks")
            if runs and shown:
                pages = plan()  # again: what they are made from has the records of these runs
            failed += execute(pages, jobs=options.jobs, bar=bar, threads=threads)
        except KeyboardInterrupt:
            print("Stopped. What is finished is kept; the same command goes on from here.", file=sys.stderr)
            return 130
        bar.update(work - bar.n)
    print(f"\nDone in {(time.perf_counter() - began) / 60:.1f} minutes: {len(runs)} runs, {len(pages)} notebooks.")
    if shown:
        print(f"Site:    {_make_site(_build() / 'notebooks' / options.preset)}")
        print(f"Figures: {os.environ.get('BONLIB_FIGURES', _root() / 'figures')}")
    for sweep in sweeps:
        print(f"Records: {sweep_dir(sweep)}", *results_lines(sweep), sep="\n")
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)
