"""Streams and the class index against sorting, counting and chance."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonlib.bag import BagOfNegatives
from bonlib.core.kernels import grouped, new_streams, next_anchors
from bonlib.core.layout import checked_labels
from bonlib.core.miner import RandomSampling
from bonlib.core.permutation import permuted


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3000), st.integers(0, 2**62))
def test_a_permutation_takes_each_number_to_another(n, key):
    assert sorted(permuted(i, n, key) for i in range(n)) == list(range(n))


def test_permutations_beyond_the_reach_of_32_bits_stay_inside():
    drawn = [permuted(i, 10**11, 5) for i in range(1000)]
    assert len(set(drawn)) == 1000
    assert 0 <= min(drawn) < 10**9
    assert 0.99 * 10**11 < max(drawn) < 10**11


def test_all_orders_of_few_are_equally_likely():
    rng = np.random.default_rng(0)
    orders = {order: 0 for order in permutations(range(4))}
    for key in rng.integers(0, 2**62, 24_000):
        orders[tuple(permuted(i, 4, key) for i in range(4))] += 1
    chi_square = sum((count - 1000) ** 2 / 1000 for count in orders.values())
    assert chi_square < 49.7  # 99.9 % point with 23 degrees of freedom


def test_neighbours_in_the_order_are_independent():
    n, keys = 1000, np.random.default_rng(1).integers(0, 2**62, 20)
    orders = np.array([[permuted(i, n, key) for i in range(n)] for key in keys])
    steps = (np.diff(orders, axis=1) % n) // 100  # differences of neighbours, by tenths
    observed = np.bincount(steps.ravel(), minlength=10)
    expected = observed.sum() / 10
    assert ((observed - expected) ** 2 / expected).sum() < 27.9  # 99.9 % point with 9 degrees of freedom


def test_a_stream_gives_all_before_any_twice_and_then_another_order():
    streams, rng = new_streams(), np.random.default_rng(0)
    first, second = (next_anchors(500, 500, streams, rng).tolist() for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(500))
    assert first != second


@given(st.lists(st.integers(-(2**40), 2**40), min_size=2, max_size=50), st.booleans())
def test_labels_are_numbered_as_numpy_unique_does(values, dense):
    labels = np.array(values) % 7 - 3 if dense else np.array(values)
    if len(set(labels.tolist())) < 2:
        return
    classes, class_of = checked_labels(labels)
    expected, inverse = np.unique(labels, return_inverse=True)
    assert classes.tolist() == expected.tolist()
    assert class_of.tolist() == inverse.tolist()
    _, first, count, order, _ = grouped(class_of, len(classes))
    assert order.tolist() == np.argsort(class_of, kind="stable").tolist()
    assert count.tolist() == np.bincount(class_of).tolist()
    assert [labels[order[i]] for i in first] == expected.tolist()


def test_labels_of_the_smallest_integers_do_not_overflow():
    miner = RandomSampling(np.array([-128, 127, 127, -128, 5], dtype=np.int8), 4, batch_size=4, per_class=2)
    assert miner.class_of.tolist() == [0, 2, 2, 0, 1]
    assert miner.classes.tolist() == [-128, 5, 127]


@pytest.mark.parametrize("make", [BagOfNegatives, BagOfNegatives.as_published])
def test_memory_is_below_32_bytes_a_sample_at_ten_samples_a_class(make):
    bag = make(np.arange(1_000_000) // 10, 64)
    bag.table.move(np.arange(bag.num_entries), np.random.default_rng(0).integers(0, 2**bag.bits, bag.num_entries))
    assert bag.nbytes <= 32 * 1_000_000
    assert "object" not in {value.dtype.name for value in vars(bag).values() if isinstance(value, np.ndarray)}
