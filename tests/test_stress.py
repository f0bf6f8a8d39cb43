"""Loops that misbehave and data that is not nice: the table stays right, draws end, staleness is told."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from queue import Queue
from threading import Thread

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bonlib import BagOfNegatives
from bonlib.core import permutation
from bonlib.core.paths import write_atomically
from bonlib.core.table import BucketTable

DIM = 8
FORMS = {"set": 24, "triplet": 24, "pair": 24}


def embeddings_of(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=25)
@given(order=st.lists(st.integers(0, 11), max_size=20))
def test_late_repeated_and_missing_updates_keep_the_table_right_and_ages_true(form, order):
    labels = np.arange(120) // 5
    bag = BagOfNegatives.as_published(labels, DIM, form=form, batch_size=24, steps=12, seed=1)
    batches, embeddings = list(bag), embeddings_of(120)
    codes, corrected = np.full(120, -1), np.full(120, -1)
    for now, i in enumerate(order, start=1):  # any of the batches, in any order, any number of times
        bag.update(batches[i], embeddings[batches[i]])
        codes[batches[i]] = bag.hasher.encode(embeddings[batches[i]]).numpy()
        corrected[batches[i]] = now
    assert (bag.table.codes(np.arange(120)) == codes).all()
    assert bag.table.sizes().tolist() == np.bincount(codes[codes >= 0], minlength=2**bag.bits).tolist()
    stats = bag.stats()
    assert stats["batches_missed"] == max(12 - len(order), 0)
    ages = len(order) - corrected[corrected >= 0]
    if order:
        assert stats["age_mean"] == pytest.approx(ages.mean())
        assert stats["age_max"] == ages.max()
    else:
        assert np.isnan(stats["age_mean"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "labels",
    [
        np.r_[np.zeros(50_000, dtype=int), np.arange(1, 9)],  # one giant class, and classes of one sample
        np.arange(300),  # nothing but classes of one sample
        np.random.default_rng(0).integers(0, 40, 400),  # labels that say nothing
    ],
    ids=["giant", "singletons", "noise"],
)
def test_draws_end_on_labels_that_are_not_nice(form, labels):
    bag = BagOfNegatives(labels, DIM, form=form, batch_size=24, steps=60, bits=3, seed=0)
    for indices in bag:
        of = labels[indices]
        if form == "triplet":
            assert (of[:8] != of[16:]).all()
        if form == "set":
            assert len(set(of)) == 6
        bag.update(indices, embeddings_of(24, seed=indices[0]))


@pytest.mark.parametrize("form", FORMS)
def test_duplicates_that_share_one_code_leave_the_batches_what_they_should_be(form):
    labels = np.arange(400) // 2
    bag = BagOfNegatives.as_published(labels, DIM, form=form, batch_size=24, steps=80, seed=0)
    for indices in bag:
        bag.update(indices, torch.ones(24, DIM))
    assert bag.stats()["bucket_max"] == bag.table.filled  # all alike, all in one bucket
    assert bag.stats()["entropy_bits"] == 0


def test_a_bucket_of_one_giant_class_is_not_searched_for_the_few_others():
    labels = np.r_[np.zeros(200_000, dtype=int), 1, 1]
    bag = BagOfNegatives.as_published(labels, DIM, form="triplet", batch_size=3, bits=2, seed=0)
    bag.table.move(np.arange(len(labels)), np.zeros(len(labels), dtype=int))
    drawn = bag.draw_negatives(np.zeros(2000, dtype=np.int64))
    assert set(drawn) == {200_000, 200_001}
    # 32 draws find one of 2 in 200,002 almost never; the rest came by the random fall-back, without a search.
    assert bag.stats()["from_random"] > 0.99


def test_a_temporary_file_of_a_killed_writer_is_cleared_away(tmp_path):
    old, fresh = tmp_path / ".run.bonlib-123-0a1b.pt", tmp_path / ".run.bonlib-456-0a1b.pt"
    foreign = [tmp_path / name for name in (".run.best.pt", ".run.1.pt", ".run.pt", "run.bonlib.pt")]
    for left in (old, fresh, *foreign):
        left.write_text("half")
        if left != fresh:
            os.utime(left, (time.time() - 7200,) * 2)
    write_atomically(tmp_path / "run.pt", lambda temporary: temporary.write_text("whole"))
    assert {path.name for path in tmp_path.iterdir()} == {fresh.name, "run.pt", *(path.name for path in foreign)}


@pytest.mark.slow
def test_ten_million_operations_against_a_model():
    rng = np.random.default_rng(0)
    table, model, done = BucketTable(50_000, 9), np.full(50_000, -1), 0
    while done < 10_000_000:
        size, centre = int(rng.integers(1, 5000)), rng.integers(0, 512)
        ids = rng.integers(0, 50_000, size)
        codes = rng.normal(centre, rng.choice([2, 40, 200]), size).astype(int) % 512  # now crowded, now spread
        table.move(ids, codes)
        model[ids] = codes  # of an id that stands twice the last one counts
        done += size
        if rng.random() < 0.02:
            assert (table.codes(np.arange(50_000)) == model).all()
            members = np.concatenate([table.bucket(code) for code in range(512)])
            assert sorted(members) == np.flatnonzero(model >= 0).tolist()
            assert (model[members] == np.repeat(np.arange(512), table.sizes())).all()
            assert table.nbytes < 50_000 * 20
        if rng.random() < 0.01:
            loaded = BucketTable(50_000, 9)
            loaded.load_state_dict(table.state_dict())
            table = loaded


def test_machine_code_of_an_edited_file_is_not_kept_by_those_that_have_it_compiled_in(tmp_path):
    """Streams (kernels.py) have the permutation (permutation.py) compiled into them, and are kept on the disk."""
    core = Path(permutation.__file__).parent
    shutil.copytree(core.parent, tmp_path / "bonlib", ignore=shutil.ignore_patterns("__pycache__"))
    told = (
        "import numpy as np; from bonlib.core.permutation import permuted; from bonlib.core.kernels import *; "
        "streams = new_streams(); drawn = next_anchors(6, 1000, streams, np.random.default_rng(0)).tolist(); "
        "print(drawn == [int(permuted(i, 1000, streams[0, 1])) for i in range(6)], drawn)"
    )
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path),
        "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    results = []
    for rounds in (4, 6):
        edited = tmp_path / "bonlib" / "core" / "permutation.py"
        edited.write_text(edited.read_text().replace("_ROUNDS = 4", f"_ROUNDS = {rounds}"))
        ran = subprocess.run(
            [sys.executable, "-c", told], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        results.append(ran.stdout)
    assert [result.split()[0] for result in results] == ["True", "True"]
    assert results[0] != results[1]


@pytest.mark.parametrize("make", [BagOfNegatives, BagOfNegatives.as_published])
def test_one_thread_draws_another_updates_a_third_takes_states(make):
    labels = np.arange(3000) // 4
    bag, embeddings, batches, states = make(labels, DIM, batch_size=24, steps=400), embeddings_of(3000), Queue(4), []

    def draw():
        for indices in bag:
            batches.put(indices)
        batches.put(None)

    def take():
        for _ in range(40):
            states.append(bag.state_dict())

    threads = [Thread(target=draw), Thread(target=take)]
    for thread in threads:
        thread.start()
    seen = 0
    while (indices := batches.get()) is not None:
        bag.update(indices, embeddings[indices])
        seen += 1
    for thread in threads:
        thread.join()
    assert seen == 400
    for state in states:  # each is of one moment
        make(labels, DIM, batch_size=24, steps=400).load_state_dict(state)
    codes = bag.table.codes(np.arange(bag.num_entries))
    assert bag.table.sizes().tolist() == np.bincount(codes[codes >= 0], minlength=2**bag.bits).tolist()


def test_a_copy_of_a_bag_has_a_lock_of_its_own_and_draws_alike():
    bag = BagOfNegatives(np.arange(48) // 4, DIM, batch_size=24)
    bag.update(np.arange(48), embeddings_of(48))
    for other in (copy.deepcopy(bag), pickle.loads(pickle.dumps(bag))):
        assert other._lock is not bag._lock
        other.update(np.arange(48), embeddings_of(48, 1))
    again = copy.deepcopy(bag)
    assert list(again) == list(bag)


@pytest.mark.parametrize(("form", "text"), [("set", "per_class=3 fits half"), ("triplet", "its own positive")])
def test_samples_that_repeat_are_told_of(form, text):
    sizes = [3] * 10 + [9] * 4 if form == "set" else [1] * 10 + [9] * 4
    with pytest.warns(UserWarning, match=f"71% of the classes have fewer than .*{text}"):
        BagOfNegatives(np.repeat(np.arange(14), sizes), DIM, form=form, batch_size=24)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        BagOfNegatives(np.repeat(np.arange(14), sizes[::-1]), DIM, form=form, batch_size=24, per_class=3)
    assert bool(told) == (form == "triplet")


def test_every_identity_is_an_anchor_before_any_is_twice_however_many_samples_it_has():
    sizes = np.array([2000, 500, *[4] * 78])
    labels = np.repeat(np.arange(80), sizes)
    embeddings = embeddings_of(len(labels))
    bag = BagOfNegatives(labels, DIM, batch_size=48, bags=4, steps=20)
    bag.fill(lambda ids: embeddings[ids])
    drawn = [np.unique(labels[indices]) for indices in bag]
    assert set(np.concatenate(drawn)) == set(range(80))
    # That it has four of five samples does not bring it into each batch: an anchor once, else a neighbour.
    assert np.concatenate(drawn).tolist().count(0) < 15


def test_a_state_of_a_longer_pass_is_followed_by_a_whole_one():
    labels = np.arange(48) // 4
    first, second = (BagOfNegatives(labels, DIM, batch_size=24, steps=steps) for steps in (10, 5))
    for _ in zip(range(8), first, strict=False):
        pass
    second.load_state_dict(first.state_dict())
    third = BagOfNegatives(labels, DIM, batch_size=24, steps=5)
    third.load_state_dict(second.state_dict())
    assert [len(list(bag)) for bag in (second, third)] == [5, 5]


def test_a_bag_of_very_many_samples_that_is_told_nothing_says_so_long_before_a_pass_is_over():
    bag = BagOfNegatives(np.arange(48_000) // 4, DIM, batch_size=24)
    with pytest.warns(UserWarning, match="264 batches were drawn and the bag was told nothing") as told:
        list(zip(range(264), bag, strict=False))
    assert told[0].filename == __file__  # of the loop that forgot it


def test_a_bag_that_is_told_nothing_says_so_after_a_pass():
    bag = BagOfNegatives(np.arange(48) // 4, DIM, batch_size=24, steps=200)
    with pytest.warns(UserWarning, match="told nothing"):
        list(bag)
    told = BagOfNegatives(np.arange(48) // 4, DIM, batch_size=24, steps=200)
    for indices in told:  # warnings are errors here
        told.update(indices, embeddings_of(24))
