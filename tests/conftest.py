"""What several tests share: two threads at most, a small drawn data set, folders of their own for files."""

import matplotlib as mpl
import pytest
import torch

from bonlib.datasets.example import example_folder

mpl.use("Agg")


@pytest.fixture(scope="session", autouse=True)
def few_threads():
    torch.set_num_threads(1)  # the tests run side by side


@pytest.fixture(scope="session")
def example(tmp_path_factory):
    """A folder of photos of forty identities, to be copied where a test changes it."""
    return example_folder(tmp_path_factory.mktemp("example") / "photos", identities=40)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Data, results and figures below a temporary folder."""
    for name in ("DATA", "RESULTS", "FIGURES"):
        monkeypatch.setenv(f"BONLIB_{name}", str(tmp_path / name.lower()))
    return tmp_path
