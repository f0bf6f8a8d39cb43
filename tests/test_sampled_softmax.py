"""A softmax over few classes: against CosFace over all, the sum that it stands for, and what was near by search."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import CosFaceLoss

from bonlib.core.means import class_means
from bonlib.core.miner import RandomSampling
from bonlib.datasets import load_dataset
from bonlib.training.encoders import make_encoder
from bonlib.training.loop import fit
from bonlib.training.losses import has_centres, make_loss, set_centres
from bonlib.training.optimizers import AdamOfBothKinds, make_optimizer
from bonlib.training.sampled_softmax import SampledSoftmax

CLASSES, DIM = 400, 16


def batch(seed=0, size=24):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(size, DIM, generator=generator))
    return rows.requires_grad_(), torch.randint(0, CLASSES, (size,), generator=generator)


@pytest.mark.parametrize("near", [0, 5])
def test_over_all_classes_it_is_cosface(near):
    rows, labels = batch()
    loss = SampledSoftmax(CLASSES, DIM, share=1, near=near, margin=0.2, scale=10)
    theirs = CosFaceLoss(CLASSES, DIM, margin=0.2, scale=10)
    theirs.W.data = loss.centres.weight.detach().T.clone()
    value, expected = loss(rows, labels), theirs(rows, labels)
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, rows)
    (other,) = torch.autograd.grad(expected, rows)
    # The library normalises no more than we do, and both take embeddings of length one.
    assert torch.allclose(gradient, other, atol=1e-5)


@pytest.mark.parametrize("near", [0, 6])
def test_the_classes_left_out_are_stood_for_in_the_sum(near):
    rows, labels = batch(1, size=4)
    loss = SampledSoftmax(CLASSES, DIM, share=0.2, near=near, margin=0.0, scale=4)
    cosines = rows.detach() @ torch.nn.functional.normalize(loss.centres.weight.detach()).T
    whole = (4 * cosines).exp().sum(dim=1)
    own = 4 * cosines.gather(1, labels[:, None])[:, 0]
    sums = []
    for _ in range(400):
        each = [loss(rows.detach()[i : i + 1], labels[i : i + 1]).detach() for i in range(4)]
        sums.append((torch.stack(each) + own).exp())
    mean, error = torch.stack(sums).mean(dim=0), torch.stack(sums).std(dim=0) / 20
    assert ((mean - whole).abs() < 4 * error).all()


def test_it_keeps_its_digits_under_autocast():
    embeddings, labels = torch.randn(24, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24) // 4
    loss = SampledSoftmax(6, 8, share=1, scale=64)
    expected = loss(embeddings, labels)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(embeddings, labels)
    assert (value.dtype, value.item()) == (torch.float32, expected.item())


def test_the_nearest_centres_take_part_and_follow_the_optimiser():
    rows, labels = batch(2)
    loss = SampledSoftmax(CLASSES, DIM, share=0.5, near=3, seed=1)
    loss.bag = type(loss.bag)(np.arange(CLASSES), DIM, form="triplet", batch_size=3, momentum=0.0, bits=1, pool=400)
    loss.bag.update(np.arange(CLASSES), torch.nn.functional.normalize(loss.centres.weight.detach()))
    optimizer = torch.optim.SparseAdam(loss.parameters(), lr=0.5)
    for _ in range(3):
        centres = torch.nn.functional.normalize(loss.centres.weight.detach())
        distances = torch.cdist(rows.detach(), centres)
        distances[torch.arange(len(rows)), labels] = torch.inf
        expected = set(labels.tolist()) | set(distances.topk(3, largest=False).indices.flatten().tolist())
        certain, own = loss._certain(rows.detach(), labels.numpy())
        assert len(expected - set(certain.tolist())) <= 0.1 * len(expected)  # sketches are rounded to eight bits
        assert (loss.bag.codes(np.arange(CLASSES)) == loss.bag.hasher.encode(centres).numpy()).all()
        assert (certain[own] == labels.numpy()).all()
        optimizer.zero_grad()
        loss(rows, labels).backward()
        moved = loss.centres.weight.grad.coalesce().indices()[0]
        assert len(moved) == 200
        assert set(certain.tolist()) <= set(moved.tolist())
        optimizer.step()


@pytest.mark.parametrize("near", [0, 4])
def test_a_saved_state_goes_on_with_the_same_numbers(near):
    first, second = (SampledSoftmax(CLASSES, DIM, share=0.1, near=near, seed=3) for _ in range(2))
    optimizers = [torch.optim.SparseAdam(loss.parameters(), lr=0.1) for loss in (first, second)]

    def step(loss, optimizer, seed):
        optimizer.zero_grad()
        value = loss(*batch(seed))
        value.backward()
        optimizer.step()
        return float(value.detach())

    for seed in range(3):
        step(first, optimizers[0], seed)
    second.load_state_dict(deepcopy(first.state_dict()))
    optimizers[1].load_state_dict(deepcopy(optimizers[0].state_dict()))
    assert [step(first, optimizers[0], s) for s in (5, 6)] == [step(second, optimizers[1], s) for s in (5, 6)]
    assert near or not len(first._moved)  # without buckets nothing is kept for them


def test_fit_gives_centres_their_sparse_optimiser():
    loss = make_loss("sampled-softmax", dim=DIM, num_classes=CLASSES, share=0.05, seed=5)
    optimizer = make_optimizer(torch.nn.Linear(DIM, DIM), loss, 0.01, 0.1)
    assert isinstance(optimizer, AdamOfBothKinds)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.1]
    rows, labels = batch(6)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        value, _ = loss(rows, labels)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < values[0] / 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"share": 0}, "share is 0"),
        ({"share": 1.5}, "share is 1.5"),
        ({"near": -1}, "near is -1"),
        ({"scale": -1}, "scale"),
    ],
)
def test_what_cannot_be_is_refused(options, text):
    with pytest.raises(ValueError, match=text):
        SampledSoftmax(CLASSES, DIM, **options)


def test_two_batches_before_a_step_leave_no_code_stale():
    loss = SampledSoftmax(CLASSES, DIM, share=0.1, near=4)
    optimizer = torch.optim.SparseAdam(loss.parameters(), lr=0.5)
    for seed in (0, 1):
        loss(*batch(seed)).backward()
    optimizer.step()
    loss(*batch(2))
    centres = torch.nn.functional.normalize(loss.centres.weight.detach())
    assert (loss.bag.codes(np.arange(CLASSES)) == loss.bag.hasher.encode(centres).numpy()).all()


def test_some_random_classes_are_there_at_any_share():
    loss = SampledSoftmax(CLASSES, DIM, share=0.001, near=0)
    rows, labels = batch(0, size=8)
    loss(rows, torch.zeros_like(labels)).backward()
    assert len(loss.centres.weight.grad.coalesce().indices()[0]) == 2
    assert rows.grad.abs().sum() > 0


def test_a_state_of_another_loss_is_refused():
    state = SampledSoftmax(CLASSES, DIM, share=0.1).state_dict()
    other = SampledSoftmax(CLASSES, DIM, share=0.2)
    with pytest.raises(ValueError, match=r"share=0.1.*share=0.2"):
        other.load_state_dict(state)
    state = SampledSoftmax(CLASSES, DIM, near=4).get_extra_state()
    del state["bag"]
    with pytest.raises(ValueError, match="lacks bag"):
        SampledSoftmax(CLASSES, DIM, near=4).set_extra_state(state)


def test_centres_of_very_many_classes_are_hashed_as_they_are():
    loss = SampledSoftmax(9000, DIM, near=4)
    codes = loss.bag.hasher.encode(torch.nn.functional.normalize(loss.centres.weight.detach()))
    assert loss.bag.codes(np.arange(9000)).tolist() == codes.tolist()


def test_embeddings_that_are_not_finite_give_a_loss_that_is_not():
    rows, labels = batch()
    assert torch.isnan(SampledSoftmax(CLASSES, DIM)(rows * torch.nan, labels))
    assert torch.isfinite(SampledSoftmax(CLASSES, DIM)(rows.half(), labels))


def test_fit_trains_it_and_goes_on_from_a_checkpoint(tmp_path):
    data = load_dataset("glyphs", "validation", draws=1)

    def run(steps, file):
        encoder = make_encoder(dim=DIM, seed=0)
        loss = make_loss("sampled-softmax", dim=DIM, num_classes=data.num_classes, share=0.1)
        miner = RandomSampling(data.labels, DIM, batch_size=16)
        done = [step.loss for step in fit(encoder, data, miner, loss, steps=steps, checkpoint=file)]
        return done, loss.state_dict()

    whole, state = run(6, tmp_path / "whole.pt")
    run(3, tmp_path / "parts.pt")
    rest, resumed = run(6, tmp_path / "parts.pt")
    assert rest == whole[3:]
    assert torch.equal(state["loss.centres.weight"], resumed["loss.centres.weight"])


def test_labels_that_are_no_class_are_refused():
    with pytest.raises(ValueError, match="labels holds values"):
        SampledSoftmax(CLASSES, DIM)(batch()[0], torch.full((24,), CLASSES))


@pytest.mark.parametrize("name", ["cosface", "proxy-anchor", "sampled-softmax"])
def test_centres_begin_where_the_classes_are(name):
    rows, labels = batch(7, size=3 * CLASSES)
    means = class_means(rows.detach(), labels, CLASSES)
    loss = make_loss(name, dim=DIM, num_classes=CLASSES)
    far, _ = loss(rows, labels)
    set_centres(loss, means)
    near, _ = loss(rows, labels)
    assert has_centres(loss)
    assert float(near.detach()) < float(far.detach())
    found = loss.state_dict()[{"cosface": "loss.W", "proxy-anchor": "loss.proxies"}.get(name, "loss.centres.weight")]
    found = torch.nn.functional.normalize(found.T if name == "cosface" else found)
    assert torch.allclose(found, torch.nn.functional.normalize(means), atol=1e-6)


def test_new_centres_are_hashed():
    """One that is given its centres draws the near ones that one made with them would."""
    rows, labels = batch(8)
    first, second = (SampledSoftmax(CLASSES, DIM, share=0.02, near=5, seed=3) for _ in range(2))
    first(rows, labels).backward()  # centres of an old life are not corrected in the new one
    first.zero_grad()
    weights = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(9))
    for loss in (first, second):
        loss.set_centres(weights)
    assert [certain.tolist() for certain in first._certain(rows.detach(), labels.numpy())] == [
        certain.tolist() for certain in second._certain(rows.detach(), labels.numpy())
    ]
    assert first.bag.table.codes(np.arange(CLASSES)).tolist() == second.bag.table.codes(np.arange(CLASSES)).tolist()


@pytest.mark.parametrize("name", ["cosface", "sampled-softmax", "batch-hard"])
def test_centres_that_do_not_fit_are_refused(name):
    loss = make_loss(name, **({} if name == "batch-hard" else {"dim": DIM, "num_classes": CLASSES}))
    before = deepcopy(loss.state_dict())
    with pytest.raises(ValueError, match="no class centres" if name == "batch-hard" else f"{CLASSES}"):
        set_centres(loss, torch.zeros(CLASSES - 1, DIM))
    after = loss.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items() if isinstance(value, torch.Tensor))
