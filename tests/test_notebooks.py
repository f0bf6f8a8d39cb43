"""Notebooks with other parameters than those they are committed with."""

import json

import numpy as np
import papermill
import pytest
from PIL import Image

from bonlib.core.paths import project_dir
from bonlib.datasets.example import example_folder


def test_training_runs_on_any_folder_of_images(folders, tmp_path):
    rng = np.random.default_rng(0)
    for identity in range(80):
        for i in range(4):
            file = folders / "photos" / f"shelf {identity % 3}" / f"thing {identity}" / f"{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(file)
    parameters = {"dataset": "folder", "root": str(folders / "photos"), "steps": 3, "sweep": "mine"}
    notebook = project_dir() / "notebooks" / "04_training.ipynb"
    papermill.execute_notebook(str(notebook), str(tmp_path / "out.ipynb"), parameters, progress_bar=False)
    (record,) = (folders / "results" / "mine").glob("*.json")
    content = json.loads(record.read_text())
    assert content["config"]["dataset"] == "folder"
    assert content["data"]["identities"] == 40
    assert 0 <= content["metrics"]["recall@1"] <= 1


def test_the_example_is_a_folder_of_identities(folders):
    folder = example_folder(identities=12)
    assert folder == folders / "data" / "example"
    assert len(list(folder.iterdir())) == 12
    assert all(16 <= len(list(identity.glob("*.png"))) <= 32 for identity in folder.iterdir())
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    with Image.open(next(iter(before))) as image:
        assert (image.mode, image.size) == ("RGB", (32, 32))
    example_folder(identities=12)
    assert {path: path.read_bytes() for path in folder.rglob("*.png")} == before
    other = example_folder(folders / "other", identities=12)
    assert sorted(path.relative_to(other) for path in other.rglob("*.png")) == sorted(
        path.relative_to(folder) for path in before
    )


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for the kernel, beside which other tests run
