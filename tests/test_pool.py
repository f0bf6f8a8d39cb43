"""The second stage: sketches, pools, windows, against brute force."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bonlib import BagOfNegatives
from bonlib.core.hashes import make_hasher
from bonlib.core.kernels import UNSEEN
from bonlib.core.means import FULL
from bonlib.core.table import BucketTable

DIM = 16
labels = np.random.default_rng(0).permutation(np.repeat(np.arange(40), 6))
WIDE = {"pool": 100, "bits": 2, "batch_size": 24, "seed": 0}  # two bits away is everywhere: a pool holds all


def embeddings(seed: int = 0) -> torch.Tensor:
    """Unit vectors around a random centre for each class."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(40, DIM, generator=generator)
    rows = centres[torch.from_numpy(labels)] + 0.3 * torch.randn(len(labels), DIM, generator=generator)
    return torch.nn.functional.normalize(rows, dim=1)


def filled(**options) -> BagOfNegatives:
    bag = BagOfNegatives(labels, DIM, **WIDE | options)
    bag.fill(lambda ids: embeddings()[ids], at_once=25)  # which no class ends at
    return bag


def order_by_mean(anchor: int) -> list[int]:
    """Other classes by the distance of their means, as a sketch would round them, nearest first."""
    rows = embeddings().numpy()
    means = np.stack([rows[labels == c].mean(axis=0, dtype=np.float32) for c in range(40)])
    rounded = np.rint(means * np.float32(FULL * DIM**0.5)).clip(-127, 127).astype(np.int64)
    apart = ((rounded - rounded[labels[anchor]]) ** 2).sum(axis=1)
    return [int(c) for c in np.argsort(apart, kind="stable") if c != labels[anchor]]


def distances(anchor: int, classes) -> list[int]:
    rows = embeddings().numpy()
    means = np.stack([rows[labels == c].mean(axis=0, dtype=np.float32) for c in range(40)])
    rounded = np.rint(means * np.float32(FULL * DIM**0.5)).clip(-127, 127).astype(np.int64)
    return ((rounded[classes] - rounded[labels[anchor]]) ** 2).sum(axis=1).tolist()


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("window", [(0, 1), (0, 8), (1, 3)])
def test_the_usual_number_of_anchors_leaves_room_for_look_alikes(classes, window):
    bag = filled(batch_size=2 * classes, per_class=2, window=window)
    assert bag.bags <= classes / 2
    for _ in range(20):
        bag.draw_seeds(classes)
    assert bag._tally.sum() >= 20 * (classes - bag.bags)  # all but the anchors
    assert bag.stats()["from_random"] == 0


@pytest.mark.parametrize("unit", ["identity", "sample"])
@pytest.mark.parametrize("hasher", ["hyperplanes", "autoencoder"])
def test_filling_forgets_the_centre_and_the_size_of_an_older_encoder(unit, hasher):
    old = 30 * embeddings(5) + 100
    bag, fresh = (BagOfNegatives(labels, DIM, unit=unit, bits=4, batch_size=24, hasher=hasher) for _ in range(2))
    for indices, _ in zip(bag, range(60), strict=False):
        bag.update(indices, old[indices])
    for one in (bag, fresh):
        one.fill(lambda ids: embeddings()[ids])
    assert bag.hasher.scale == fresh.hasher.scale
    assert torch.allclose(bag.hasher.tensors["mean"], fresh.hasher.tensors["mean"])
    if hasher == "hyperplanes":  # the directions of the other have learned
        assert (bag.codes(np.arange(240)) == fresh.codes(np.arange(240))).all()


@pytest.mark.parametrize("count", [128, 129, 130, 200, 240])
def test_the_centre_of_a_table_that_was_filled_is_the_mean_of_all(count):
    bag = BagOfNegatives(labels[:count], DIM, batch_size=24, bits=4)
    bag.fill(lambda ids: embeddings()[ids])
    assert torch.allclose(bag.hasher.tensors["mean"], embeddings()[:count].mean(dim=0), atol=2e-3)


@pytest.mark.parametrize("unit", ["identity", "sample"])
def test_a_pool_that_holds_all_is_in_the_order_of_the_means(unit):
    bag = filled(unit=unit)
    for anchor in range(0, 240, 17):
        found = bag.candidates(anchor)
        assert sorted(found) == sorted(order_by_mean(anchor))
        assert distances(anchor, found) == distances(anchor, order_by_mean(anchor))  # equals in any order


def test_a_pool_takes_the_nearest_buckets_first():
    bag = filled(bits=5, pool=8)
    near = bag.table.buckets.near
    for anchor in range(0, 240, 7):
        c = int(labels[anchor])
        code = int(bag.codes([anchor])[0])
        flips = [int(near[c] >> (5 * place)) & 31 for place in range(5)]
        levels = [[code], *[[code ^ 1 << bit] for bit in flips]]
        levels += [[code ^ 1 << flips[i] ^ 1 << flips[j]] for j in range(1, 5) for i in range(j)]
        left, expected = 8, []
        found = set(bag.candidates(anchor).tolist())
        for codes in levels:
            here = [int(e) for e in bag.table.bucket(codes[0]) if e != c]
            if len(here) <= left:
                expected += here
                left -= len(here)
            else:  # of the last bucket any members
                assert len(found - set(expected)) == left
                assert found - set(expected) <= set(here)
                left = 0
            if not left:
                break
        assert set(expected) <= found


@pytest.mark.parametrize("window", [(0, 7), (0, 20), (10, 30)])
def test_sets_come_from_the_window(window):
    bag = filled(window=window, bags=1, form="set")
    for _ in range(20):
        anchor, *others = labels[bag.draw_seeds(6)].tolist()
        order = distances(
            int(np.flatnonzero(labels == anchor)[0]), order_by_mean(int(np.flatnonzero(labels == anchor)[0]))
        )
        low, high = order[window[0]], order[window[1] - 1]
        apart = distances(int(np.flatnonzero(labels == anchor)[0]), others)
        assert all(low <= value <= high for value in apart)
    assert bag.stats()["from_random"] == 0


@pytest.mark.parametrize("form", ["triplet", "pair"])
def test_negatives_come_from_the_window(form):
    bag = filled(window=(3, 9), form=form)
    anchors = np.arange(240)
    for anchor, negative in zip(anchors, bag.draw_negatives(anchors), strict=True):
        order = distances(anchor, order_by_mean(anchor))
        assert order[3] <= distances(anchor, [labels[negative]])[0] <= order[8]


@pytest.mark.parametrize("form", ["set", "triplet"])
def test_a_pool_that_does_not_reach_to_the_window_gives_none(form):
    bag = filled(window=(60, 80), form=form)  # of 39 others
    assert len(next(iter(bag))) == 24
    assert bag.stats()["from_random"] == 1


@pytest.mark.parametrize(
    ("batch_size", "pool", "window", "bags"),
    [(16, 64, (0, 8), 2), (32, 64, (0, 8), 4), (128, 64, (0, 8), 4), (160, 64, (0, 8), 5), (160, 64, (2, 4), 14),
     (160, 64, (0, 40), 4), (160, 4, (0, 8), 8)],
)  # fmt: skip
def test_as_many_anchors_as_windows_can_serve(batch_size, pool, window, bags):
    bag = BagOfNegatives(labels, DIM, batch_size=batch_size, pool=pool, window=window)
    assert bag.bags == bags
    assert batch_size // 4 - bags <= bags * (min(window[1], pool) - window[0])
    assert BagOfNegatives(labels, DIM, batch_size=batch_size, unit="sample", pool=0).bags == min(batch_size // 8, 4)


def test_a_sketch_is_a_running_mean():
    bag = BagOfNegatives(labels, DIM, **WIDE, momentum=0.75)
    ids, rows = np.flatnonzero(labels == 3), embeddings().numpy()
    bag.correct(ids[:3], rows[ids[:3]])
    bag.correct(np.r_[ids[3:], 0], np.concatenate([rows[ids[3:]], rows[:1]]))
    expected = 0.75 * rows[ids[:3]].mean(axis=0) + 0.25 * rows[ids[3:]].mean(axis=0)
    np.testing.assert_allclose(bag._means.sketches.rows[3] / (FULL * DIM**0.5), expected, atol=1 / (FULL * DIM**0.5))


def test_codes_of_identities_are_those_of_their_means():
    bag = filled(unit="identity", bits=4)
    means = torch.stack([embeddings()[torch.from_numpy(labels == c)].mean(dim=0) for c in range(40)])
    codes = bag.hasher.encode(means).numpy()
    assert bag.codes(np.arange(240)).tolist() == codes[labels].tolist()
    for code in np.unique(codes):
        assert sorted(bag.members(code)) == np.flatnonzero(codes[labels] == code).tolist()
    others = set(np.flatnonzero((codes[labels] == codes[labels[0]]) & (labels != labels[0])).tolist())
    assert set(bag.negatives(0).tolist()) == others


@pytest.mark.parametrize("unit", ["identity", "sample"])
def test_filling_leaves_no_sample_without_a_code(unit):
    bag = BagOfNegatives(labels, DIM, unit=unit, batch_size=24)
    assert (bag.codes(np.arange(240)) == UNSEEN).all()
    assert bag.candidates(0).size == 0
    bag.fill(lambda ids: embeddings()[ids], at_once=50)
    assert bag.stats()["filled"] == 1
    assert (bag.codes(np.arange(240)) != UNSEEN).all()
    assert bag.draw_seeds(6).size == 6
    assert bag.stats()["from_unseen"] == 0


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=12), st.integers(1, 10), st.integers(1, 30), st.integers(1, 99))
def test_a_fill_looks_once_at_some_samples_of_each_identity_evenly_spread(counts, per_class, at_once, learned):
    own = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    bag, seen = BagOfNegatives(own, DIM, form="triplet", batch_size=3, momentum=0.0), []
    rows = embeddings()[: len(own)]
    with mock.patch("bonlib.core.filling._LEARNED", 1), mock.patch("bonlib.core.filling._BATCH", learned):
        bag.fill(lambda ids: seen.append(ids) or rows[ids], per_class=per_class, at_once=at_once)
    looked = set(np.concatenate(seen).tolist())
    assert len(looked) == len(np.concatenate(seen))
    for c, count in enumerate(counts):
        of = np.flatnonzero(own == c)
        spread = {of[j * count // per_class] for j in range(per_class)} if count > per_class else set(of)
        assert looked & set(of.tolist()) == spread
        torch.testing.assert_close(bag.means[c], rows[sorted(spread)].mean(dim=0), atol=0.1, rtol=0)


def test_a_table_of_samples_needs_all_of_them():
    bag = BagOfNegatives(labels, DIM, unit="sample", batch_size=24)
    with pytest.raises(ValueError, match="per_class is 2, but the table holds samples"):
        bag.fill(lambda ids: embeddings()[ids], per_class=2)
    with pytest.raises(ValueError, match="per_class is 0"):
        BagOfNegatives(labels, DIM, batch_size=24).fill(lambda ids: embeddings()[ids], per_class=0)


def test_as_published_is_the_first_stage_alone():
    published = BagOfNegatives.as_published(labels, DIM, batch_size=24)
    assert (published.unit, published.pool, published.bags) == ("sample", 0, 1)
    assert published.table.num_samples == 240
    assert BagOfNegatives.as_published(labels, DIM, batch_size=24, bags=3).bags == 3
    with pytest.raises(ValueError, match="as_published has no pool, unit"):
        BagOfNegatives.as_published(labels, DIM, pool=8, unit="identity")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "class"}, "unit is 'class'; allowed are 'identity' and 'sample'"),
        ({"unit": "identity", "pool": 0}, "buckets of identities need a pool"),
        ({"pool": -1}, "pool is -1"),
        ({"window": 8}, "window is 8; give two ranks"),
        ({"window": (64, 80)}, r"window\[0\] is 64; allowed are 0 to 63. It is below pool"),
        ({"window": (4, 4)}, r"window\[1\] is 4; allowed are 5 to 4096"),
        ({"momentum": 1}, "momentum is 1.0; allowed are 0 to 0.99"),
        ({"target": 1.5}, "target is 1.5; allowed are 0 to 1"),
        ({"margin": 0.3}, "margin is 0.3 and target None"),
        ({"target": 0.9, "margin": float("inf")}, "margin is inf"),
        ({"target": 0.9, "pool": 8}, r"window \(0, 8\) reaches to the end of the pool of 8"),
        ({"unit": "sample", "pool": 0, "target": 0.9}, "pool is 0, which has no use for window and target"),
        ({"unit": "sample", "pool": 0, "momentum": 0.1}, "momentum is 0.1 and pool 0"),
        ({"unit": "sample", "pool": 0, "window": (2, 10)}, "pool is 0, which has no use for window"),
    ],
)
def test_bad_dials_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BagOfNegatives(labels, DIM, batch_size=24, **options)


@pytest.mark.parametrize("form", ["set", "triplet", "pair"])
def test_the_dial_turns_to_easier_ranks_while_more_tuples_are_active_and_back(form):
    bag = filled(pool=30, window=(2, 6), form=form, target=0.5, margin=0.1, steps=100)
    order = [distances(anchor, order_by_mean(anchor)) for anchor in range(240)]
    for (alike, times), hardness in {(True, 10): 0.8, (False, 4): 0.88, (False, 9): 1.0, (True, 60): 0.0}.items():
        for _, indices in zip(range(times), bag, strict=False):
            bag.margin = 0.1 if alike else -3.0  # farther than any two: none is active
            bag.update(indices, torch.ones(24, DIM))
        assert bag.stats()["hardness"] == pytest.approx(hardness)
    again = filled(pool=39, window=(2, 6), form=form, target=0.5)
    again._hardness = 0.25  # three quarters of the 33 ranks behind the window
    for anchor, negative in enumerate(again.draw_negatives(np.arange(240))):
        assert order[anchor][27] <= distances(anchor, [labels[negative]])[0] <= order[anchor][30]
    assert "hardness" not in filled().stats()


@pytest.mark.parametrize("form", ["set", "triplet"])
def test_the_easiest_window_is_the_end_of_what_is_found(form):
    bag = filled(pool=256, window=(2, 6), form=form, target=0.5, bags=1)  # of 39 others
    bag._hardness = 0.0
    if form == "triplet":
        for anchor, negative in enumerate(bag.draw_negatives(np.arange(240))):
            assert distances(anchor, [labels[negative]])[0] >= distances(anchor, order_by_mean(anchor))[35]
    else:  # more than the window holds: those that it slid past come next
        anchor, *others = bag.draw_seeds(20)
        found = {int(c) for c in labels[others]}
        order = order_by_mean(anchor)
        assert set(distances(anchor, list(found))) == set(distances(anchor, order[-19:]))
    assert bag.stats()["from_random"] == 0


def test_what_has_no_tuples_does_not_turn_the_dial():
    bag = filled(form="triplet", target=0.0, margin=9.0)
    bag.update(np.arange(24), embeddings()[:24])  # no triplets
    bag.update([0, 1], embeddings()[:2])
    assert bag.stats()["hardness"] == 1.0
    indices = next(iter(bag))
    bag.update(indices, embeddings()[indices])
    assert bag.stats()["hardness"] == pytest.approx(0.98)
    bag = filled(target=0.0, margin=9.0)
    of_one, of_each = np.flatnonzero(labels == 3), np.unique(labels, return_index=True)[1]
    for indices in (of_one, of_each):  # one class, or one sample of each
        bag.update(indices, embeddings()[indices])
    assert bag.stats()["hardness"] == 1.0
    for half in np.split(np.array(next(iter(bag))), 2):  # a set in two pieces
        bag.update(half, embeddings()[half])
    assert bag.stats()["hardness"] == pytest.approx(0.96)


def test_a_dial_that_stays_is_that_of_the_state():
    bag, steered = filled(), filled(target=0.9)
    bag.load_state_dict(bag.state_dict() | {"hardness": 0.1})
    assert bag._dial.eased == 0
    state = steered.state_dict()
    with pytest.raises(ValueError, match="it lacks hardness; begin anew"):
        steered.load_state_dict({name: value for name, value in state.items() if name != "hardness"})
    older = {name: value for name, value in state["config"].items() if name not in ("target", "margin")}
    with pytest.raises(ValueError, match="it lacks margin, target; begin anew"):
        steered.load_state_dict(state | {"config": older})


def test_a_huge_row_does_not_reach_beyond_its_own_identity():
    bag, reference = filled(), filled()
    row = embeddings()[:1] * 1e30
    bag.correct([0], row)
    others = np.flatnonzero(labels != labels[0])
    assert (bag.codes(others) == reference.codes(others)).all()
    kept = np.arange(40) != labels[0]
    assert (bag._means.sketches.rows[kept] == reference._means.sketches.rows[kept]).all()


@pytest.mark.parametrize("unit", ["identity", "sample"])
@pytest.mark.parametrize("form", ["set", "triplet", "pair"])
@settings(deadline=None, max_examples=25)
@given(
    data=st.data(), bits=st.integers(1, 8), counts=st.lists(st.integers(1, 7), min_size=5, max_size=9),
    pool=st.integers(1, 12), first=st.integers(0, 6), share=st.sampled_from([0.0, 0.4, 1.0]), bags=st.integers(1, 3),
)  # fmt: skip
def test_no_state_leads_a_draw_out_of_its_arrays(unit, form, data, bits, counts, pool, first, share, bags):
    """Filled by any public way; `make test` sets NUMBA_BOUNDSCHECK=1, where a wrong index is an IndexError."""
    own = np.repeat(np.arange(len(counts)), counts)
    bag = BagOfNegatives(
        own, DIM, form=form, batch_size=12, per_class=4, bits=bits, unit=unit, pool=pool,
        window=(min(first, pool - 1), first + 3),
        random_share=share, bags=bags if form == "set" else 1,
    )  # fmt: skip
    entries = len(counts) if unit == "identity" else len(own)
    moved = data.draw(st.lists(st.integers(0, entries - 1), max_size=30))
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=len(moved), max_size=len(moved)))
    near = st.lists(st.integers(-(2**31), 2**31 - 1), min_size=len(moved), max_size=len(moved))
    bag.table.move(moved, codes, np.array(data.draw(near), dtype=np.int32))
    for batch in bag:
        of = own[batch]
        if form == "set":
            groups = of.reshape(-1, 4)
            assert (groups == groups[:, :1]).all()
            assert len(set(groups[:, 0])) == 3
    drawn = bag.draw_negatives(np.arange(len(own)))
    assert (own[drawn] != own).all()
    for count in range(1, len(counts) + 1):
        assert len(set(own[bag.draw_seeds(count)])) == count


@pytest.mark.parametrize("broken", [1, 3, 5])  # in the two calls that the hash learns from, or later
def test_a_fill_that_fails_changes_nothing(monkeypatch, broken):
    monkeypatch.setattr("bonlib.core.filling._LEARNED", 1)
    bag, calls = BagOfNegatives(labels, DIM, batch_size=24), []

    def embed(ids):
        calls.append(ids)
        rows = embeddings()[ids]
        return rows if len(calls) != broken else rows * float("nan")

    before = str(bag.state_dict())
    with pytest.raises(ValueError, match="NaN"):
        bag.fill(embed, at_once=60)
    assert str(bag.state_dict()) == before
    with pytest.raises(ValueError, match="at_once is 0"):
        bag.fill(embed, at_once=0)


def test_a_fill_that_fails_leaves_the_pass_where_it_was():
    bag, other = (BagOfNegatives(labels, DIM, batch_size=24, seed=3) for _ in range(2))
    passes = [iter(bag), iter(other)]
    assert [next(passes[0]) for _ in range(3)] == [next(passes[1]) for _ in range(3)]
    with pytest.raises(ValueError, match="NaN"):
        bag.fill(lambda ids: embeddings()[ids] * float("nan"))
    assert list(passes[0]) == list(passes[1])
    for each in (bag, other):
        each.set_epoch(0)
    assert (rest := list(bag)) == list(other)
    assert len(rest) == 10


@pytest.mark.parametrize("per_class", [None, 3])
def test_a_second_fill_forgets_what_the_first_saw(per_class):
    bag, fresh = filled(), BagOfNegatives(labels, DIM, batch_size=24)
    list(bag)  # draws shuffle the samples of a class
    for each in (bag, fresh):
        each.hasher = make_hasher("hyperplanes", DIM, fresh.bits)
        each.table = BucketTable(40, fresh.bits)
        each.fill(lambda ids: embeddings(9)[ids], per_class=per_class)
    np.testing.assert_allclose(bag.means, fresh.means, atol=0.02)  # sums in another order
    assert (bag.codes(np.arange(240)) == fresh.codes(np.arange(240))).mean() > 0.98


@pytest.mark.parametrize("unit", ["identity", "sample"])
def test_a_fill_asks_for_no_more_at_once_than_it_says_and_takes_arrays(unit):
    own, asked = np.repeat(np.arange(3), [500, 30, 7]), []
    rows = torch.randn(537, DIM, generator=torch.Generator().manual_seed(2))
    bag = BagOfNegatives(own, DIM, form="triplet", batch_size=3, unit=unit)
    bag.fill(lambda ids: asked.append(len(ids)) or rows[ids].numpy(), at_once=20)
    assert max(asked) <= 40
    for c in range(3):
        torch.testing.assert_close(bag.means[c], rows[own == c].mean(dim=0), atol=0.1, rtol=0)


def test_sketches_follow_the_usual_length_of_an_embedding():
    """Ten times as long embeddings of half of the identities: the others' sketches are brought to the new unit."""
    bag = filled()
    before = bag._means.sketches.rows.copy()
    some = np.flatnonzero(labels < 20)
    for _ in range(10):
        bag.update(some, embeddings()[some] * 8)
    assert bag.hasher.scale == 8
    untouched = np.arange(40) >= 20
    np.testing.assert_allclose(bag._means.sketches.rows[untouched], before[untouched] / 8, atol=0.51)
    loaded = BagOfNegatives(labels, DIM, **WIDE)
    loaded.load_state_dict(bag.state_dict())
    assert list(loaded) == list(bag)


def test_the_largest_numbers_are_taken():
    bag = BagOfNegatives(labels, DIM, **WIDE)
    bag.update(np.arange(24), torch.full((24, DIM), 3e38) * embeddings()[:24].sign())
    assert bag.stats()["filled"] > 0


@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99])
def test_a_slow_mean_arrives(momentum):
    """In eight bits a step of less than half a level would be none: the mean of an encoder that moved must follow."""
    labels = np.arange(40) // 4
    old, new = (
        torch.nn.functional.normalize(torch.randn(40, DIM, generator=torch.Generator().manual_seed(s))) for s in (0, 1)
    )
    bag = BagOfNegatives(labels, DIM, batch_size=8, momentum=momentum)
    bag.update(np.arange(40), old)
    for _ in range(1000):
        bag.update(np.arange(40), new)
    means = torch.stack([new[labels == c].mean(dim=0) for c in range(10)])
    level = 4 / 127 / DIM**0.5
    assert (bag.means - means).abs().max() <= 1.51 * level
