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
import yaml
from papermill import inspect_notebook

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "bonlib").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# Floors of the house, lowest first: a module imports from floors below its own and from its own; `datasets` stands
# beside the miners. The bag is a floor of its own, between the parts that it is made of and the other miners.
FLOORS = {
    "core": 0,
    "datasets": 1,
    "bag": 1,
    "miners": 2,
    "integrations": 2,
    "lookalikes": 2,
    "training": 3,
    "study": 4,
    "__init__": 5,
    "cli": 5,
}


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
    study = {"matplotlib", "pandas", "seaborn", "faiss", "pytorch_metric_learning", "papermill", "torchvision", "PIL"}
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
        tags = cell["metadata"].get("tags", ())
        assert len(source.splitlines()) <= 8, source
        # Answers of exercises are folded, and may define what the reader was asked to write.
        assert cell["metadata"].get("jupyter", {}).get("source_hidden", False) == ("exercise" in tags), source
        assert "exercise" in tags or not re.search(r"^(def|class) ", source, re.MULTILINE), source
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
