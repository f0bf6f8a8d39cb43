"""Encoders by name."""

import pytest
import torch

from bonlib.encoders import make_encoder


@pytest.mark.parametrize(("name", "channels"), [("small", 1), ("small", 3), ("resnet18", 3), ("mobilenet_v3_small", 3)])
def test_unit_embeddings_of_the_width_asked_for(name, channels):
    embeddings = make_encoder(name, dim=24, in_channels=channels)(torch.rand(3, channels, 32, 32))
    assert embeddings.shape == (3, 24)
    assert embeddings.norm(dim=1).tolist() == pytest.approx([1] * 3, abs=1e-5)


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    first, second, other = (make_encoder(seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


@pytest.mark.parametrize(
    ("name", "channels", "message"), [("resnet19", 3, "name is 'resnet19'"), ("resnet18", 1, "takes 3")]
)
def test_what_cannot_be_had_is_refused(name, channels, message):
    with pytest.raises(ValueError, match=message):
        make_encoder(name, in_channels=channels)
