"""Losses by name: values by hand, forms that go together."""

import numpy as np
import pytest
import torch

from bonlib.bag import BagOfNegatives
from bonlib.training.losses import active_share, list_losses, make_loss

NEEDED = {"dim": 8, "num_classes": 10}
SMOOTH = {
    "soft-triplet",
    "batch-hard-soft",
    "multi-similarity",
    "infonce",
    "cosface",
    "sampled-softmax",
    "proxy-anchor",
}


def batch(form, seed=0):
    labels = torch.arange(10).repeat_interleave(6)
    miner = BagOfNegatives(labels, dim=8, form=form, batch_size=24, bits=2)
    indices = next(iter(miner))
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.nn.functional.normalize(torch.randn(24, 8, generator=generator), dim=1).requires_grad_()
    return embeddings, labels[indices], miner.index_tuple


@pytest.mark.parametrize(
    ("form", "name"), [(form, name) for form in ("set", "triplet", "pair") for name in list_losses(form)]
)
def test_every_loss_of_every_form_gives_a_gradient(form, name):
    torch.manual_seed(0)
    embeddings, labels, tuples = batch(form)
    value, active = make_loss(name, form, **NEEDED)(embeddings, labels, tuples)
    value.backward()
    assert torch.isfinite(value)
    assert embeddings.grad.abs().sum() > 0
    assert 0 <= active <= 1 or (np.isnan(active) and name in SMOOTH)


@pytest.mark.parametrize("name", list_losses("set"))
def test_active_tuples_are_counted_where_the_loss_can_be_zero_alone(name):
    """Far apart, with the samples of each class in one place, a loss with a margin has nothing left to do."""
    embeddings = torch.eye(24)[torch.arange(6).repeat_interleave(4), :8].requires_grad_()
    value, active = make_loss(name, "set", **NEEDED)(embeddings, torch.arange(6).repeat_interleave(4), None)
    assert np.isnan(active) == (name in SMOOTH)
    if name not in SMOOTH and name != "lifted-structure":  # whose positives count by themselves
        assert (float(value.detach()), active) == (0, 0)


def test_triplets_by_hand():
    embeddings, labels, (a, p, n) = batch("triplet")
    embeddings = embeddings.detach()
    near, far = (embeddings[a] - embeddings[p]).norm(dim=1), (embeddings[a] - embeddings[n]).norm(dim=1)
    violations = (near - far + 0.2).relu()
    value, active = make_loss("triplet", "triplet")(embeddings, labels, (a, p, n))
    assert float(value) == pytest.approx(float(violations[violations > 0].mean()))
    assert active == pytest.approx(float((violations > 0).float().mean()))
    soft, _ = make_loss("soft-triplet", "triplet")(embeddings, labels, (a, p, n))
    assert float(soft) == pytest.approx(float(torch.nn.functional.softplus(near - far).mean()))


def test_pairs_by_hand():
    embeddings, labels, (a1, p, a2, n) = batch("pair")
    embeddings = embeddings.detach()
    near, far = (embeddings[a1] - embeddings[p]).norm(dim=1), (embeddings[a2] - embeddings[n]).norm(dim=1)
    margin = 1.3
    pushes = (margin - far).relu()
    value, active = make_loss("contrastive", "pair", margin=margin)(embeddings, labels, (a1, p, a2, n))
    assert float(value) == pytest.approx(float(near.mean() + pushes[pushes > 0].mean()))
    assert active == pytest.approx(float((pushes > 0).float().mean()))


@pytest.mark.parametrize("form", ["set", "pair"])
def test_infonce_is_that_of_a_library(form):
    from pytorch_metric_learning.losses import NTXentLoss

    embeddings, labels, tuples = batch(form)
    value, _ = make_loss("infonce", form, margin=0.2)(embeddings, labels, tuples)
    value.backward()
    gradient, embeddings.grad = embeddings.grad.clone(), None
    expected = NTXentLoss(temperature=0.2)(embeddings, labels)
    expected.backward()
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.allclose(gradient, embeddings.grad, atol=1e-6)
    with pytest.raises(ValueError, match="temperature"):
        make_loss("infonce", margin=0)


def test_infonce_keeps_its_digits_under_autocast():
    generator = torch.Generator().manual_seed(0)
    embeddings, labels = torch.randn(24, 8, generator=generator), torch.arange(24) // 4
    expected, _ = make_loss("infonce", margin=0.05)(embeddings, labels)
    with torch.autocast("cpu", torch.bfloat16):
        value, _ = make_loss("infonce", margin=0.05)(embeddings, labels)
    assert value.dtype == torch.float32
    assert float(value) == float(expected)


def test_batch_hard_by_hand():
    embeddings, labels, _ = batch("set")
    embeddings = embeddings.detach()
    distances = torch.cdist(embeddings, embeddings)
    same = labels[:, None] == labels
    hardest = (distances - 9.0 * ~same).amax(dim=1) - (distances + 9.0 * same).amin(dim=1) + 0.2
    value, active = make_loss("batch-hard")(embeddings, labels, None)
    assert float(value) == pytest.approx(float(hardest[hardest > 0].mean()), rel=1e-4)
    assert active == pytest.approx(float((hardest > 0).float().mean()))


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1.0, 1e30])
def test_active_share_does_not_depend_on_the_scale(scale):
    embeddings = torch.randn(12, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(4).repeat_interleave(3)
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    active = 0
    for i in range(12):
        apart = [float((unit[i] - unit[j]).norm()) for j in range(12)]
        near = max(apart[j] for j in range(12) if labels[j] == labels[i])
        active += near - 0.05 > min(apart[j] for j in range(12) if labels[j] != labels[i])
    assert 0 < active < 12
    assert active_share(embeddings * scale, labels, None, -0.05) == pytest.approx(active / 12)


def test_active_share_of_separated_classes_is_zero():
    embeddings = torch.eye(4).repeat_interleave(2, dim=0)
    assert active_share(embeddings, torch.arange(4).repeat_interleave(2), None, 0.2) == 0


def test_a_loss_that_does_not_go_with_the_form_is_refused():
    with pytest.raises(ValueError, match="'batch-hard' does not go with form 'pair'; allowed are contrastive"):
        make_loss("batch-hard", "pair")
    with pytest.raises(ValueError, match="'triplets' does not go with form 'set'"):
        make_loss("triplets")


@pytest.mark.parametrize("name", ["soft-triplet", "batch-hard-soft"])
def test_a_margin_is_refused_where_it_has_no_effect(name):
    make_loss(name)
    with pytest.raises(ValueError, match=f"margin is 0.5, but loss '{name}' has none; leave it out"):
        make_loss(name, margin=0.5)
