"""The online autoencoder against principal components and against the rules for input and state."""

import copy
import io
import re
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch

from bonlib.bag import BagOfNegatives
from bonlib.core.checks import check_embeddings
from bonlib.core.hashes import ITQ, OnlineAutoencoder, OnlinePCA, RandomHyperplanes, list_hashers, make_hasher
from bonlib.core.kernels import read_codes


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
    assert read_codes(np.ones((1, 24), dtype=np.float32))[0].tolist() == [2**24 - 1]


def test_it_never_touches_the_encoder_and_works_under_no_grad():
    embeddings = gaussian(8).requires_grad_()
    hasher = OnlineAutoencoder(16, 3)
    with torch.no_grad():
        hasher.partial_fit(embeddings * 1)
    hasher.partial_fit(embeddings * 1)
    assert embeddings.grad is None


def test_it_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    OnlineAutoencoder(16, 4).partial_fit(gaussian(8))
    assert torch.equal(torch.get_rng_state(), before)


def fed(name: str, bits: int = 4, batches: int = 60, **options):
    hasher = make_hasher(name, 16, bits, **options)
    for seed in range(batches):
        hasher.partial_fit(gaussian(64, seed))
    return hasher


def directions(hasher) -> torch.Tensor:
    """The encoder's weights ``(dim, bits)``, read from what it does to the axes."""
    return hasher.project(torch.eye(hasher.dim)) - hasher.project(torch.zeros(1, hasher.dim))


def subspace_angle(hasher) -> float:
    """Share of the variance that the best subspace holds and the hash's misses."""
    data = gaussian(4000, 999)
    data = data - data.mean(dim=0)
    basis = torch.linalg.qr(directions(hasher))[0]
    best = torch.linalg.svdvals(data).square()[: hasher.bits].sum()
    return float(1 - (data @ basis).square().sum() / best)


@pytest.mark.parametrize(("name", "missed"), [("pca", 0.02), ("itq", 0.02), ("tied", 0.05)])
def test_principal_hashes_find_the_principal_subspace(name, missed):
    assert subspace_angle(fed(name, batches=400, **({"lr": 0.02} if name == "tied" else {}))) < missed
    assert subspace_angle(fed("hyperplanes")) > 0.2


def test_online_pca_is_scikit_learns_over_the_same_batches_and_forgets_old_ones():
    from sklearn.decomposition import IncrementalPCA

    hasher, reference = OnlinePCA(16, 4), IncrementalPCA(4)
    for seed in range(20):
        hasher.partial_fit(gaussian(64, seed))
        reference.partial_fit(gaussian(64, seed).double().numpy())
    assert hasher.tensors["encoder"].T.numpy() == pytest.approx(reference.components_, abs=1e-5)
    for seed in range(400):  # another world: the strong directions are now the weak ones
        hasher.partial_fit(gaussian(64, seed).flip(1))
    assert hasher.tensors["encoder"][-4:].norm() > 0.95 * hasher.tensors["encoder"].norm()


def test_online_pca_takes_batches_smaller_than_the_code():
    hasher = OnlinePCA(16, 8)
    for i in range(30):
        hasher.partial_fit(gaussian(200)[5 * i : 5 * i + 5])
    assert hasher.tensors["seen"] == 150


def test_itq_loses_less_by_the_signs_than_principal_components():
    scales = torch.tensor([4.0, 1.0, 0.5, 0.2] + [0.01] * 12)  # so unequal that principal directions lose much
    data = torch.randn(4096, 16, generator=torch.Generator().manual_seed(0)) * scales
    losses = {}
    for name in ("itq", "pca"):
        hasher = make_hasher(name, 16, 4)
        for part in data.split(64):
            hasher.partial_fit(part)
        along = torch.nn.functional.normalize(hasher.project(data), dim=1)  # (samples, bits)
        losses[name] = float((along.sign() / 2 - along).square().sum(dim=1).mean())
    assert losses["itq"] < 0.9 * losses["pca"]


def test_spectral_hashing_of_one_dimension_goes_on_after_its_first_fit():
    hasher = make_hasher("spectral", 1, 1)
    for seed in range(60):
        hasher.partial_fit(gaussian(64, seed)[:, :1])
    assert hasher.encode(gaussian(64)[:, :1]).float().mean() == pytest.approx(0.5, abs=0.2)


def test_spectral_hashing_cuts_the_longest_direction_first_at_half_and_then_at_quarters():
    data = torch.rand(4096, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([10.0, 1.0])
    data = torch.cat([data, torch.zeros(4096, 14)], dim=1)
    hasher = make_hasher("spectral", 16, 2)
    for part in data.split(64):
        hasher.partial_fit(part)
    x = data[:, 0]
    projections = hasher.project(data)
    half, quarters = (projections[:, i] > 0 for i in range(2))  # by frequency
    share = float((half == (x < 5)).float().mean())
    assert max(share, 1 - share) > 0.98
    inner = (x > 2.5) & (x < 7.5)
    share = float((quarters == inner).float().mean())
    assert max(share, 1 - share) > 0.98


def test_the_shuffled_control_has_the_codes_of_the_autoencoder_in_another_order():
    shuffled, plain = fed("shuffled"), fed("autoencoder")
    data = gaussian(256, 5)
    codes = [hasher.encode(data).tolist() for hasher in (shuffled, plain)]
    assert sorted(codes[0]) == sorted(codes[1])
    assert codes[0] != codes[1]


@pytest.mark.parametrize("name", list_hashers())
def test_every_hash_goes_on_from_a_saved_state_and_keeps_its_bits_balanced(name):
    first = fed(name, batches=120)
    saved = io.BytesIO()
    torch.save(first.state_dict(), saved)
    saved.seek(0)
    second = make_hasher(name, 16, 4, seed=9)
    second.load_state_dict(torch.load(saved, weights_only=True))
    for seed in range(200, 260):
        first.partial_fit(gaussian(64, seed))
        second.partial_fit(gaussian(64, seed))
    assert torch.equal(first.encode(gaussian(500)), second.encode(gaussian(500)))
    shares = (first.project(gaussian(4000, 999)) > 0).float().mean(dim=0)
    assert (shares - 0.5).abs().max() < (0.2 if name == "spectral" else 0.15)  # it cuts at the middle of the range


@pytest.mark.parametrize("name", list_hashers())
def test_every_hash_refuses_bad_embeddings_and_stays_as_it_was(name):
    hasher, untouched = fed(name), fed(name)
    for bad in (torch.zeros(4, 15), torch.full((4, 16), torch.nan)):
        with pytest.raises(ValueError, match="embeddings has"):
            hasher.partial_fit(bad)
        with pytest.raises(ValueError, match="embeddings has"):
            hasher.project(bad)
    assert torch.equal(hasher.encode(gaussian(500)), untouched.encode(gaussian(500)))


def test_hashes_by_name_say_what_is_allowed():
    with pytest.raises(ValueError, match="hasher is 'md5'; allowed are 'autoencoder'"):
        make_hasher("md5", 16, 4)
    for hasher in (ITQ, OnlinePCA):
        with pytest.raises(ValueError, match=r"bits is 17; .* at most dim=16"):
            hasher(16, 17)
    with pytest.raises(ValueError, match="hash=RandomHyperplanes, this hash has OnlineAutoencoder"):
        OnlineAutoencoder(16, 4).load_state_dict(RandomHyperplanes(16, 4).state_dict())
    with pytest.raises(ValueError, match="bits=4, this hash has 5"):
        OnlineAutoencoder(16, 5).load_state_dict(OnlineAutoencoder(16, 4).state_dict())


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
    assert str(hasher.state_dict()) == str(before)


def test_the_autoencoder_learns_as_torchs_own_layers_autograd_and_adam_do():
    hasher = OnlineAutoencoder(16, 4, lr=0.01)
    encoder, decoder, bias = (part.clone().requires_grad_() for part in hasher.split(hasher.tensors["weights"]))
    optimizer = torch.optim.Adam([encoder, decoder, bias], lr=0.01)
    for seed in range(50):
        rows = gaussian(32, seed) / 10  # about as long as one, so that they are taken as they are
        error = (rows @ encoder @ decoder + bias - rows).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        assert hasher.partial_fit(rows) == pytest.approx(float(error.detach() / rows.square().mean()), rel=1e-4)
    torch.testing.assert_close(directions(hasher), encoder.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("bits", [1, 3, 6, 11, 24])
def test_codes_and_probing_order_are_read_as_sorting_says(bits):
    projections = np.random.default_rng(bits).standard_normal((200, bits)).astype(np.float32)
    codes, near = read_codes(projections)
    assert codes.tolist() == ((projections > 0) @ (1 << np.arange(projections.shape[1]))).tolist()
    nearest = np.abs(projections).argsort(axis=1)[:, :6]
    assert near.tolist() == (nearest << (5 * np.arange(nearest.shape[1]))).sum(axis=1).tolist()


@pytest.mark.parametrize(("dim", "bits"), [(0, 4), (16, 0), (16, 25)])
def test_bad_sizes_are_refused(dim, bits):
    with pytest.raises(ValueError, match=r"at least 1|allowed are 1 to 24"):
        OnlineAutoencoder(dim, bits)


def test_half_precision_is_taken():
    assert check_embeddings(torch.ones(2, 3, dtype=torch.bfloat16), 3).dtype == torch.float32
    assert OnlineAutoencoder(16, 4).encode(gaussian(4).bfloat16()).shape == (4,)


def entropy(hasher, rows: torch.Tensor) -> float:
    shares = torch.bincount(hasher.encode(rows), minlength=2**hasher.bits) / len(rows)
    shares = shares[shares > 0]
    return float(-(shares * shares.log2()).sum())


def units(count: int, seed: int) -> torch.Tensor:
    """Unit embeddings that lie on one side, as those of an encoder do."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, 16, generator=generator) * 0.3 + 0.5, dim=1)


@cache
def untouched_entropy(name: str, steps: int) -> float:
    hasher = make_hasher(name, 16, 6)
    for step in range(steps):
        hasher.partial_fit(units(64, step))
    return entropy(hasher, units(2000, 999))


BAD = {f"{scale:.0e}": scale for scale in (1e2, 1e6, 1e20, 1e30, 1e-6, 0.0)}


@pytest.mark.parametrize("kind", ["whole batch", "one row", "another direction"])
@pytest.mark.parametrize("scale", BAD.values(), ids=BAD)
@pytest.mark.parametrize("when", [0, 60])
@pytest.mark.parametrize("name", list_hashers())
def test_what_one_bad_batch_does_to_the_entropy_is_over_within_fifty_updates(name, when, scale, kind):
    hasher, seen = make_hasher(name, 16, 6), units(2000, 999)
    for step in range(when + 51):
        rows = units(64, step)
        if step == when:
            bad = torch.ones(64, 16) if kind == "another direction" else rows.clone()
            bad[slice(0, 1) if kind == "one row" else slice(None)] *= scale
            rows = bad
            assert torch.isfinite(hasher.project(rows)).all()
        hasher.partial_fit(rows)
    assert entropy(hasher, seen) > untouched_entropy(name, when + 51) - 0.6
    assert torch.isfinite(hasher.project(seen)).all()


@pytest.mark.parametrize("name", list_hashers())
def test_codes_do_not_depend_on_the_scale_of_the_embeddings(name):
    plain, large = (make_hasher(name, 16, 5) for _ in range(2))
    for seed in range(60):
        plain.partial_fit(units(64, seed))
        large.partial_fit(units(64, seed) * 2.0**40)
    assert plain.encode(units(500, 99)).tolist() == large.encode(units(500, 99) * 2.0**40).tolist()


@pytest.mark.parametrize("name", ["autoencoder", "tied", "binary-autoencoder", "shuffled"])
def test_a_hash_that_would_not_be_finite_is_put_back_and_told_of(name):
    hasher = make_hasher(name, 16, 4, lr=1e30)
    bag = BagOfNegatives(np.repeat(np.arange(10), 10), 16, hasher=hasher, batch_size=40)
    indices, told = next(iter(bag)), ""
    for step in range(20):
        before = str(bag.state_dict())
        try:
            bag.update(indices, units(40, step))
        except FloatingPointError as error:
            told = str(error)
            break
    assert re.search(r"is not finite after its update \d+, and was put back; lower its lr", told)
    assert str(bag.state_dict()) == before


def test_everything_goes_on_in_float32_whatever_the_default_is():
    torch.set_default_dtype(torch.float64)
    try:
        for name in list_hashers():
            bag = BagOfNegatives(np.repeat(np.arange(10), 10), 16, hasher=name, bits=4, batch_size=40)
            for indices in bag:
                bag.update(indices, units(40, 0).double())
            assert bag.hasher.tensors["mean"].dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@dataclass
class Output:
    """What a model of Hugging Face returns, in short."""

    loss: torch.Tensor | None
    embeddings: torch.Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda e: (e, torch.zeros(40, 3)),
        lambda e: [torch.zeros(()), e],
        lambda e: {"labels": torch.zeros(40, 2, dtype=torch.int64), "embeddings": e},
        lambda e: Output(None, e),
        lambda e: e.numpy(),
        lambda e: e.tolist(),
        lambda e: e.half(),
        lambda e: e.double(),
        lambda e: e.requires_grad_(),
    ],
    ids=["tuple", "list", "dict", "dataclass", "array", "rows", "half", "double", "graph"],
)
def test_update_takes_what_encoders_return(wrap):
    bag, reference = (BagOfNegatives(np.repeat(np.arange(10), 10), 16, bits=4, batch_size=40) for _ in range(2))
    indices, embeddings = next(iter(bag)), units(40, 0).half().float()
    reference.update(indices, embeddings)
    bag.update(indices, wrap(embeddings.clone()))
    assert bag.codes(indices).tolist() == reference.codes(indices).tolist()


@pytest.mark.parametrize("output", [None, "text", {}, (), {"logits": torch.zeros(4)}, object(), 3.0])
def test_what_holds_no_embeddings_is_refused_with_a_sentence(output):
    bag = BagOfNegatives(np.repeat(np.arange(10), 10), 16, bits=4, batch_size=40)
    with pytest.raises(ValueError, match=r"without a floating point tensor .*; give the tensor"):
        bag.update([0, 1, 2, 3], output)


@pytest.mark.parametrize("name", list_hashers())
@pytest.mark.parametrize("growth", [1.01, 0.99])
def test_codes_stay_even_while_embeddings_grow_or_shrink(name, growth):
    """The scale follows a factor of two: the mean, whose unit it is, must not be left behind."""
    generator = torch.Generator().manual_seed(0)
    common = torch.nn.functional.normalize(torch.randn(16, generator=generator), dim=0)
    rows = common + 0.4 * torch.nn.functional.normalize(torch.randn(2000, 16, generator=generator))
    rows /= rows.norm(dim=1).median()
    hasher, start, lowest, before = make_hasher(name, 16, 5), 1.9 if growth > 1 else 0.55, 99.0, 0.0
    for step in range(400):
        size = start * growth ** min(max(step - 200, 0), 60)
        hasher.partial_fit(size * rows[torch.randint(0, 2000, (64,), generator=generator)])
        if step >= 150:
            before = hasher.scale if step == 150 else before
            lowest = min(lowest, entropy(hasher, size * rows))
    assert hasher.scale != before
    assert lowest > 2.4  # of 5; before the mean followed, 0.01 to 2.06 where they grow
