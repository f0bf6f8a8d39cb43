"""Sets of strings: n-grams, augmentation, toponyms, tables of names, and the encoder that takes them."""

import copy
import json
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from bonlib import BagOfNegatives, fit, load_dataset
from bonlib.datasets import content_key
from bonlib.datasets.strings import LONGEST, VOCABULARY, TextSet
from bonlib.datasets.tables import LeftOut
from bonlib.datasets.toponyms import _read
from bonlib.study.config import Config
from bonlib.study.experiment import Experiment
from bonlib.study.explorer import Explorer, Story, draw_view, look
from bonlib.training.encoders import load_encoder, make_encoder, save_encoder
from bonlib.training.losses import make_loss
from bonlib.training.optimizers import AdamOfBothKinds, make_optimizer

MASK = 2**64 - 1
EDGE = chr(0x10FFFF)


def hashed(text: str) -> list[int]:
    """The hashes of a string's n-grams, in plain Python."""
    text = EDGE + text[:LONGEST] + EDGE
    found = []
    for begin in range(len(text)):
        for end in range(begin + 1, min(begin + 4, len(text)) + 1):
            mixed = 0
            for character in text[begin:end]:
                mixed = (mixed ^ ord(character)) * 0x9E3779B97F4A7C15 & MASK
                mixed ^= mixed >> 29
            if text[begin:end] != EDGE:
                found.append(1 + mixed % (VOCABULARY - 1))
    return sorted(found)


@pytest.fixture
def names():
    texts = ["wien", "vienna", "vindobona", "praha", "prague", "ぷらは", "a", "x" * 100]
    return TextSet(texts, torch.tensor([0, 0, 0, 1, 1, 1, 2, 2]), ["Wien", "Praha", "odd"])


def test_a_string_becomes_the_hashes_of_its_ngrams(names):
    grams, labels = names.batch(np.arange(8))
    assert grams.dtype == torch.int64
    for text, row in zip(names.strings, grams.tolist(), strict=True):
        assert sorted(gram for gram in row if gram) == hashed(text)
    assert labels.tolist() == names.labels.tolist()


def test_a_batch_is_what_the_single_strings_are(names):
    singles = torch.stack([names[i][0] for i in range(8)])
    batch, _ = names.batch(range(8))
    assert torch.equal(singles[:, : batch.shape[1]], batch)
    assert not singles[:, batch.shape[1] :].any()
    assert len(list(names)) == 8  # Python asks for the ninth, too
    assert torch.equal(names[-1][0], names[7][0])
    with pytest.raises(IndexError, match="index 8 is out of range; there are 8 strings"):
        names[8]
    with pytest.raises(ValueError, match="indices holds values from 0 to 8; allowed are 0 to 7"):
        names.batch([0, 8])
    loader = DataLoader(names, batch_sampler=[[0, 3], [1, 4]])
    assert [labels.tolist() for _, labels in loader] == [[0, 1], [0, 1]]


def test_augmentation_draws_from_torchs_generator_and_leaves_about_its_share(names):
    texts = TextSet(names.strings * 50, names.labels.repeat(50), names.class_names, drop=0.3)
    whole = (TextSet(texts.strings, texts.labels, texts.class_names).batch(np.arange(400))[0] > 0).sum()
    torch.manual_seed(3)
    first = texts.batch(np.arange(400))[0]
    torch.manual_seed(3)
    assert torch.equal(texts.batch(np.arange(400))[0], first)
    assert not torch.equal(texts.batch(np.arange(400))[0][:, :9], first[:, :9])
    assert (first > 0).sum() / whole == pytest.approx(0.7, abs=0.03)


def test_typos_change_some_ngrams_and_keep_most(names):
    typos = TextSet(["vindobona"] * 500, torch.arange(500) // 250, ["a", "b"], typos=0.05)
    rows = typos.batch(np.arange(500))[0].tolist()
    kept = [len(set(hashed("vindobona")) & set(row)) / len(set(hashed("vindobona"))) for row in rows]
    assert 0.45 < np.mean(np.array(kept) == 1) < 0.75  # 0.95^9 = 0.63, and a double letter may look the same
    assert np.mean(kept) > 0.7


def test_subsets_number_their_classes_anew(names):
    part = names.subset([3, 4, 6])
    assert (part.strings, part.labels.tolist(), part.class_names) == (
        ["praha", "prague", "a"],
        [0, 0, 1],
        ["Praha", "odd"],
    )
    assert torch.equal(part.batch([0])[0], names.batch([3])[0])
    assert part.fingerprint != names.fingerprint
    assert names.of_class("Praha") == ["praha", "prague", "ぷらは"]
    assert names.pixels([0, 7]).shape == (2, 1, 48, 96)


def test_a_name_of_two_places_belongs_to_neither(tmp_path):
    def city(name, *others):
        return {"name": name, "alternatenames": list(others), "countrycode": "XX"}

    cities = {
        "1": city("Springfield", "Spring Field", "Sprngfld"),
        "2": city("SPRINGFIELD", "Ｓｐｒｉｎｇｆｉｅｌｄ", "Sv"),
        "3": city("Wien", "Vienna", "wien", "vienna ", "Wi"),
    }
    (tmp_path / "cities.json").write_text(json.dumps(cities))
    found = _read(tmp_path / "cities.json")
    assert found["names"].tolist() == ["spring field", "sprngfld", "vienna", "wien"]
    assert found["begins"].tolist() == [0, 2, 4]
    assert found["places"].tolist() == ["Springfield (1)", "Wien (3)"]


def write(path, rows, columns=("name", "customer")):
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    return path


@pytest.fixture
def table(tmp_path):
    rows = [(f"{word} {kind}", word) for word in ("ada", "bob", "cyd", "dan", "eve", "fay", "gus", "hal", "ivy", "joe")
            for kind in ("ltd", "limited", "gmbh")]  # fmt: skip
    return write(tmp_path / "names.csv", rows)


def test_a_table_of_names_is_split_by_identity(table):
    options = {"root": table, "column": "name", "identity": "customer"}
    parts = {split: load_dataset("table", split, **options) for split in ("train", "validation", "test", "all")}
    assert [len(part) for part in parts.values()] == [15, 3, 12, 30]
    named = [set(part.class_names) for name, part in parts.items() if name != "all"]
    assert set.union(*named) == set(parts["all"].class_names)
    assert sum(map(len, named)) == 10
    other = load_dataset("table", "train", **options, split_seed=1)
    assert set(other.class_names) != set(parts["train"].class_names)
    assert load_dataset("table", "train", **options, typos=0.1).typos == 0.1
    assert load_dataset("table", "test", **options, typos=0.1).typos == 0


def test_strings_of_two_identities_are_left_out_with_a_warning(tmp_path):
    rows = [("acme", "1"), ("acme", "2"), ("acme inc", "1"), ("acme inc", "1"), ("acme co", "2")]
    rows = [(name, customer, "train") for name, customer in rows]
    file = write(tmp_path / "names.csv", rows, ("name", "identity", "split"))
    with pytest.warns(LeftOut, match=r"1 \(repeated\), 2 \(of two identities\)"):
        part = load_dataset("table", "all", root=file, column="name")
    assert part.strings == ["acme inc", "acme co"]
    alike = [("x" * 62 + ending, customer) for ending, customer in (("a", "1"), ("b", "2"), ("", "3"))]
    long = [*alike, ("y" * 62 + "a", "4"), ("y" * 62 + "b", "4"), *((f"name {i}", f"{i // 2}") for i in range(20))]
    file = write(tmp_path / "long.csv", long, ("name", "identity"))
    with pytest.warns(LeftOut, match=r"1 \(repeated\), 3 \(of two identities by their first 62 characters\)"):
        part = load_dataset("table", "all", root=file, column="name")
    assert [name[:2] for name in part.strings].count("yy") == 1
    assert not any(name.startswith("xx") for name in part.strings)


def test_shared_strings_are_kept_to_search_among_and_the_split_stays(tmp_path):
    rows = [(f"name {i}", f"{i // 2}") for i in range(60)]
    rows += [(f"shared {i}", f"{identity}") for i in range(20) for identity in (i, i + 1, 40 + i)]
    file = write(tmp_path / "names.csv", rows, ("name", "identity"))
    for split in ("train", "validation", "test", "all"):
        with pytest.warns(LeftOut, match=r"60 \(of two identities\); of two identities is data row 61, 62, 63 and 57"):
            without = load_dataset("table", split, root=file, column="name")
        kept = load_dataset("table", split, root=file, column="name", keep_shared=True)
        chosen = {(name, identity) for name, identity in rows if split == "all" or identity in without.class_names}
        assert {
            (name, kept.class_names[label]) for name, label in zip(kept.strings, kept.labels, strict=True)
        } == chosen
        assert set(without.strings) == {name for name, _ in chosen if name.startswith("name")}


def test_an_identity_whose_strings_are_all_shared_stays_in_the_split_of_the_table(tmp_path):
    parts = ("train", "validation", "test")
    rows = [(f"name {i}", f"{i // 2}", parts[i // 2 % 3]) for i in range(60)]
    rows += [("acme", "0", "train"), ("acme", "only", "validation")]
    file = write(tmp_path / "names.csv", rows, ("name", "identity", "split"))
    kept = load_dataset("table", "validation", root=file, column="name", keep_shared=True)
    found = {(name, kept.class_names[label]) for name, label in zip(kept.strings, kept.labels, strict=True)}
    assert found == {(name, identity) for name, identity, part in rows if part == "validation"}


def test_rows_without_a_value_are_told_together_or_left_out(tmp_path):
    rows = [(f"name {i}", f"{i // 2}") for i in range(24)] + [("", "1"), ("nobody", ""), ("", ""), ("  ", "3")]
    for ending in ("csv", "parquet"):
        file = tmp_path / f"names.{ending}"
        table = pd.DataFrame(rows, columns=["name", "identity"])
        table.to_csv(file, index=False) if ending == "csv" else table.replace("", None).to_parquet(file)
        with pytest.raises(
            ValueError, match="no name in data row 25, 27, 28, and no identity in data row 26, 27; fill"
        ):
            load_dataset("table", "all", root=file, column="name")
        with pytest.warns(LeftOut, match=r"Left out of 28 strings: 4 \(empty\)"):
            part = load_dataset("table", "all", root=file, column="name", on_error="skip")
        assert part.strings == [name for name, _ in sorted(rows[:24], key=lambda row: (row[1], row[0]))]
    with pytest.raises(ValueError, match="on_error is 'drop'"):
        load_dataset("table", "all", root=file, column="name", on_error="drop")


def test_an_empty_string_is_refused():
    with pytest.raises(ValueError, match=r"strings\[1\] is empty"):
        TextSet(["a", ""], torch.tensor([0, 1]), ["a", "b"])


def test_what_stands_between_the_names_is_told_whatever_the_rows_hold(tmp_path):
    (tmp_path / "semi.csv").write_text("identity;name\n1;Acme, Inc\n2;Smith, Jones, Co\n")
    with pytest.raises(ValueError, match="has ';' between its names"):
        load_dataset("table", "all", root=tmp_path / "semi.csv", column="name")


@pytest.mark.parametrize(("wrong", "message"), [("", "no split in data row 7"), ("val", "split 'val' in data row 7")])
def test_a_wrong_split_of_a_table_of_names_is_told_with_its_row(tmp_path, wrong, message):
    rows = [(f"name {i}", f"{i // 2}", wrong if i == 6 else "train") for i in range(24)]
    file = write(tmp_path / "names.csv", rows, ("name", "identity", "split"))
    with pytest.raises(ValueError, match=message):
        load_dataset("table", "train", root=file, column="name")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"column": "title"}, r"missing: title"),
        ({"identity": "nobody"}, r"missing: nobody"),
        ({"drop": 2}, r"drop is 2"),
        ({"size": 32}, r"has no option size"),
    ],
)
def test_what_is_wrong_with_a_table_of_names_is_said(table, change, message):
    with pytest.raises(ValueError, match=message):
        load_dataset("table", "train", **{"root": table, "column": "name", "identity": "customer"} | change)


def test_the_identity_minus_one_is_junk_in_names_as_in_images(tmp_path):
    rows = [(f"name {i}", "-1" if i < 4 else f"{i // 2}") for i in range(24)]
    file = write(tmp_path / "names.csv", rows, ("name", "identity"))
    with pytest.warns(LeftOut, match=r"Left out of 24 strings: 4 \(junk, identity -1\)"):
        part = load_dataset("table", "all", root=file, column="name")
    assert "-1" not in part.class_names
    assert len(part) == 20


def test_a_split_that_a_table_has_not_is_said_with_those_that_it_has(tmp_path):
    rows = [(f"name {i}", f"{i // 2}", "validation" if i < 4 else "train") for i in range(24)]
    file = write(tmp_path / "names.csv", rows, ("name", "identity", "split"))
    with pytest.raises(ValueError, match=r"no strings of the split 'test'; it has train, validation.*--set test=false"):
        load_dataset("table", "test", root=file, column="name")


def test_a_table_of_names_has_no_queries(tmp_path):
    rows = [("acme", "1", "query"), ("acme inc", "1", "gallery")]
    file = write(tmp_path / "names.csv", rows, ("name", "identity", "split"))
    with pytest.raises(ValueError, match="has the split 'query' in data row 1; allowed are train, validation, test"):
        load_dataset("table", "test", root=file, column="name")


def test_a_copy_of_a_table_is_the_same_content(table, tmp_path):
    copy = tmp_path / "copy.csv"
    copy.write_bytes(table.read_bytes())
    keys = [content_key("table", {"root": str(file), "column": "name"}) for file in (table, copy)]
    assert keys[0] == keys[1] != content_key("table", {"root": str(table), "column": "customer"})


def run(names, steps, checkpoint=None):
    torch.manual_seed(0)
    bag = BagOfNegatives(names.labels, dim=8, batch_size=8, per_class=2)
    encoder = make_encoder("ngrams", dim=8)
    list(
        fit(
            encoder,
            names,
            bag,
            make_loss("batch-hard"),
            steps=steps,
            checkpoint=checkpoint,
            validation=names,
            evaluate_every=2,
        )
    )
    return encoder.state_dict()


def test_a_sparse_run_resumes_bit_for_bit(table, tmp_path):
    names = load_dataset("table", "train", root=table, column="name", identity="customer", typos=0.2)
    whole = run(names, 8)
    run(names, 4, tmp_path / "checkpoint.pt")
    resumed = run(names, 8, tmp_path / "checkpoint.pt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_only_rows_that_took_part_move(names):
    encoder = make_encoder("ngrams", dim=8)
    before = encoder[0].weight.detach().clone()
    optimizer = make_optimizer(encoder, make_loss("batch-hard"), 1e-3, None)
    assert isinstance(optimizer, AdamOfBothKinds)
    grams, labels = names.batch([0, 1, 3, 4])
    make_loss("batch-hard")(encoder(grams), labels, None)[0].backward()
    optimizer.step()
    moved = (encoder[0].weight != before).any(dim=1).nonzero().flatten().tolist()
    assert set(moved) <= set(grams.flatten().tolist()) - {0}
    assert len(moved) > 10


def test_both_kinds_of_adam_are_one_optimiser_to_those_who_use_it(names):
    encoder = make_encoder("ngrams", dim=8)
    optimizer, calls, after = make_optimizer(encoder, make_loss("batch-hard"), 1e-3, None), [], []
    grams, labels = names.batch([0, 1, 3, 4])

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        value, _ = make_loss("batch-hard")(encoder(grams), labels, None)
        value.backward()
        return value

    optimizer.register_step_post_hook(lambda *_: after.append(1))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    assert torch.is_tensor(optimizer.step(closure))
    assert (len(calls), len(after)) == (1, 1)
    scheduler.step()
    assert {group["lr"] for group in optimizer.param_groups} == {5e-4}
    copies = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    for other in copies:
        assert len(other.param_groups) == len(optimizer.param_groups)
        other.step()
    optimizer.step(closure)
    assert len(calls) == 2


def test_a_state_of_another_optimiser_changes_nothing():
    encoder = make_encoder("ngrams", dim=8)
    optimizer = make_optimizer(encoder, make_loss("batch-hard"), 1e-3, None)
    state = optimizer.state_dict()
    broken = {"dense": state["dense"] | {"param_groups": []}, "sparse": state["sparse"]}
    changed = {"dense": state["dense"], "sparse": state["sparse"] | {"param_groups": []}}
    for wrong in (broken, changed, {"dense": state["dense"]}):
        with pytest.raises((ValueError, KeyError)):
            optimizer.load_state_dict(wrong)
        assert str(optimizer.state_dict()) == str(state)


def test_an_encoder_of_strings_is_saved_and_refuses_images(tmp_path, names):
    encoder = make_encoder("ngrams", dim=8).eval()
    save_encoder(tmp_path / "encoder.pt", encoder, images={"column": "name"}, name="ngrams", dim=8, in_channels=1)
    loaded, options = load_encoder(tmp_path / "encoder.pt")
    grams, _ = names.batch([0, 1])
    assert torch.equal(loaded(grams), encoder(grams))
    assert options == {"column": "name"}


def test_the_explorer_shows_strings_as_it_shows_images(table, folders):
    options = {"root": str(table), "column": "name", "identity": "customer"}
    config = Config(
        dataset="table", dataset_options=options, miner="two-stage-bag", dim=8, batch_size=8, per_class=2, steps=6,
        test=False,
    )  # fmt: skip
    experiment = Experiment(config)
    assert config.encoder == "ngrams"
    story = Story(experiment)
    for step in experiment:
        if step.step in (1, 6):
            story.remember(step.step)
    view = look(story, 3)
    assert view.code
    figure = draw_view(story, view)
    assert any(ax.get_images() for ax in figure.axes)
    explorer = Explorer(story, 3)
    explorer.show(0)
    assert explorer.view.anchor == 0


def test_a_string_knows_its_row_of_the_table(table):
    data = load_dataset("table", "all", root=table, column="name", identity="customer")
    rows = pd.read_csv(table)
    assert rows["name"].iloc[data.attributes["row"] - 1].tolist() == data.strings
