"""What holds for the project as a whole: layers, notebooks, the two lists of dependencies."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from papermill import inspect_notebook

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "bonlib").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# Floors of the house, lowest first: a module imports from floors below its own and from its own; `datasets` stands
# beside the miners. The bag is a floor of its own, between the parts that it is made of and the other miners.
FLOORS = {"core": 0, "datasets": 1, "bag": 1, "miners": 2, "training": 3, "study": 4, "__init__": 5, "cli": 5}


def imported(path: Path) -> set[str]:
    """Modules of bonlib that a file imports, with their folders."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bonlib"):
            folder = ROOT.joinpath(*node.module.split("."))
            names = [f"{node.module}.{alias.name}" for alias in node.names] if folder.is_dir() else [node.module]
            found |= {
                name if ROOT.joinpath(*name.split(".")).with_suffix(".py").exists() else node.module for name in names
            }
    return {name.removeprefix("bonlib.") for name in found - {"bonlib"}}


def floor(module: str) -> int:
    return FLOORS[module.split(".")[0]]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    module = ".".join(path.relative_to(ROOT / "bonlib").with_suffix("").parts)
    for other in imported(path):
        assert floor(other) < floor(module) or other.split(".")[0] == module.split(".")[0], f"{module} imports {other}"


def test_no_two_modules_import_each_other_in_a_circle():
    graph = {}
    for path in MODULES:
        module = ".".join(path.relative_to(ROOT / "bonlib").with_suffix("").parts).removesuffix(".__init__")
        graph[module] = {name.removesuffix(".__init__") for name in imported(path)} - {module}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("path", sorted((ROOT / "bonlib" / "study" / "figures").glob("*.py")), ids=lambda p: p.stem)
def test_figures_take_data_and_never_a_trainer(path):
    allowed = {"core.paths", "study.names", "study.statistics"}
    assert {name for name in imported(path) if not name.startswith("study.figures")} <= allowed


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= 400


def test_the_package_alone_imports_nothing_of_the_study():
    code = "import bonlib, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    study = {
        "matplotlib",
        "pandas",
        "seaborn",
        "faiss",
        "pytorch_metric_learning",
        "papermill",
        "torchvision",
        "PIL",
    }
    assert not study & set(done.stdout.split())


def test_environment_yml_says_what_pyproject_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert f"python{project['requires-python']}" in conda
    assert {"pip", "make", "git"} <= set(conda)
    assert pip == {"pip": ["-c constraints.txt", f"-e .[{','.join(project['optional-dependencies'])}]"]}


def test_constraints_pin_every_dependency_within_its_range():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = sum(project["optional-dependencies"].values(), project["dependencies"])
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    normal = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(normal[requirement.name.lower()]), requirement


def test_ci_calls_the_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_as_the_house_asks(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    code = cells(path, "code")
    assert path.stat().st_size < 1_000_000
    assert cells(path, "markdown")[0]["source"][0].startswith("# ")
    assert len(cells(path, "markdown")) >= len(code) / 2  # prose, with thin cells between
    assert sum("parameters" in cell["metadata"].get("tags", ()) for cell in code) == 1
    for cell in code:
        source = "".join(cell["source"])
        lines = source.splitlines()
        is_setup = "import" in lines[0] or "parameters" in cell["metadata"].get("tags", ())
        assert len(lines) <= (16 if is_setup else 8), source
        assert not re.search(r"^(def|class) ", source, re.MULTILINE), source
        assert not [o for o in cell["outputs"] if o["output_type"] == "error" or o.get("name") == "stderr"], source
    assert any(cell["outputs"] for cell in code), "committed without outputs"
    assert any("image/png" in o.get("data", {}) for cell in code for o in cell["outputs"]), "no picture"
    assert all(cell["execution_count"] for cell in code), "committed without having been run"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_papermill_reads_every_parameter(path):
    (cell,) = [c for c in cells(path, "code") if "parameters" in c["metadata"].get("tags", ())]
    names = [line.split("=")[0].strip() for line in "".join(cell["source"]).splitlines() if line.strip()]
    assert list(inspect_notebook(str(path))) == names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_links_between_notebooks_lead_somewhere(path):
    for cell in cells(path, "markdown"):
        for target in re.findall(r"\]\((?!http)([^)]+)\)", "".join(cell["source"])):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("form", ["set", "triplet", "pair"])
def test_the_loop_in_the_readme_runs(form):
    from pytorch_metric_learning.losses import ContrastiveLoss, TripletMarginLoss

    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    size = {"set": 128, "triplet": 129, "pair": 128}[form]
    encoder = torch.nn.Linear(10, 64)
    scope = {
        "labels": torch.arange(60).repeat_interleave(8),
        "images": torch.rand(480, 10, generator=torch.Generator().manual_seed(0)),
        "encoder": encoder,
        "loss_fn": ContrastiveLoss() if form == "pair" else TripletMarginLoss(),
        "optimizer": torch.optim.Adam(encoder.parameters()),
    }
    exec(code.replace('form="set", batch_size=128', f'form="{form}", batch_size={size}'), scope)
    assert scope["bag"].form == form
    assert scope["bag"].stats()["filled"] > 0.4


def readme_table(section: str) -> dict[str, list[str]]:
    """First cell of a row → its other cells, of the table in a section of the README."""
    text = (ROOT / "README.md").read_text().split(section)[1].split("\n##")[0]
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    return {name: cells for name, *cells in rows[1:] if not name.startswith("-")}


def test_the_data_sets_in_the_readme_are_what_the_records_say():
    from bonlib.study.records import load_runs
    from bonlib.study.statistics import leads_by

    runs = load_runs("datasets").query("error.isna()")
    recall, map_at_r = leads_by(runs, "dataset"), leads_by(runs, "dataset", "metrics.map@r")
    expected = {}
    for name, row in recall.iterrows():
        leads = [(table.loc[name, ["lead", "low", "high"]] * 100).tolist() for table in (recall, map_at_r)]
        expected[name] = [
            f"{row['identities']:,.0f}",
            f"{row['steps']:,.0f}",
            f"{row['random']:.3f}",
            f"{row['bag']:.3f}",
        ]
        expected[name] += [f"{lead:+.1f} [{low:.1f}, {high:.1f}]" for lead, low, high in leads]
    table = {
        k.split()[0].lower(): [c.replace(" points", "") for c in v] for k, v in readme_table("### Across data").items()
    }
    assert table == expected


def test_the_field_in_the_readme_is_what_the_records_say():
    from bonlib.study.records import load_runs
    from bonlib.study.statistics import against, mean_interval

    field = load_runs("rivals").query("error.isna()")
    leads = against(field, "metrics.recall@1", "BoN sets + batch-hard")
    table = readme_table("### Against the field")
    assert set(table) == set(field["method"])
    for name, (recall, map_at_r, lead, *_) in table.items():
        runs = field[field["method"] == name]
        assert [recall, map_at_r] == [str(mean_interval(runs[f"metrics.{m}"].tolist())) for m in ("recall@1", "map@r")]
        if name in leads.index:
            lead_of = leads.loc[name]
            assert lead == f"{lead_of['lead']:+.3f} [{lead_of['low']:.3f}, {lead_of['high']:.3f}] {lead_of['verdict']}"


def test_the_costs_in_the_readme_are_what_the_records_say():
    from bonlib.study.records import load_bench

    batches, samplers, hashing, steps, evaluation = (
        load_bench(f"{name}_cpu") for name in ("batches", "samplers", "hashing", "steps", "evaluation")
    )
    slowest, memory = batches.groupby("samples")["milliseconds"].max(), batches.iloc[-1]
    ratio = samplers.set_index(["miner", "identities"])["to_bon"]
    ours, theirs = evaluation.itertuples()
    share = steps.set_index("encoder")["share"]
    low, high, floor = hashing["milliseconds"].min(), hashing["milliseconds"].max(), hashing["floor"]
    expected = [
        f"{slowest[10**5]:.2f} ms",
        f"{slowest[10**8]:.2f} ms",
        f"{memory['bytes_per_sample']:.1f} bytes a sample; made in {memory['build_seconds']:.0f} s, "
        f"filled in {memory['fill_seconds']:.0f} s",
        f"{ratio['MPerClassSampler', 10**6]:.0f} times BoN's time for a batch",
        f"{ratio['exact search', 10**5]:,.0f} times",
        f"{low:.2f} to {high:.2f} ms, below torch's own layers and Adam ({floor.min():.2f} to {floor.max():.2f} ms)",
        f"{share['small']:.1%}".replace("%", " %"),
        f"{share['resnet50']:.2%}".replace("%", " %"),
        f"{ours.seconds:.0f} s and {ours.peak_gib:.2f} GiB; "
        f"`AccuracyCalculator` {theirs.seconds:.0f} s and {theirs.peak_gib:.1f} GiB",
    ]
    assert [cells[0] for cells in readme_table("## What it costs").values()] == expected
