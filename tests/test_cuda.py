"""On a GPU, where there is one: bags draw as on the CPU, training resumes, and NCCL keeps processes equal."""

import os

import numpy as np
import pytest
import test_distributed as together
import test_training as small
import torch
import torch.distributed as dist
from torch import nn

from bonlib import BagOfNegatives
from bonlib.core.hashes import list_hashers, make_hasher
from bonlib.miners import make_miner
from bonlib.training.loop import fit
from bonlib.training.losses import make_loss

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

LABELS = np.random.default_rng(0).integers(0, 200, 2000)
MAKERS = {
    "as published": BagOfNegatives.as_published,
    "two stages": BagOfNegatives,
    "steered": lambda *a, **o: BagOfNegatives(*a, **o, pool=128, target=0.9),
}


def unit_rows(indices, step=0):
    """Embeddings of samples: around a centre of their identity, drifting with the steps."""
    centres = np.random.default_rng(5).normal(size=(200, 16))
    noise = np.random.default_rng(6).normal(size=(2000, 16))
    rows = centres[LABELS[indices]] + noise[indices] * (0.5 + step / 200)
    return nn.functional.normalize(torch.from_numpy(rows).float(), dim=1)


def learned(bag):
    """All that a bag has from embeddings, bit for bit."""
    state = bag.state_dict()
    return together.digest({part: state[part] for part in ("table", "hasher", "means", "corrected", "hardness")})


@pytest.mark.parametrize("form", ["set", "triplet", "pair"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_bag_learns_from_the_gpu_what_it_learns_from_the_cpu(name, form):
    size = {"set": 64, "triplet": 63, "pair": 64}[form]
    here, there = (MAKERS[name](LABELS, 16, form=form, batch_size=size, seed=1, steps=200) for _ in range(2))
    for step, indices in enumerate(here):  # the same batches for both: what they make of them is compared
        rows = unit_rows(np.asarray(indices), step)
        here.update(indices, rows)
        there.update(indices, rows.cuda())
    assert (here.codes(np.arange(2000)) >= 0).mean() > 0.9
    assert learned(here) == learned(there)


@pytest.mark.parametrize("name", MAKERS)
def test_a_bag_is_filled_from_the_gpu(name):
    here, there = (MAKERS[name](LABELS, 16, batch_size=64, seed=1) for _ in range(2))
    here.fill(unit_rows, at_once=300)
    there.fill(lambda ids: unit_rows(ids).cuda(), at_once=300)
    assert (here.codes(np.arange(2000)) >= 0).all()
    assert learned(here) == learned(there)


def test_half_precision_of_the_gpu_is_taken_under_autocast():
    bag, net = BagOfNegatives(LABELS, 16, batch_size=64, seed=1), nn.Linear(16, 16).cuda()
    indices = next(iter(bag))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        rows = net(unit_rows(np.asarray(indices)).cuda())
        assert rows.dtype == torch.bfloat16
        bag.update(indices, rows)
    assert (bag.codes(indices) >= 0).all()


@pytest.mark.parametrize("name", sorted(set(list_hashers()) - {"shuffled"}))  # whose codes are by chance
def test_a_hash_is_the_same_on_the_cpu_whatever_it_is_given(name):
    here, there = (make_hasher(name, 16, 4) for _ in range(2))
    batches = [unit_rows((np.arange(32) + 32 * i) % 2000) for i in range(60)]  # some learn every fifty batches
    for rows in batches:
        first, second = here.partial_fit(rows), there.partial_fit(rows.cuda())
        assert first == second or np.isnan([first, second]).all()
    codes = there.encode(batches[0].cuda())
    assert codes.device.type == "cpu"
    assert {values.device.type for values in there.tensors.values()} == {"cpu"}
    assert together.digest(here.state_dict()) == together.digest(there.state_dict())
    old = there.state_dict()  # as it was saved when hashes followed the embeddings
    old["tensors"] = {name: values.cuda() for name, values in old["tensors"].items()}
    there.load_state_dict(old)
    assert torch.equal(there.encode(batches[0]), codes)


@pytest.mark.parametrize("miner", ["smart", "class-based", "graph", "subspaces", "exact"])
def test_opponents_draw_the_same_from_the_gpu(miner):
    looks = {} if miner == "class-based" else {"every": 5}
    here, there = (make_miner(miner, LABELS, 16, batch_size=64, seed=1, **looks) for _ in range(2))
    for step, (first, second) in enumerate(zip(here, there, strict=True)):
        assert list(first) == list(second)
        rows = unit_rows(np.asarray(first), step)
        here.update(first, rows)
        there.update(second, rows.cuda())
        if here.due:
            here.refresh(unit_rows)
            there.refresh(lambda ids: unit_rows(ids).cuda())
        if step == 20:
            break


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("miner", ["bag", "two-stage-bag", "random", "class-based", "exact"])
def test_it_trains(precision, miner):
    data, looks = small.toy(0), {"every": 15, "warm_up": 4} if miner == "exact" else {}
    sampler = make_miner(miner, data.labels, 8, batch_size=12, seed=1, **looks)
    torch.manual_seed(5)
    steps = list(
        fit(small.encoder(), data.to("cuda"), sampler, make_loss("batch-hard"), steps=120, lr=5e-3, device="cuda",
            precision=precision, validation=small.toy(1), evaluate_every=120)
    )  # fmt: skip
    assert (steps[-1].metrics or {})["map@r"] > 0.5


def test_it_goes_on_from_a_checkpoint_there_and_here(tmp_path):
    options = {"steps": 40, "checkpoint": tmp_path / "run.pt", "checkpoint_every": 20}
    for step in small.begin(net=small.encoder(0.0).cuda(), device="cuda", **options):
        if step.step == 20:
            break
    for device in ("cuda", "cpu"):
        kept = (tmp_path / "run.pt").read_bytes()
        steps = list(small.begin(net=small.encoder(0.0), device=device, **options))
        assert [steps[0].step, steps[-1].step] == [21, 40]
        (tmp_path / "run.pt").write_bytes(kept)


def nccl_worker(rank, size, folder):
    """Two processes on one GPU, which NCCL takes for two machines."""
    os.environ |= {"NCCL_HOSTID": str(rank), "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    together.fit_and_tell(rank, folder, 6, "cuda")


def test_nccl_keeps_weights_tables_and_measures_equal(tmp_path):
    together.spawn(nccl_worker, 2, tmp_path)
    together.assert_two_are_one(tmp_path, 6)
