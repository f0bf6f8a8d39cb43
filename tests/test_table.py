"""The table against a model of dicts and sets."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bonlib.core.table import BucketTable

SAMPLES, BITS = 40, 3
moves = st.lists(
    st.lists(st.tuples(st.integers(0, SAMPLES - 1), st.integers(0, 2**BITS - 1)), min_size=1, max_size=30), max_size=15
)


def play(table: BucketTable, batches) -> dict[int, int]:
    """Move batches into the table and into a model, sample → code."""
    model: dict[int, int] = {}
    for batch in batches:
        ids, codes = zip(*batch, strict=True)
        table.move(ids, codes)
        model.update(batch)
    return model


def assert_equal(table: BucketTable, model: dict[int, int]) -> None:
    buckets = {code: {i for i, c in model.items() if c == code} for code in range(2**table.bits)}
    for code, members in buckets.items():
        found = table.bucket(code).tolist()
        assert set(found) == members
        assert len(found) == len(members)  # none twice
    assert table.sizes().tolist() == [len(buckets[code]) for code in range(2**table.bits)]
    assert table.codes(np.arange(table.num_samples)).tolist() == [model.get(i, -1) for i in range(table.num_samples)]
    assert table.filled == len(model)


@settings(deadline=None)
@given(moves)
def test_each_seen_sample_is_in_exactly_one_bucket(batches):
    table = BucketTable(SAMPLES, BITS)
    assert_equal(table, play(table, batches))


@settings(deadline=None, max_examples=30)
@given(moves, moves)
def test_a_loaded_state_goes_on_as_the_saved_table(before, after):
    table, loaded = BucketTable(SAMPLES, BITS), BucketTable(SAMPLES, BITS)
    play(table, before)
    loaded.load_state_dict(table.state_dict())
    play(table, after)
    play(loaded, after)
    assert [table.bucket(c).tolist() for c in range(2**BITS)] == [loaded.bucket(c).tolist() for c in range(2**BITS)]


def test_long_churn_keeps_every_sample_and_bounds_the_memory():
    rng = np.random.default_rng(0)
    table, model = BucketTable(20_000, 8), np.full(20_000, -1)
    for _ in range(400):
        ids = rng.choice(20_000, size=500, replace=False)
        codes = (rng.normal(128, 30, 500).clip(0, 255)).astype(int)  # skewed, so that slabs grow and are left
        table.move(ids, codes)
        model[ids] = codes
    assert (table.codes(np.arange(20_000)) == model).all()
    assert (table.sizes() == np.bincount(model[model >= 0], minlength=256)).all()
    assert (
        np.sort(np.concatenate([table.bucket(c) for c in range(256)])).tolist() == np.flatnonzero(model >= 0).tolist()
    )
    assert table.nbytes < 30 * 20_000


@pytest.mark.parametrize(
    ("ids", "codes", "message"),
    [
        ([0, 5], [0, 0], "ids holds values from 0 to 5; allowed are 0 to 4"),
        ([-1], [0], "ids holds values from -1"),
        ([0], [4], "codes holds values from 4 to 4; allowed are 0 to 3"),
        ([0, 1], [1], "ids has length 2 and codes 1"),
        ([0.5], [1], "integers"),
        ([[0]], [1], "1-D"),
    ],
)
def test_bad_moves_are_refused_and_change_nothing(ids, codes, message):
    table = BucketTable(5, 2)
    table.move([0, 1, 2], [3, 3, 1])
    with pytest.raises(ValueError, match=message):
        table.move(ids, codes)
    assert_equal(table, {0: 3, 1: 3, 2: 1})


@pytest.mark.parametrize(("samples", "bits"), [(0, 3), (5, 0), (5, 25)])
def test_bad_sizes_are_refused(samples, bits):
    with pytest.raises(ValueError, match="allowed are"):
        BucketTable(samples, bits)


def test_a_damaged_or_foreign_state_is_refused():
    table = BucketTable(5, 2)
    table.move([0, 1], [3, 1])
    good = table.state_dict()
    with pytest.raises(ValueError, match="bits=2, this table has 3"):
        BucketTable(5, 3).load_state_dict(good)
    with pytest.raises(ValueError, match="two buckets"):
        table.load_state_dict(good | {"members": torch.tensor([1, 1])})
    with pytest.raises(ValueError, match="do not add up"):
        table.load_state_dict(good | {"members": torch.tensor([1])})
    assert_equal(table, {0: 3, 1: 1})
