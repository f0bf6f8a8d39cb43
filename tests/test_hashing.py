"""The online autoencoder against principal components and against the rules for input and state."""

import copy

import pytest
import torch

from bonlib.checks import check_embeddings
from bonlib.hashing import OnlineAutoencoder, pack


def gaussian(count: int, seed: int = 0, dim: int = 16) -> torch.Tensor:
    """Embeddings of full rank with a few strong directions and a mean far from zero."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(3, 0.1, dim)
    return torch.randn(count, dim, generator=generator) * scales + 2


def test_it_learns_the_principal_subspace():
    data = gaussian(4000)
    data = data - data.mean(dim=0)
    hasher = OnlineAutoencoder(16, 4, lr=0.02)
    for begin in range(0, 4000 * 10, 100):
        hasher.partial_fit(data[begin % 4000 : begin % 4000 + 100])
    spectrum = torch.linalg.svdvals(data).square()
    best = float(spectrum[4:].sum() / spectrum.sum())  # the closed form: what no rank-4 map can do better
    assert best < hasher.partial_fit(data) < 1.1 * best


def test_centred_units_split_the_data_in_halves():
    hasher = OnlineAutoencoder(16, 6)
    for seed in range(200):
        hasher.partial_fit(gaussian(128, seed))
    shares = (hasher.project(gaussian(4000, 999)) > 0).float().mean(dim=0)
    assert (shares - 0.5).abs().max() < 0.1


def test_codes_are_the_signs_of_the_projections_bit_by_bit():
    hasher = OnlineAutoencoder(16, 5)
    data = gaussian(50)
    hasher.partial_fit(data)
    expected = [sum(2**j for j, value in enumerate(row) if value > 0) for row in hasher.project(data).tolist()]
    assert hasher.encode(data).tolist() == expected
    assert pack(torch.ones(1, 24, dtype=torch.bool)).item() == 2**24 - 1


def test_it_never_touches_the_encoder_and_works_under_no_grad():
    embeddings = gaussian(8).requires_grad_()
    hasher = OnlineAutoencoder(16, 3)
    with torch.no_grad():
        hasher.partial_fit(embeddings * 1)
    hasher.partial_fit(embeddings * 1)
    assert embeddings.grad is None


def test_a_loaded_state_goes_on_as_the_saved_hash():
    first, second = OnlineAutoencoder(16, 4), OnlineAutoencoder(16, 4, seed=7)
    for seed in range(5):
        first.partial_fit(gaussian(32, seed))
    second.load_state_dict(first.state_dict())
    for seed in range(5, 10):
        assert first.partial_fit(gaussian(32, seed)) == second.partial_fit(gaussian(32, seed))
    assert torch.equal(first.project(gaussian(32)), second.project(gaussian(32)))


def test_it_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    OnlineAutoencoder(16, 4).partial_fit(gaussian(8))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (torch.zeros(4, 15), r"shape \(4, 15\); give \(batch, 16\)"),
        (torch.zeros(16), "shape"),
        (torch.zeros(0, 16), "at least 1"),
        (torch.zeros(4, 16, dtype=torch.int64), "floating point"),
        (torch.full((4, 16), torch.nan), "NaN or infinite"),
        (torch.tensor([[0.0] * 16, [torch.inf] * 16]), "first is row 1"),
    ],
)
def test_bad_embeddings_are_refused_and_change_nothing(embeddings, message):
    hasher = OnlineAutoencoder(16, 4)
    hasher.partial_fit(gaussian(8))
    before = copy.deepcopy(hasher.state_dict())
    with pytest.raises(ValueError, match=message):
        hasher.partial_fit(embeddings)
    after = hasher.state_dict()
    assert torch.equal(before["encoder"], after["encoder"])
    assert torch.equal(before["mean"], after["mean"])
    assert before["steps"] == after["steps"]


@pytest.mark.parametrize(("dim", "bits"), [(0, 4), (16, 0), (16, 25)])
def test_bad_sizes_are_refused(dim, bits):
    with pytest.raises(ValueError, match=r"at least 1|allowed are 1 to 24"):
        OnlineAutoencoder(dim, bits)


def test_a_foreign_state_is_refused():
    with pytest.raises(ValueError, match="bits=4, this hash has 5"):
        OnlineAutoencoder(16, 5).load_state_dict(OnlineAutoencoder(16, 4).state_dict())


def test_half_precision_is_taken():
    assert check_embeddings(torch.ones(2, 3, dtype=torch.bfloat16), 3).dtype == torch.float32
    assert OnlineAutoencoder(16, 4).encode(gaussian(4).bfloat16()).shape == (4,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_follows_the_device_of_the_embeddings():
    hasher = OnlineAutoencoder(16, 4)
    errors = [hasher.partial_fit(gaussian(32, i).to(device)) for i, device in enumerate(["cpu", "cuda", "cpu", "cuda"])]
    reference = OnlineAutoencoder(16, 4)
    assert errors == pytest.approx([reference.partial_fit(gaussian(32, i)) for i in range(4)], rel=1e-4)
