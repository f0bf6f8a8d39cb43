"""Measures against exact arithmetic: half precision, far origins, collapse, and ties, whose orders are enumerated."""

from fractions import Fraction
from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bonlib.datasets.images import ImageSet
from bonlib.training.metrics import evaluate, query_gallery_metrics, retrieval_metrics


def of_one_order(hits: list[bool], relevant: int) -> dict[str, Fraction]:
    """Measures of one ranking, by their definitions, in exact fractions."""
    precision = [Fraction(sum(hits[: i + 1]), i + 1) for i in range(len(hits))]
    measures = {f"recall@{k}": Fraction(any(hits[:k])) for k in (1, 2, 3)}
    measures["r_precision"] = Fraction(sum(hits[:relevant]), relevant)
    measures["map@r"] = sum((p for p, h in zip(precision[:relevant], hits, strict=False) if h), Fraction(0)) / relevant
    measures["map"] = sum((p for p, h in zip(precision, hits, strict=True) if h), Fraction(0)) / relevant
    return measures


def expected(points: list[tuple[int, ...]], labels: list[int]) -> dict[str, float]:
    """Means over all orders of tied samples, each order by its definition; integer points, so distances are exact."""
    answers = []
    for q, label in enumerate(labels):
        others = [i for i in range(len(labels)) if i != q]
        relevant = sum(labels[i] == label for i in others)
        if not relevant:
            continue
        by_distance: dict[int, list[bool]] = {}
        for i in others:
            distance = sum((a - b) ** 2 for a, b in zip(points[i], points[q], strict=True))
            by_distance.setdefault(distance, []).append(labels[i] == label)
        groups = [
            sorted(set(permutations(by_distance[d]))) for d in sorted(by_distance)
        ]  # distinct orders, equally likely
        orders = [of_one_order([hit for group in order for hit in group], relevant) for order in product(*groups)]
        answers.append({name: sum(order[name] for order in orders) / len(orders) for name in orders[0]})
    return {name: float(sum(answer[name] for answer in answers) / len(answers)) for name in answers[0]}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 2)), min_size=3, max_size=7),
    st.integers(0, 9),
)
def test_ties_are_the_exact_mean_over_their_orders(rows, seed):
    points, labels = [row[:2] for row in rows], [row[2] for row in rows]
    if len(set(labels)) == len(labels):
        return
    wanted = expected(points, labels)
    order = np.random.default_rng(seed).permutation(len(rows))
    x, y = torch.tensor(points, dtype=torch.float32)[order], torch.tensor(labels)[order]
    found = retrieval_metrics(x, y, ks=(1, 2, 3), chunk=2)
    assert found == pytest.approx({name: wanted[name] for name in found}, abs=1e-12)
    # The other protocol, with everything in both parts and the query itself left out by its camera.
    cameras = torch.arange(len(rows))
    counts = torch.bincount(y)[y] > 1
    other = query_gallery_metrics(
        x[counts], y[counts], x, y, query_cameras=cameras[counts], gallery_cameras=cameras, ks=(1, 2, 3), chunk=2
    )
    assert other.pop("queries") == 1
    assert other == pytest.approx({name: wanted[name] for name in other}, abs=1e-12)


def brute(embeddings: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Without ties: float64, differences taken directly, one query at a time."""
    x, y = embeddings.double().numpy(), labels.numpy()
    total: dict[str, list[float]] = {"recall@1": [], "r_precision": [], "map@r": []}
    for q in range(len(y)):
        distances = np.square(x - x[q]).sum(axis=1)
        distances[q] = np.inf
        relevant = int((y == y[q]).sum()) - 1
        hits = (y == y[q])[np.argsort(distances, kind="stable")][:relevant]
        total["recall@1"].append(float(hits[0]))
        total["r_precision"].append(hits.mean())
        total["map@r"].append(float((np.cumsum(hits) / np.arange(1, relevant + 1) * hits).sum() / relevant))
    return {name: float(np.mean(values)) for name, values in total.items()}


def clusters(
    seed: int = 0, noise: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(60).repeat_interleave(5)
    centres = torch.randn(60, 8, generator=generator, dtype=torch.float64)
    return (centres[labels] + noise * torch.randn(300, 8, generator=generator, dtype=torch.float64)).to(dtype), labels


CASES = {
    "plain": lambda x: x.float(),
    "far origin": lambda x: (x * 1e-3 + 100).float(),
    "very far origin": lambda x: x + 1e7,
    "nearly collapsed": lambda x: (1 + 1e-5 * x).float(),
    "collapsed but for the last bits": lambda x: 1 + 1e-11 * x,
    "tiny": lambda x: (1e-18 * x).float(),
    "huge": lambda x: (1e15 * x).float(),
    "one far outlier": lambda x: torch.cat([x[:-1], x[-1:] * 1e6]).float(),
    "unit": lambda x: torch.nn.functional.normalize(x, dim=1).float(),
}


@pytest.mark.parametrize("case", CASES)
def test_any_scale_and_origin_gives_the_value_of_float64(case):
    x, labels = clusters()
    x = CASES[case](x)
    found = retrieval_metrics(x, labels, ks=(1,))
    assert found == pytest.approx(brute(x, labels), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_the_value_of_the_same_numbers_in_float64(dtype):
    x, labels = clusters(dtype=dtype)
    assert retrieval_metrics(x, labels) == retrieval_metrics(x.double(), labels)


def test_collapse_scores_as_chance_does_whatever_the_order():
    labels = torch.arange(20).repeat_interleave(5)
    for point in (torch.ones(100, 6), torch.zeros(100, 6), torch.full((100, 6), 0.1)):
        found = retrieval_metrics(point, labels, ks=(1, 4))
        assert found["recall@1"] == pytest.approx(4 / 99)
        assert found["r_precision"] == pytest.approx(4 / 99)
        shuffled = np.random.default_rng(0).permutation(100)
        assert retrieval_metrics(point, labels[shuffled], ks=(1, 4)) == pytest.approx(found)
    gallery = query_gallery_metrics(torch.ones(4, 2), torch.arange(4), torch.ones(8, 2), torch.arange(8) // 2, ks=(1,))
    assert gallery["recall@1"] == pytest.approx(2 / 8)


@pytest.mark.parametrize("count", [2, 4, 7, 49])
def test_perfect_is_one_exactly(count):
    x = torch.eye(3).repeat_interleave(count, 0)
    labels = torch.arange(3).repeat_interleave(count)
    assert set(retrieval_metrics(x, labels).values()) == {1.0}
    assert set(query_gallery_metrics(x, labels, x, labels).values()) == {1.0}


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 1.0]), st.integers(1, 12))
def test_every_value_lies_in_0_to_1(seed, noise, chunk):
    x, labels = clusters(seed, noise)
    x = x.round(decimals=seed % 3)  # many ties
    found = retrieval_metrics(x, labels, chunk=chunk * 25)
    assert all(0 <= value <= 1 for value in found.values())
    values = [found[f"recall@{k}"] for k in (1, 2, 4, 8)]
    assert values == sorted(values)


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        ([[0.0], [1.0], [10.0], [11.0], [float("nan")]], [0, 0, 1, 1, 1], "embeddings has 1 rows with NaN"),
        ([[0.0], [float("inf")]], [0, 0], "embeddings has 1 rows with NaN or infinite"),
        ([[0], [1]], [0, 0], "embeddings has dtype torch.int64"),
        ([[[0.0]]], [0], "embeddings has shape"),
        ([], [], "embeddings has shape"),
        ([[0.0], [1.0]], [0.0, 0.0], "labels has dtype float32; give integers"),
        ([[0.0], [1.0]], [[0], [0]], "labels shape"),
        ([[0.0], [1.0]], [0, 1], "no class with two samples"),
    ],
)
def test_what_update_would_refuse_is_refused(embeddings, labels, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(torch.tensor(embeddings), torch.tensor(labels))
    if "two samples" not in message and len(embeddings):
        x, y = torch.tensor(embeddings), torch.tensor(labels)
        good = torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)
        for queries, gallery in (((x, y), good), (good, (x, y))):
            with pytest.raises(ValueError, match=message.split(" has ")[-1]):
                query_gallery_metrics(*queries, *gallery)


def test_empty_parts_are_named():
    some, none = (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)), (torch.zeros(0, 3), torch.zeros(0).long())
    with pytest.raises(ValueError, match="queries is empty; a test split needs images of both parts"):
        query_gallery_metrics(*none, *some)
    with pytest.raises(ValueError, match="gallery is empty; a test split needs"):
        query_gallery_metrics(*some, *none)
    with pytest.raises(ValueError, match="ks is 0; give at least 1"):
        retrieval_metrics(*some, ks=(0,))


def test_queries_need_no_cameras_and_an_empty_set_is_named():
    images, labels = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1), torch.tensor([0, 1, 0, 1, 1])
    query = {"query": np.array([True, True, False, False, False])}
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 1, bias=False))
    found = evaluate(encoder, ImageSet(images, labels, ["a", "b"], query), ks=(1,))
    assert found["recall@1"] == 0.5  # of 0 the nearest is 2, its own; of 1 it is 2, another's
    with pytest.raises(ValueError, match="no samples to embed; give at least one"):
        evaluate(encoder, torch.utils.data.TensorDataset(images[:0], labels[:0]))
