"""What several tests share: two threads at most, a small drawn data set, folders of their own for files."""

import matplotlib as mpl
import pytest
import torch

mpl.use("Agg")


@pytest.fixture(scope="session", autouse=True)
def few_threads():
    torch.set_num_threads(1)  # the tests run side by side


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Data, results and figures below a temporary folder."""
    for name in ("DATA", "RESULTS", "FIGURES"):
        monkeypatch.setenv(f"BONLIB_{name}", str(tmp_path / name.lower()))
    return tmp_path
