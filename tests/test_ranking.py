"""The search in float32 against rankings of all distances in float64, ties and collapsed clouds included."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bonlib.training.metrics import recall_by_gallery, retrieval_metrics
from bonlib.training.ranking import Points, nearest_hits, ranked, squared_distances


def clouds(kind: str, n: int, dim: int, seed: int) -> torch.Tensor:
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return {
        "plain": rows,
        "unit": torch.nn.functional.normalize(rows, dim=1),
        "collapsed": 1 + 1e-6 * rows,  # nearer to each other than float32 can tell
        "twins": rows[torch.arange(n) // 3],
        "grid": rows.round(),  # many ties
        "far": torch.cat([rows[:-1], 1e6 * rows[-1:]]),
        "one point": torch.zeros(n, dim),
    }[kind]


@pytest.mark.parametrize("kind", ["plain", "unit", "collapsed", "twins", "grid", "far", "one point"])
@settings(deadline=None, max_examples=12)
@given(n=st.integers(4, 120), dim=st.integers(1, 24), depth=st.integers(1, 30), seed=st.integers(0, 999))
def test_hits_are_those_of_all_distances(kind, n, dim, depth, seed):
    points = Points.of(clouds(kind, n, dim, seed))
    labels = torch.from_numpy(np.random.default_rng(seed).integers(0, max(n // 4, 2), n))
    queries, depth = torch.arange(0, n, 2), min(depth, n - 1)
    for part, found in nearest_hits(points, labels, queries, depth, chunk=16):
        ((_, whole),) = squared_distances(points, points, part, len(part))
        whole[torch.arange(len(part)), part] = torch.inf
        expected, _ = ranked(
            whole, labels[part, None] == labels, depth, points.norms[part], points.norms.expand_as(whole)
        )
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)


def test_fewer_queries_are_the_same_every_time_against_the_whole_gallery():
    rows, labels = clouds("unit", 300, 8, 0), torch.arange(300) // 3
    few = retrieval_metrics(rows, labels, ks=(1,), most=50)
    assert few == retrieval_metrics(rows, labels, ks=(1,), most=50)
    chosen = np.sort(np.random.default_rng(0).permutation(300)[:50])
    nearest = torch.cdist(rows[chosen], rows)
    nearest[torch.arange(50), torch.from_numpy(chosen)] = torch.inf
    hits = (labels[nearest.argmin(dim=1)] == labels[chosen]).double().mean()
    assert few["recall@1"] == pytest.approx(float(hits))
    assert retrieval_metrics(rows, labels, most=300) == retrieval_metrics(rows, labels)


def test_a_smaller_gallery_is_part_of_a_larger_one_and_easier():
    labels = torch.from_numpy(np.random.default_rng(1).permutation(np.repeat(np.arange(200), 4)))
    centres = clouds("plain", 200, 6, 2)
    rows = centres[labels] + 0.6 * clouds("plain", 800, 6, 3)
    found = recall_by_gallery(rows, labels, sizes=(40, 200, 5000), most=10_000)
    assert [entry["gallery"] for entry in found] == [40, 200, 800]
    assert found[-1]["recall@1"] == retrieval_metrics(rows, labels)["recall@1"]
    assert found[0]["recall@1"] > found[1]["recall@1"] > found[2]["recall@1"]
    order = np.random.default_rng(0).permutation(200)
    alone = torch.cat([labels, torch.arange(1000, 6000)])  # five thousand that have no other of their own
    many = recall_by_gallery(clouds("plain", len(alone), 6, 4), alone, sizes=(1000,), most=10)
    assert [entry["gallery"] for entry in many] == [1000, 5800]
    assert [e["gallery"] for e in recall_by_gallery(rows[:6], torch.tensor([0, 0, 1, 2, 3, 4]), sizes=(1,))] == [6]
    kept = order[labels] < 10  # the first ten identities of the order, forty samples
    assert found[0]["map@r"] == retrieval_metrics(rows[kept], labels[kept])["map@r"]
