"""The command line as a user calls it: files written, numbers printed, exit statuses."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from bonlib import cli
from bonlib.datasets.example import example_folder
from bonlib.training.encoders import load_encoder
from bonlib.training.metrics import evaluate


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights trained on a folder by the command, and the folder."""
    folder = tmp_path_factory.mktemp("cli")
    photos = example_folder(folder / "photos", identities=40)
    options = json.dumps({"root": str(photos), "size": 32})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BONLIB_RESULTS", str(folder / "results"))
        patch.setenv("BONLIB_DATA", str(folder / "data"))
        status = cli.main([
            "train", "--dataset", "folder", "--root", str(photos), "--miner", "bag", "--steps", "60",
            "--set", "batch_size=24", "--set", f"dataset_options={options}",
            "--output", str(folder / "encoder.pt"),
        ])  # fmt: skip
    assert status == 0
    return folder / "encoder.pt", photos


def test_train_writes_weights_and_a_record(trained):
    weights, _ = trained
    _, images = load_encoder(weights)
    assert images == {"size": 32}
    assert len(list((weights.parent / "results" / "scratch").glob("folder-bag-set-0-*.json"))) == 1
    assert not list((weights.parent / "results" / "scratch" / "checkpoints").iterdir())


def test_evaluate_prints_what_evaluate_gives(trained, capsys):
    weights, photos = trained
    assert cli.main(["evaluate", str(weights), "--dataset", "folder", "--root", str(photos)]) == 0
    printed = capsys.readouterr().out
    from bonlib import load_dataset

    encoder, images = load_encoder(weights)
    expected = evaluate(encoder, load_dataset("folder", "test", root=str(photos), **images))
    for name, value in expected.items():
        assert f"{name:14} {value:.4f}" in printed


def test_embed_writes_unit_rows_as_npy_and_parquet(trained, tmp_path):
    weights, photos = trained
    for name in ("out.npy", "out.parquet"):
        arguments = ["embed", str(weights), "--dataset", "folder", "--root", str(photos)]
        assert cli.main([*arguments, "--output", str(tmp_path / name)]) == 0
    array, rows = np.load(tmp_path / "out.npy"), pd.read_csv(tmp_path / "out.rows.csv")
    table = pd.read_parquet(tmp_path / "out.parquet")
    assert np.linalg.norm(array, axis=1) == pytest.approx(np.ones(len(array)), abs=1e-5)
    assert np.allclose(table.filter(regex=r"^e\d+$"), array)
    for column in ("label", "class_name", "path"):
        assert table[column].tolist() == rows[column].tolist()
    assert all(name in path for name, path in zip(table["class_name"], table["path"], strict=True))
    assert table.groupby("label")["class_name"].nunique().eq(1).all()


@pytest.mark.parametrize("name", ["sheet.png", "sheet.html"])
def test_neighbours_draws_a_sheet(trained, tmp_path, name):
    weights, photos = trained
    arguments = ["neighbours", str(weights), "--dataset", "folder", "--root", str(photos), "--queries", "3", "--k", "4"]
    assert cli.main([*arguments, "--output", str(tmp_path / name)]) == 0
    content = (tmp_path / name).read_bytes()
    assert content.startswith(b"\x89PNG" if name.endswith("png") else b"<!DOCTYPE html>")
    assert name.endswith("png") or b"http" not in content


def test_data_lists_every_set(capsys):
    assert cli.main(["data"]) == 0
    printed = capsys.readouterr().out
    assert "glyphs" in printed
    assert "Market-1501".lower() in printed.lower() or "market" in printed.lower()


@pytest.mark.parametrize("command", ["study", "train", "evaluate", "embed", "neighbours", "data"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert "usage" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--dataset", "nothing"], "name is 'nothing'; allowed are"),
        (["train", "--set", "colour=1"], "There is no setting 'colour'; allowed are"),
        (["train", "--set", "margin=high"], "is no JSON"),
        (["evaluate", "nowhere.pt"], "which is no file"),
    ],
)
def test_wrong_input_is_named_and_ends_with_2(arguments, message, capsys, folders):
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(folders, capsys, monkeypatch):
    from bonlib.study.experiment import Experiment

    whole = Experiment.__iter__

    def stopped(self):
        for step in whole(self):
            yield step
            if step.step == 55:
                raise KeyboardInterrupt

    monkeypatch.setattr(Experiment, "__iter__", stopped)
    options = ["--set", "identities=30", "--set", "batch_size=24", "--steps", "70", "--set", "evaluate_every=70"]
    assert cli.main(["train", *options]) == 130
    assert "goes on from it" in capsys.readouterr().err
    assert torch.load(next(folders.rglob("*.pt")), weights_only=True)["progress"]["step"] == 50


def test_the_study_needs_a_checkout(monkeypatch, capsys):
    monkeypatch.setattr("bonlib.study.sweeps.project_dir", lambda: None)
    assert cli.main(["study", "--sweep", "quick"]) == 2
    assert "git clone" in capsys.readouterr().err
