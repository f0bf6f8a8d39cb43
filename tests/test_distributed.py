"""Several processes: the same table, the same weights, disjoint shares of one batch, no waiting for the dead."""

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import warnings
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from bonlib import BagOfNegatives
from bonlib.core.distributed import LostRank, RankMiner, share_of
from bonlib.datasets.images import ImageSet
from bonlib.miners import make_miner
from bonlib.study import experiment
from bonlib.study.config import make_config
from bonlib.training.encoders import make_encoder
from bonlib.training.loop import fit
from bonlib.training.losses import make_loss

SMALL = {"batch_size": 32, "test": False, "dataset_options": {"draws": 1, "characters": list(range(65, 400))}}
LABELS = np.random.default_rng(0).integers(0, 60, 900)


def make_bag(form="set", batch_size=48):
    return BagOfNegatives(LABELS, 8, form=form, batch_size=batch_size, per_class=4, bits=5, steps=30, seed=1)


def embeddings_of(indices, step):
    """What an encoder that drifts makes of samples: of the sample and the step alone."""
    centres = np.random.default_rng(5).normal(size=(60, 8))
    noise = np.random.default_rng(6).normal(size=(900, 8))
    return torch.from_numpy(centres[LABELS[indices]] + noise[indices] * (1 + step / 100)).float()


def digest(state):
    """A hash over all that a state holds."""
    total = hashlib.sha256()
    for name, value in sorted(state.items(), key=str):
        total.update(str(name).encode())
        if isinstance(value, dict):
            total.update(digest(value).encode())
        else:
            total.update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode())
    return total.hexdigest()


def train_a_bag(bag, steps):
    step, seen = 0, []
    while step < steps:
        for indices in bag:
            bag.update(indices, embeddings_of(np.asarray(indices), step))
            seen.append(list(indices))
            step += 1
            if step == steps:
                break
    return digest(bag.state_dict()), seen


def join(rank, size, folder, seconds=60):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size, timeout=timedelta(seconds=seconds)
    )


def bag_worker(rank, size, folder, form, steps):
    join(rank, size, folder)
    result, seen = train_a_bag(RankMiner(make_bag(form)), steps)
    (folder / f"{rank}.json").write_text(json.dumps([result, seen]))
    dist.destroy_process_group()


def spawn(worker, size, *arguments, join=True):
    """Run processes forked from one that has imported everything and run nothing: each would take seconds for it."""
    multiprocessing.set_forkserver_preload(["bonlib.study.experiment"])
    return mp.start_processes(worker, (size, *arguments), nprocs=size, join=join, start_method="forkserver")


@pytest.mark.parametrize(("size", "form", "steps"), [(1, "set", 60), (2, "set", 300), (4, "triplet", 60)])
def test_all_processes_hold_the_table_that_one_would(tmp_path, size, form, steps):
    spawn(bag_worker, size, tmp_path, form, steps)
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(size)]
    expected, batches = train_a_bag(make_bag(form), steps)
    assert [result for result, _ in results] == [expected] * size
    for step, batch in enumerate(batches):  # the shares are disjoint and make the batch of one process
        assert sorted(i for _, seen in results for i in seen[step]) == sorted(batch)


def late_worker(rank, size, folder):
    miner = RankMiner(make_bag())
    join(rank, size, folder)  # after the miner was made
    result, seen = train_a_bag(miner, 20)
    (folder / f"{rank}.json").write_text(json.dumps([result, seen, miner.batch_size]))
    dist.destroy_process_group()


def unequal_worker(rank, size, folder, kind):
    join(rank, size, folder)
    bag = BagOfNegatives(LABELS, 8, batch_size=48, bits=5, steps=3, seed=rank if kind == "seed" else 1)
    share = RankMiner(bag)
    if kind == "fill":
        bag.fill(lambda ids: embeddings_of(ids, 90 * rank))
    elif kind != "seed":  # as of two processors: codes and counts are the same, some sketches are not
        fill = share.fill if kind == "fill together" else bag.fill
        fill(lambda ids: embeddings_of(ids, 0) * (1 + 1e-5 * rank), at_once=50)
    try:
        list(share)
        told = "nothing"
    except ValueError as error:
        told = str(error)
    (folder / f"{rank}.txt").write_text(told)
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["seed", "fill", "digits"])
def test_miners_that_differ_between_processes_are_refused_on_all(tmp_path, kind):
    spawn(unequal_worker, 2, tmp_path, kind)
    for rank in range(2):
        assert "processes 1 are not that of process 0" in (tmp_path / f"{rank}.txt").read_text()


def test_a_fill_that_all_call_is_the_same_for_all(tmp_path):
    spawn(unequal_worker, 2, tmp_path, "fill together")
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["nothing"] * 2
    with pytest.raises(ValueError, match="miner is a RandomSampling, which has no table to fill"):
        RankMiner(make_miner("random", LABELS, 8, batch_size=48)).fill(lambda ids: embeddings_of(ids, 0))


def test_processes_that_join_later_share_the_batch(tmp_path):
    spawn(late_worker, 2, tmp_path)
    alone, batches = train_a_bag(make_bag(), 20)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [digest for digest, _, _ in found] == [alone, alone]
    assert sum(size for _, _, size in found) == 48
    for whole, *parts in zip(batches, found[0][1], found[1][1], strict=True):
        assert sorted([*parts[0], *parts[1]]) == sorted(whole)


def parted_worker(rank, size, folder, twice):
    join(rank, size, folder)
    share = RankMiner(make_bag())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step, indices in enumerate(share):
            if not twice or step % size == rank:  # as a loader that accelerate prepared
                share.update(indices, embeddings_of(np.asarray(indices), step))
        told = [str(warning.message) for warning in caught]
    (folder / f"{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


@pytest.mark.parametrize("twice", [False, True])
def test_batches_that_are_parted_twice_are_told(tmp_path, twice):
    spawn(parted_worker, 2, tmp_path, twice)
    for rank in range(2):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert any("parted once more, by accelerator.prepare" in text for text in told) == twice


@pytest.mark.parametrize("form", ["set", "triplet", "pair"])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_are_whole_classes_and_tuples(form, size):
    bag = make_bag(form)
    parts = [share_of(bag, rank, size) for rank in range(size)]
    assert sorted(np.concatenate(parts)) == list(range(48))
    assert max(map(len, parts)) - min(map(len, parts)) <= 4
    batch = np.array(next(iter(bag)))
    for part in parts:
        if form == "set":
            assert (np.unique(LABELS[batch[part]], return_counts=True)[1] == 4).all()
        else:
            blocks = batch[part].reshape({"triplet": 3, "pair": 4}[form], -1)
            assert (LABELS[blocks[0]] == LABELS[blocks[1]]).all()
            assert (LABELS[blocks[0]] != LABELS[blocks[-1]]).all()
    with pytest.raises(ValueError, match="for 99 processes; give a larger batch"):
        share_of(bag, 0, 99)


def test_a_miner_that_several_processes_would_draw_alike_from_says_so(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    with pytest.warns(UserWarning, match=r"All processes get the same batches.*RankMiner"):
        whole = next(iter(make_bag()))
    monkeypatch.setattr("bonlib.core.distributed.of_all_ranks", lambda value: [value, value])
    assert set(next(iter(RankMiner(make_bag())))) < set(whole)  # warnings are errors here


def test_one_process_needs_no_torch_distributed():
    assert train_a_bag(RankMiner(make_bag()), 40) == train_a_bag(make_bag(), 40)


def short_worker(rank, size, folder):
    join(rank, size, folder)
    bag = RankMiner(make_bag())
    for step, indices in enumerate(bag):
        if step == 5 and rank == 1:
            indices = indices[:7]  # as at the end of an epoch
        bag.update(indices, embeddings_of(np.asarray(indices), step))
        if step == 8:
            break
    (folder / f"{rank}.json").write_text(json.dumps([digest(bag.state_dict()), bag.stats()["filled"]]))
    dist.destroy_process_group()


def test_a_shorter_part_is_taken_as_it_is(tmp_path):
    spawn(short_worker, 2, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second


def dying_worker(rank, size, folder):
    join(rank, size, folder, seconds=20)
    bag = RankMiner(make_bag())
    try:
        for step, indices in enumerate(bag):
            if step == 3 and rank == 1:
                os._exit(1)
            bag.update(indices, embeddings_of(np.asarray(indices), step))
    except LostRank as error:
        (folder / "error.txt").write_text(str(error))
        os._exit(0)  # gloo's threads of a group that lost a rank may abort a usual exit


def test_a_rank_that_dies_ends_the_others_with_an_error(tmp_path):
    processes = spawn(dying_worker, 2, tmp_path, join=False).processes
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 1]
    assert "Rank 0 of 2 waited in vain for another one" in (tmp_path / "error.txt").read_text()


def fit_and_tell(rank, folder, steps, device="cpu"):
    """Train, and write down what all processes must have in common; the group is joined before and left here."""
    images = torch.randint(0, 256, (900, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = ImageSet(images, torch.from_numpy(LABELS), [str(i) for i in range(60)]).to(device)
    encoder, bag = make_encoder(dim=8), make_bag()
    done = list(
        fit(encoder, data, bag, make_loss("batch-hard", "set"), steps=steps, device=device, validation=data,
            evaluate_every=steps // 2, checkpoint=folder / "checkpoint.pt")
    )  # fmt: skip
    weights = {name: value.cpu() for name, value in encoder.state_dict().items() if "running" not in name}
    result = [digest(weights), digest(bag.state_dict()), done[-1].metrics, done[-1].images]
    (folder / f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def assert_two_are_one(folder, steps):
    """Both processes hold the same, and their checkpoint loads in one process."""
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first[3] == steps * 48
    alone = make_bag()
    state = torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu")["miner"]
    alone.load_state_dict(state)
    assert digest(alone.state_dict()) == first[1]


def fit_worker(rank, size, folder):
    join(rank, size, folder)
    fit_and_tell(rank, folder, 4)


def test_training_keeps_weights_tables_and_measures_equal(tmp_path):
    spawn(fit_worker, 2, tmp_path)
    assert_two_are_one(tmp_path, 4)


def stopped_worker(rank, size, folder, stop, loss):
    join(rank, size, folder)
    experiment.CHECKPOINT_EVERY = 2
    config = make_config(SMALL | {"steps": 4, "loss": loss})
    # Only rank 0 has a checkpoint where it looks, as on machines with a disk each.
    checkpoint = folder / str(rank) / "run.pt"
    if stop:
        run = iter(experiment.Experiment(config, checkpoint))
        for _ in range(2):
            next(run)
        run.close()
        assert checkpoint.exists() == (rank == 0)
    resumed = experiment.Experiment(config, checkpoint)
    steps = len(list(resumed))
    told = [digest(part.state_dict()) for part in (resumed.encoder, resumed.loss)]
    (folder / f"{rank}.json").write_text(json.dumps([steps, told]))
    dist.destroy_process_group()


def test_processes_go_on_from_the_checkpoint_of_the_first(folders):
    results = []
    for stop in (False, True):
        folder = folders / str(stop)
        for rank in range(2):
            (folder / str(rank)).mkdir(parents=True)
        spawn(stopped_worker, 2, folder, stop, "cross-batch-memory")  # each has a queue of its own
        results.append([json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)])
    straight, resumed = results
    assert [steps for steps, _ in resumed] == [2, 2]
    assert [weights for _, weights in resumed] == [weights for _, weights in straight]


def test_torchrun_trains_and_writes_one_record(folders):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29517", "-m"]
    subprocess.run(
        [*command, "bonlib.study.experiment", json.dumps(SMALL | {"steps": 2}), "two"],
        check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=200,
    )  # fmt: skip
    (record,) = (folders / "results" / "two").glob("*.json")
    content = json.loads(record.read_text())
    assert content["provenance"]["processes"] == 2
    assert content["history"][-1]["images"] == 64


def grow(wrapped):
    """Train, take identities that arrive, and go on, once as it is and once from the saved state."""
    labels, layout = np.sort(LABELS), {"batch_size": 48, "bits": 5, "steps": 10, "seed": 1}
    bag, again = BagOfNegatives(labels[:600], 8, **layout), BagOfNegatives(labels, 8, **layout)
    train_a_bag(wrapped(bag), 10)
    bag.extend(labels[600:], steps=10)
    again.load_state_dict(bag.state_dict())
    return [train_a_bag(wrapped(grown), 10)[0] for grown in (bag, again)]


def growing_worker(rank, size, folder):
    join(rank, size, folder)
    (folder / f"{rank}.json").write_text(json.dumps(grow(RankMiner)))
    dist.destroy_process_group()


def test_identities_that_arrive_are_taken_by_all_processes_and_after_a_stop(tmp_path):
    spawn(growing_worker, 2, tmp_path)
    alone = grow(lambda bag: bag)
    assert alone[0] == alone[1]
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [alone, alone]


def looking_worker(rank, size, folder):
    join(rank, size, folder)
    rows = embeddings_of(np.arange(900), 0).bfloat16()
    miner = make_miner("exact", LABELS, 8, batch_size=48, seed=1)
    RankMiner(miner).refresh(lambda ids: rows[ids])
    (folder / f"{rank}.json").write_text(json.dumps(digest(miner.state_dict())))
    dist.destroy_process_group()


def test_a_look_in_half_precision_is_the_same_for_all(tmp_path):
    spawn(looking_worker, 2, tmp_path)
    alone = make_miner("exact", LABELS, 8, batch_size=48, seed=1)
    alone.refresh(lambda ids: embeddings_of(np.arange(900), 0).bfloat16()[ids])
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [
        digest(alone.state_dict())
    ] * 2
