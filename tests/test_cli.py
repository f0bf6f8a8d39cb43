"""The command line as a user calls it: files written, numbers printed, exit statuses."""

import json
import os
import re
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from bonlib import cli, list_datasets, load_dataset, make_hasher, make_miner
from bonlib.datasets import image_options
from bonlib.training.encoders import load_encoder, make_encoder, save_encoder, seen_identities
from bonlib.training.losses import make_loss
from bonlib.training.metrics import evaluate


@pytest.fixture(scope="module")
def trained(example, tmp_path_factory):
    """Weights trained on a folder by the command, and the folder."""
    folder = tmp_path_factory.mktemp("cli")
    photos = shutil.copytree(example, folder / "photos")
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
    assert images == {"augment": None, "color": True, "size": 32, "statistics": None}
    assert len(list((weights.parent / "results" / "scratch").glob("folder-bag-set-0-*.json"))) == 1
    assert not list((weights.parent / "results" / "scratch" / "checkpoints").iterdir())


def test_evaluate_prints_what_evaluate_gives(trained, capsys):
    weights, photos = trained
    assert cli.main(["evaluate", str(weights), "--dataset", "folder", "--root", str(photos)]) == 0
    printed = capsys.readouterr().out
    encoder, images = load_encoder(weights)
    expected = evaluate(encoder, load_dataset("folder", "test", root=str(photos), **images))
    for name, value in expected.items():
        assert f"{name:14} {value:.4f}" in printed


def test_images_of_another_set_come_in_the_size_that_the_encoder_has_learned(trained, tmp_path, capsys):
    _, photos = trained
    options = image_options("market1501", {})  # 256×128 by custom, where a folder has 64×64
    save_encoder(tmp_path / "persons.pt", make_encoder(in_channels=3), images=options, name="small", in_channels=3)
    assert cli.main(["evaluate", str(tmp_path / "persons.pt"), "--dataset", "folder", "--root", str(photos)]) == 0
    assert "3×256×128" in capsys.readouterr().out
    for augment, told in ((None, False), ("crop", True)):  # what is usual is no option that a set could lack
        save_encoder(tmp_path / "own.pt", make_encoder(), images=image_options("folder", {"augment": augment}))
        assert cli.main(["evaluate", str(tmp_path / "own.pt"), "--dataset", "parts", "--root", "nowhere"]) == 2
        assert ("parts has no augment, with which" in capsys.readouterr().err) is told
    for name in ("folder", "online-products", "combined-persons"):
        assert set(image_options(name, {"size": 20})) == {"augment", "color", "size", "statistics"}
        assert image_options(name, {"size": 20})["size"] == 20
    assert image_options("table", {"column": "name"}) == image_options("toponyms", {}) == {}


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


def test_lookalikes_names_a_thing_that_has_two_names_and_a_photo_in_the_wrong_folder(trained, tmp_path, capsys):
    weights, photos = trained
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "copy").mkdir()
    for path in sorted((tmp_path / "photos" / "U+0073").iterdir())[::2]:
        path.rename(tmp_path / "photos" / "copy" / path.name)
    sorted((tmp_path / "photos" / "U+0183").iterdir())[0].rename(tmp_path / "photos" / "U+014E" / "moved.png")
    arguments = ["lookalikes", str(weights), "--dataset", "folder", "--root", str(tmp_path / "photos"), "--top", "30"]
    assert cli.main([*arguments, "--output", str(tmp_path / "found.csv")]) == 0
    pairs, samples = pd.read_csv(tmp_path / "found.csv"), pd.read_csv(tmp_path / "found.samples.csv")
    assert set(pairs.loc[0, ["first", "second"]]) == {"U+0073", "copy"}
    assert pairs.loc[0, "first_path"].split("/")[-2] == pairs.loc[0, "first"]
    assert "moved.png" in samples["path"].str.cat()  # of nearly a thousand, after so short a training
    assert cli.main([*arguments, "--output", str(tmp_path / "found.html")]) == 0
    sheet = (tmp_path / "found.html").read_text()
    assert sheet.count("<img") == 30 * 2 + 30
    assert "http" not in sheet
    (tmp_path / "mine.samples.csv").write_text("mine")
    capsys.readouterr()
    assert cli.main([*arguments, "--output", str(tmp_path / "mine.csv")]) == 2
    assert "not of this command" in capsys.readouterr().err
    assert cli.main([*arguments, "--output", str(tmp_path / "found.pdf")]) == 2
    assert "allowed are names that end in .html or .csv" in capsys.readouterr().err


def test_data_lists_every_set(capsys):
    assert cli.main(["data"]) == 0
    printed = capsys.readouterr().out
    assert "glyphs" in printed
    assert "market" in printed.lower()


@pytest.mark.parametrize("command", ["study", "train", "evaluate", "embed", "neighbours", "lookalikes", "data"])
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
        (["train", "--set", "margin=high"], "margin is 'high'; give a number"),
        (["train", "--set", "margin=0,3"], "--set margin=0,3: '0,3' is no JSON; quote text, 'margin=\"0,3\"'"),
        (["train", "--set", "window=[2, 10]"], "stands in miner_options, as in {'window': …}"),
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


def tiny(folder, identities=24, each=4):
    """A folder of small images, written anew."""
    rng = np.random.default_rng(0)
    for i in range(identities):
        for j in range(each):
            file = folder / f"thing {i:02}" / f"{j}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
    return folder


def train_arguments(photos, folder, *more):
    return [
        "train", "--dataset", "folder", "--root", str(photos), "--steps", "2", "--set", "batch_size=8",
        "--set", "per_class=2", "--output", str(folder / "encoder.pt"), *more,
    ]  # fmt: skip


def test_options_of_the_data_set_are_merged_with_root(folders):
    photos = tiny(folders / "photos")
    assert cli.main(train_arguments(photos, folders, "--set", 'dataset_options={"size": 32}')) == 0
    assert cli.main(train_arguments(photos, folders, "--set", 'dataset_options={"augment": "flip"}',
                                    "--set", 'dataset_options={"size": 32}')) == 0  # fmt: skip
    assert load_encoder(folders / "encoder.pt")[1] == {
        "augment": "flip", "color": True, "size": 32, "statistics": None,
    }  # fmt: skip


def test_a_start_that_knows_what_is_measured_is_told_and_what_it_knows_is_kept(folders):
    photos = tiny(folders / "photos")
    assert cli.main(train_arguments(photos, folders)) == 0
    first = (folders / "encoder.pt").rename(folders / "first.pt")
    shutil.copytree(photos / "thing 03", photos / "a thing")  # one identity more, and the split is another one
    begin = ("--set", f'start="{first}"')
    with pytest.warns(UserWarning, match=r"start is .*first.pt, which learned from identities of the same names as"):
        assert cli.main(train_arguments(photos, folders, *begin)) == 0
    names = load_dataset("folder", "all", root=photos, size=32).class_names
    known = [set(seen_identities(folders / file, names)) for file in ("first.pt", "encoder.pt")]
    assert known[0] < known[1]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_broken_image_in_any_split_is_found_before_training(folders, capsys, split):
    photos = tiny(folders / "photos")
    victim = load_dataset("folder", split, root=photos, size=32).attributes["path"][0]
    with open(victim, "wb") as file:
        file.write(b"no image")
    assert cli.main(train_arguments(photos, folders)) == 2
    said = capsys.readouterr().err
    assert f"{victim} cannot be read" in said
    assert "give --skip-broken" in said
    assert "0%" not in said  # no step was made
    assert not (folders / "encoder.pt").exists()
    assert cli.main(train_arguments(photos, folders, "--skip-broken")) == 0
    assert capsys.readouterr().err.count("bonlib train: Left out: 1 (broken)") == 1


def test_images_that_break_while_it_trains_do_not_lose_the_weights(folders, capsys, monkeypatch):
    from bonlib.study.experiment import Experiment

    photos = tiny(folders / "photos")
    whole = Experiment.save

    def breaking(self, sweep):
        raise OSError("photos/x.png cannot be read: gone.")

    monkeypatch.setattr(Experiment, "save", breaking)
    assert cli.main(train_arguments(photos, folders)) == 2
    said = capsys.readouterr().err
    assert f"The weights {folders / 'encoder.pt'} are whole, the record is not written" in said
    assert load_encoder(folders / "encoder.pt")
    monkeypatch.setattr(Experiment, "save", whole)
    assert cli.main(train_arguments(photos, folders)) == 0
    assert "Resuming from" in capsys.readouterr().err


def test_three_spellings_of_a_folder_are_one_record_and_another_content_is_another(folders, monkeypatch):
    tiny(folders / "photos")
    monkeypatch.chdir(folders)
    for root in ("photos", "./photos", str(folders / "photos")):
        assert cli.main(train_arguments(root, folders)) == 0
    assert len(list((folders / "results" / "scratch").glob("*.json"))) == 1
    first, second = sorted((folders / "photos" / "thing 00").iterdir())[:2]
    first.write_bytes(second.read_bytes())
    assert cli.main(train_arguments("photos", folders)) == 0
    assert len(list((folders / "results" / "scratch").glob("*.json"))) == 2


@pytest.mark.parametrize(
    ("command", "output"),
    [("neighbours", "sheet.html"), ("neighbours", "sheet.svg"), ("embed", "e.npy"), ("embed", "e.parquet")],
)
def test_nothing_beside_the_output_is_overwritten_or_deleted(trained, tmp_path, command, output):
    weights, photos = trained
    names = ("sheet.png", "sheet.pdf", "e.csv", "e.labels.npy", "e.json", ".sheet.old.html", ".e.old.npy")
    for name in names:
        (tmp_path / name).write_text("mine")
        os.utime(tmp_path / name, (1, 1))
    arguments = [
        command,
        str(weights),
        "--dataset",
        "folder",
        "--root",
        str(photos),
        "--output",
        str(tmp_path / output),
    ]
    assert cli.main(arguments) == 0
    assert all((tmp_path / name).read_text() == "mine" for name in names)
    written = {path.name for path in tmp_path.iterdir()} - set(names)
    assert written == {output, "e.rows.csv"} if output == "e.npy" else {output}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--device", "cuda:7"], "device is 'cuda:7', but torch sees"),
        (["train", "--device", "tpu9"], "device is 'tpu9'"),
        (["train", "--root", "x"], "dataset 'glyphs' has no option root; it has characters, draws"),
        (["train", "--miner", "magic"], "miner is 'magic'; allowed are"),
        (["train", "--encoder", "resnet1"], "name is 'resnet1'; allowed are"),
        (["train", "--set", 'miner_options={"bag": 1}'], "miner 'two-stage-bag' does not go with these options"),
        (["train", "--set", "dataset_options=3"], "dataset_options is 3; give a dictionary"),
        (["train", "--set", 'lr="fast"'], "lr is 'fast'; give a number"),
        (["train", "--set", "batch_size=7"], "batch_size is 7; it must be a multiple of 4"),
        (["train", "--output", "/dev/null/x/encoder.pt"], "give another place"),
        (["train", "--output", "/"], "a folder has this name"),
        (["train", "--dataset", "table", "--root", "no.csv", "--column", "name"], "root is 'no.csv', which is no file"),
        (["train", "--set", 'start="first.pt"'], "start is 'first.pt', which is no file"),
        (["train", "--set", "dataset_options={'a': 1}"], "is no JSON; in it text has double quotes"),
        (["train", "--dataset", "folder", "--root", "/dev/null/photos"], "which is no folder"),
        (["train", "--dataset", "folder"], "root is None; 'folder' needs one"),
        (["train", "--dataset", "market1501", "--root", "/"], "has not the published layout"),
    ],
)
def test_whatever_a_user_gets_wrong_ends_with_a_sentence(arguments, message, capsys, folders):
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_encoders_and_outputs_that_do_not_fit_end_with_a_sentence(trained, tmp_path, capsys, folders):
    weights, photos = trained
    source = ["--dataset", "folder", "--root", str(photos)]
    (tmp_path / "half.pt").write_bytes(weights.read_bytes()[:1000])
    for arguments, status, message in (
        (["evaluate", str(weights), *source, "--device", "cuda:9"], 2, "but torch sees"),
        (["evaluate", str(tmp_path / "half.pt"), *source], 2, "it is damaged or no file of torch"),
        (["evaluate", str(weights), "--dataset", "glyphs"], 2, "does not take samples of 1×32×32"),  # they are grey
        (["evaluate", str(weights)], 2, "root is None; 'folder' needs one"),  # as it was trained
        (["embed", str(weights), *source, "--output", "/dev/null/x.npy"], 2, "give another place"),
        (["embed", str(weights), *source, "--output", "x.csv"], 2, "allowed are names that end in"),
        (["neighbours", str(weights), *source, "--output", "x.pdf"], 2, "allowed are names that end in"),
    ):
        assert cli.main(arguments) == status
        assert message in capsys.readouterr().err
    for arguments in (["neighbours", "x.pt", "--k", "0"], ["neighbours", "x.pt", "--queries", "0"],
                      ["train", "--steps", "0"], ["train", "--seed", "-1"], ["train", "--steps", "ten"]):  # fmt: skip
        with pytest.raises(SystemExit, match="2"):
            cli.main(arguments)
        assert "give a whole number, at least" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "call", "message"),
    [
        (
            "faiss",
            lambda: make_miner("graph", [0, 0, 1, 1], 4, batch_size=4, per_class=2),
            "graph sampling needs faiss",
        ),
        ("faiss", lambda: make_miner("smart", [0, 0, 1, 1], 4, batch_size=4, per_class=2), "smart mining needs faiss"),
        ("faiss", lambda: make_miner("subspaces", [0, 0, 1, 1], 4, batch_size=4, per_class=2), "needs faiss"),
        ("faiss", lambda: make_hasher("itq", 8, 4), "hasher 'itq' needs faiss"),
        ("sklearn.decomposition", lambda: make_hasher("pca", 8, 4), "hasher 'pca' needs sklearn"),
        ("pytorch_metric_learning", lambda: make_loss("batch-hard"), "make_loss needs pytorch_metric_learning"),
        ("torchvision", lambda: make_encoder("resnet18", in_channels=3), "encoder 'resnet18' needs torchvision"),
        ("matplotlib", lambda: load_dataset("glyphs", "train"), "load_dataset\\('glyphs'\\) needs matplotlib"),
        ("pandas", lambda: load_dataset("table", "train", root="t.csv", column="name"), "needs pandas"),
        ("pandas", list_datasets, "needs pandas"),
    ],
)
def test_what_is_not_installed_is_told_with_the_command_that_installs_it(monkeypatch, module, call, message):
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=message + r".*pip install 'bonlib\[study\]'"):
        call()


def test_a_table_of_names_is_trained_on_and_evaluated(folders, capsys):
    words = ["north", "south", "east", "west", "upper", "lower", "new", "old"]
    rows = [
        (f"{first} {second}{end}", f"{first} {second}")
        for first in words for second in ("mill", "ford", "bridge", "castle", "haven")
        for end in ("", " town", "e", "s")
    ]  # fmt: skip
    table, weights = folders / "names.csv", folders / "names.pt"
    pd.DataFrame(rows, columns=["title", "identity"]).to_csv(table, index=False)
    source = ["--dataset", "table", "--root", str(table), "--column", "title"]
    options = ["--steps", "40", "--set", "batch_size=32", "--set", 'dataset_options={"typos": 0.05}']
    assert cli.main(["train", *source, *options, "--output", str(weights)]) == 0
    assert load_encoder(weights)[1] == {"column": "title", "typos": 0.05}
    (record,) = (folders / "results" / "scratch").glob("table-two-stage-bag-set-0-*.json")
    assert json.loads(record.read_text())["config"]["encoder"] == "ngrams"
    # Of the weights it is known which column they are of; the same file elsewhere is the same data.
    assert cli.main(["evaluate", str(weights), "--root", str(table)]) == 0
    assert re.search(r"\ntest: TextSet.*recall@1", capsys.readouterr().out, re.DOTALL)
    assert cli.main(["evaluate", str(weights), "--root", str(table), "--split", "train"]) == 0
    assert "The encoder learned from 20 of the 20 identities; on new ones" in capsys.readouterr().err
    assert cli.main(["embed", str(weights), *source, "--output", str(folders / "names.npy")]) == 0
    found = pd.read_csv(folders / "names.rows.csv")
    assert set(found["string"]) <= {name for name, _ in rows}
    assert "trained on" not in capsys.readouterr().err
    first = pd.DataFrame([("a hill", "a"), ("hill a", "a")], columns=["title", "identity"])
    grown = pd.concat([first, pd.read_csv(table)])  # one identity more, and the split is another one
    grown.to_csv(folders / "grown.csv", index=False)
    assert cli.main(["evaluate", str(weights), "--dataset", "table", "--root", str(folders / "grown.csv")]) == 0
    assert "bear names of identities that the encoder was trained on" in capsys.readouterr().err
    arguments = ["neighbours", str(weights), *source, "--queries", "2", "--k", "3"]
    assert cli.main([*arguments, "--output", str(folders / "sheet.png")]) == 0
    assert cli.main(["lookalikes", str(weights), *source, "--output", str(folders / "sheet.html")]) == 0
    assert "first_string" in (folders / "sheet.html").read_text()
    assert cli.main(["evaluate", str(weights), "--dataset", "glyphs"]) == 2  # these are no strings
    assert "does not take samples" in capsys.readouterr().err


def test_an_encoder_of_a_split_of_its_own_is_measured_on_what_it_has_not_seen(example, folders):
    photos = shutil.copytree(example, folders / "photos")
    options = json.dumps({"root": str(photos), "size": 32})
    done = cli.main([
        "train", "--dataset", "folder", "--root", str(photos), "--miner", "random", "--steps", "1", "--seed", "1",
        "--set", "own_split=true", "--set", "batch_size=24", "--set", f"dataset_options={options}",
        "--output", str(folders / "own.pt"),
    ])  # fmt: skip
    assert done == 0
    _, images = load_encoder(folders / "own.pt")
    test = load_dataset("folder", "test", root=str(photos), **images)
    trained_on = load_dataset("folder", "train", root=str(photos), size=32, split_seed=1)
    assert not set(test.class_names) & set(trained_on.class_names)


@pytest.mark.parametrize("command", ["embed", "lookalikes", "neighbours", "train"])
def test_what_is_read_is_not_written_over(trained, tmp_path, capsys, command):
    weights, photos = trained
    suffix = {"embed": ".npy", "lookalikes": ".csv", "neighbours": ".html", "train": ".pt"}[command]
    copy = shutil.copy(weights, tmp_path / f"mine{suffix}")
    before = copy.read_bytes()
    source = ["--dataset", "folder", "--root", str(photos)]
    if command == "neighbours":  # an image of the folder
        image = next(photos.rglob("*.png"))
        assert cli.main([command, str(weights), *source, "--output", str(image)]) == 2
        assert "is read here" in capsys.readouterr().err
    given = [*source, "--steps", "5", "--set", f'start="{copy}"'] if command == "train" else [str(copy), *source]
    assert cli.main([command, *given, "--output", str(copy)]) == 2
    assert "is read here, and would be written over" in capsys.readouterr().err
    assert copy.read_bytes() == before


def test_a_share_held_out_of_training_does_not_keep_weights_from_other_data(trained, tmp_path, capsys):
    weights, photos = trained
    encoder, images = load_encoder(weights)
    save_encoder(tmp_path / "shared.pt", encoder, images=images | {"validation": 0.3}, name="small", in_channels=3)
    source = [str(tmp_path / "shared.pt"), "--dataset", "folder", "--root", str(photos)]
    assert cli.main(["embed", *source, "--split", "all", "--output", str(tmp_path / "all.npy")]) == 0
    assert cli.main(["evaluate", *source]) == 0
    assert cli.main(["evaluate", *source, "--split", "validation"]) == 2
    assert "validation is 0.3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (["per_class=1"], "per_class is 1, so that a batch holds no positives for the loss 'batch-hard'"),
        (["loss=cosface", 'loss_options={"scale": -1}'], "scale is -1"),
        (["loss=cosface", 'loss_options={"scale": "big"}'], "scale is 'big'"),
        (["loss=cross-batch-memory", 'loss_options={"memory_size": 0}'], "memory_size is 0"),
        (["loss=cross-batch-memory", 'loss_options={"memory_size": 64}'], "memory_size is 64 and batch_size 132"),
    ],
)
def test_settings_that_would_teach_nothing_are_refused(trained, tmp_path, capsys, settings, text):
    given = [part for setting in settings for part in ("--set", setting)]
    source = ["--dataset", "folder", "--root", str(trained[1]), "--steps", "5", "--miner", "random"]
    assert cli.main(["train", *source, *given, "--output", str(tmp_path / "e.pt")]) == 2
    assert text in capsys.readouterr().err


def test_a_split_without_pairs_is_told_before_the_training(folders, capsys):
    names = [(f"n{i} {j}", f"i{i}", "train") for i in range(40) for j in range(2)]
    names += [(f"t{i}", f"t{i}", "test") for i in range(5)]
    pd.DataFrame(names, columns=["name", "identity", "split"]).to_csv(folders / "tt.csv", index=False)
    source = ["--dataset", "table", "--root", str(folders / "tt.csv"), "--column", "name", "--steps", "5"]
    assert cli.main(["train", *source, "--output", str(folders / "e.pt")]) == 2
    assert "The split 'test' has no identity with two samples" in capsys.readouterr().err
