"""Sweeps and their tasks."""

import json
import platform
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from tqdm.auto import tqdm

from bonlib.core.paths import project_dir
from bonlib.study import sweeps
from bonlib.study.records import find_run, load_runs, save_run

SWEEPS = sorted((project_dir() / "notebooks" / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_sweeps_differ_within_a_seed_in_the_method_alone(file):
    configs = sweeps.read_sweep(file)
    assert len(configs) >= 3
    assert all(c.name for c in configs) or not any(c.name for c in configs)
    configs = [c for c in configs if c.name != "start"]  # what all begin with, compared with none
    rows = {(c.dataset, c.identities, c.steps) for c in configs}
    for row in rows:  # of a table or figure, with one budget
        methods = [c for c in configs if (c.dataset, c.identities, c.steps) == row]
        assert len({c.batch_size for c in methods}) == 1
        assert len({c.seed for c in methods}) * 2 <= len(methods)  # something to compare with
    several = {"large": 2, "field": 3, "dial": 3, "batches": 3, "classes": 2, "ablation_stages": 2, "tune": 3}
    assert len({c.dataset for c in configs}) == several.get(file.stem, 1)


def test_each_record_is_of_a_row_of_its_sweep_and_of_no_other_record():
    for file in SWEEPS:
        rows = [asdict(config) | {"device": "cpu"} for config in sweeps.read_sweep(file)]
        for path in sorted((project_dir() / "data" / "results" / file.stem).glob("*.json")):
            config = json.loads(path.read_text())["config"] | {"device": "cpu"}
            made = [row for row in rows if {name: row[name] for name in config} == config]
            assert len(made) == 1, f"{path} is of no row of {file.name}, or another record is of the same"
            rows.remove(made[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: [{minor: bag}]", "There is no setting 'minor'"),
        ("methods: [{}, {}]", "a run twice"),
        ("methods: [{}, {device: cuda}]", "a run twice"),
    ],
)
def test_a_wrong_sweep_is_refused(tmp_path, text, message):
    (tmp_path / "s.yaml").write_text(f"seeds: [0]\n{text}\n")
    with pytest.raises(ValueError, match=message):
        sweeps.read_sweep(tmp_path / "s.yaml")


def test_a_method_may_have_seeds_of_its_own(tmp_path):
    (tmp_path / "s.yaml").write_text("seeds: [0, 1]\nmethods: [{miner: bag}, {miner: random, seeds: [1, 2]}]\n")
    found = [(config.seed, config.miner) for config in sweeps.read_sweep(tmp_path / "s.yaml")]
    assert found == [(0, "bag"), (1, "bag"), (1, "random"), (2, "random")]


def test_finished_runs_are_skipped_and_failed_ones_are_not(folders):
    configs = sweeps.read_sweep(SWEEPS[0])
    save_run(asdict(configs[0]), "trial", metrics={})
    save_run(asdict(configs[1]), "trial", error="boom")
    names = [task.config for task in sweeps.run_tasks(configs, "trial", notebooks=False)]
    assert names == [asdict(config) for config in configs[1:]]


def test_a_failed_run_is_recorded_with_its_error_and_the_others_go_on(folders):
    good = sweeps.Task("good", [sys.executable, "-c", "pass"], 1, {"miner": "bag", "seed": 0}, "trial")
    bad = sweeps.Task(
        "bad", [sys.executable, "-c", "raise SystemExit('no such font')"], 1, {"miner": "bag", "seed": 1}, "trial"
    )
    with tqdm(total=2, disable=True) as bar:
        assert sweeps.execute([bad, good], jobs=2, bar=bar, threads=1) == ["bad"]
    assert load_runs("trial")["error"].tolist() == ["no such font"]
    assert find_run({"miner": "bag", "seed": 1}, "trial") is None
    save_run({"miner": "bag", "seed": 1}, "trial", metrics={"recall@1": 0.5})  # it failed after its record was written
    with tqdm(total=1, disable=True) as bar:
        assert sweeps.execute([bad], jobs=1, bar=bar, threads=1) == ["bad"]
    assert find_run({"miner": "bag", "seed": 1}, "trial") is not None


def test_results_of_several_data_sets_are_not_averaged(folders):
    for dataset, value in (("glyphs", 0.2), ("hangul", 0.8)):
        for seed in range(2):
            settings = {"dataset": dataset, "miner": "bag", "form": "set", "loss": "batch-hard", "seed": seed}
            save_run(settings, "trial", metrics={"recall@1": value}, history=[])
    lines = list(sweeps.results_lines("trial"))
    assert [line.split(",")[0].strip() for line in lines] == ["glyphs", "hangul"]
    assert all("(2 seeds)" in line for line in lines)


def test_new_records_make_pages_stale(folders):
    notebook = sweeps._root() / "notebooks" / "05_ablation.ipynb"

    def fingerprint():
        return sweeps._fingerprint(notebook, {}, sweeps._ground())

    before = fingerprint()
    save_run({"miner": "bag"}, "scratch", metrics={})
    assert fingerprint() == before  # what a page writes itself
    file = save_run({"miner": "bag"}, "trial", metrics={"recall@1": 0.861})
    after = fingerprint()
    assert after != before
    file.write_text(file.read_text().replace("0.861", "0.912"))
    assert fingerprint() not in (before, after)


def test_runs_execute_without_notebooks(folders):
    (config,) = [c for c in sweeps.read_sweep(sweeps._sweep_file("quick")) if c.miner == "bag"]
    (task,) = sweeps.run_tasks([config], "trial", notebooks=False)
    assert task.command[:3] == [sys.executable, "-m", "bonlib.study.experiment"]


def test_unknown_parameters_are_an_error():
    notebook = project_dir() / "notebooks" / "04_training.ipynb"
    sweeps.check_parameters(notebook, ["miner", "form", "steps", "options"])
    with pytest.raises(ValueError, match=r"has no parameter .'minor'"):
        sweeps.check_parameters(notebook, ["minor"])


def test_the_command_line_explains_itself():
    done = subprocess.run([sys.executable, "-m", "bonlib.study", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--preset" in done.stdout


def test_a_sweep_on_another_data_set_changes_nothing_else(tmp_path):
    configs = sweeps.read_sweep(sweeps._sweep_file("quick"))
    changed = sweeps.on_dataset(configs, "folder", str(tmp_path))
    assert len(changed) == len(configs)
    for before, after in zip(configs, changed, strict=True):
        expected = asdict(before) | {"dataset": "folder", "dataset_options": {"root": str(tmp_path)}}
        assert asdict(after) == expected
    large = [c for c in sweeps.read_sweep(sweeps._sweep_file("large")) if c.steps == 4000]
    assert len(sweeps.on_dataset(large, "glyphs")) == len(large)


def test_pages_take_the_data_set_by_parameters_that_they_have(tmp_path):
    for parameters in (
        sweeps.page_parameters("quick"),
        sweeps.page_parameters("quick_folder", "folder", str(tmp_path)),
    ):
        for name, values in parameters.items():
            sweeps.check_parameters(project_dir() / "notebooks" / f"{name}.ipynb", values)
    assert sweeps.page_parameters("x", "folder", str(tmp_path))["03_buckets"]["root"] == str(tmp_path)


def test_data_that_are_not_there_end_the_study_before_it_begins(folders, capsys):
    arguments = ["--sweep", "quick", "--no-notebooks", "--dataset", "folder", "--root", str(folders / "nowhere")]
    assert sweeps.main(arguments) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not list(folders.glob("results/*/*.json"))


@pytest.mark.filterwarnings("ignore:There are no records")
def test_another_data_set_runs_only_the_sweep_that_a_page_reads(folders, monkeypatch):
    planned = []
    monkeypatch.setattr(sweeps, "run_tasks", lambda configs, sweep, **_: planned.append(sweep) or [])
    monkeypatch.setattr(sweeps, "content_key", lambda *_: {})
    monkeypatch.setattr(sweeps, "load_dataset", lambda *_, **__: None)
    assert sweeps.main(["--preset", "full", "--dataset", "omniglot", "--no-notebooks"]) == 0
    assert planned == ["stages_omniglot"]
    planned.clear()
    assert sweeps.main(["--preset", "full", "--no-notebooks"]) == 0
    assert planned == list(sweeps.PRESETS["full"])


def test_a_second_study_finds_nothing_left_to_do(folders, monkeypatch):
    done = []

    def execute(tasks, **_):
        for task in tasks:
            done.append(task.name)
            if task.config:
                save_run(task.config, task.sweep, metrics={"recall@1": 0.5})
            else:
                task.output.write_text("")
                sweeps._stamp(task.output).write_text(task.key)
        return []

    monkeypatch.setattr(sweeps, "execute", execute)
    monkeypatch.setattr(sweeps, "_build", lambda: folders / "build")
    monkeypatch.setattr(sweeps, "_make_site", lambda _: "")
    monkeypatch.setattr(sweeps, "load_dataset", lambda *_, **__: None)
    monkeypatch.setenv("BONLIB_FIGURES", "")  # main sets it
    pages = len(list((project_dir() / "notebooks").glob("[0-9]*.ipynb")))
    assert sweeps.main([]) == 0
    assert len(done) == 3 + pages  # runs, then pages that read their records
    assert sweeps.main([]) == 0
    assert len(done) == 3 + pages


def test_the_comparison_shows_triplets_from_scratch_as_well(folders, monkeypatch):
    """`make study` gives it the records of such a sweep; the committed page shows another."""
    monkeypatch.delenv("BONLIB_RESULTS")
    monkeypatch.chdir(project_dir() / "notebooks")
    content, names = json.loads(Path("06_comparison.ipynb").read_text()), {}
    for cell in content["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            if "parameters" in cell["metadata"].get("tags", []):
                assert "sweep" in names
                names["sweep"] = "stages"
    plt.close("all")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_memory_that_a_step_frees_is_kept():
    """Faults of a process of its own: the setting holds for a whole process."""
    code = (
        "import resource, torch\n"
        "from bonlib.study.memory import keep_freed_memory\n"
        "assert {} is not None\n"
        "def faults():\n"
        "    for _ in range(2): torch.ones(2**23)\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(10): torch.ones(2**23)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "print(faults())"
    )
    plain, kept = (
        int(
            subprocess.run([sys.executable, "-c", code.format(call)], capture_output=True, text=True, check=True).stdout
        )
        for call in ("1", "keep_freed_memory()")
    )
    assert kept < plain / 2  # mostly a tenth; now and then the heap has to be laid out anew


def test_a_root_without_a_data_set_is_refused(capsys):
    with pytest.raises(SystemExit):
        sweeps.main(["--root", "photos", "--no-notebooks"])
    assert "--root is photos; it goes with --dataset" in capsys.readouterr().err
