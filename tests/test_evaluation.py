"""Metrics against pytorch-metric-learning and brute force."""

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import average_precision_score

from bonlib.bag import BagOfNegatives
from bonlib.core.miner import RandomSampling
from bonlib.datasets.images import ImageSet
from bonlib.datasets.strings import TextSet
from bonlib.study.analysis import (
    bag_quality,
    drawn_distances,
    hash_everything,
    look_alikes,
    nearest_images,
    nearest_negatives,
    zero_loss_shares,
)
from bonlib.training.embed import embed
from bonlib.training.metrics import evaluate, query_gallery_metrics, retrieval_metrics


def clusters(counts, seed=0, dim=6, noise=0.8):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    centres = torch.randn(len(counts), dim, generator=generator)
    return centres[labels] + noise * torch.randn(len(labels), dim, generator=generator), labels


@pytest.mark.parametrize("counts", [[5] * 20, [2, 3, 9, 30, 4, 1, 7, 1]])
def test_metrics_equal_those_of_pytorch_metric_learning(counts):
    embeddings, labels = clusters(counts)
    ours = retrieval_metrics(embeddings, labels, chunk=7)
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    # Their knn depth for these metrics is the size of the largest class.
    theirs = AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu")).get_accuracy(
        embeddings, labels, embeddings, labels, ref_includes_query=True
    )
    assert [ours["recall@1"], ours["r_precision"], ours["map@r"]] == pytest.approx([theirs[name] for name in names])


class Points(torch.utils.data.Dataset):
    """A dataset that is not in memory."""

    def __init__(self, embeddings, labels):
        self.embeddings, self.labels = embeddings, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.embeddings[index], int(self.labels[index])


def test_evaluation_restores_the_mode_and_takes_any_dataset():
    embeddings, labels = clusters([4] * 10)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Dropout(0.9))
    dataset = Points(embeddings, labels)
    found, found_labels = embed(encoder, dataset, batch_size=7)
    assert torch.allclose(found, encoder[0](embeddings), atol=1e-5)  # without dropout
    some = np.array([5, 3, 38])
    assert torch.equal(embed(encoder, dataset, indices=some)[1], labels[some])
    assert torch.allclose(embed(encoder, dataset, indices=some)[0], found[some], atol=1e-5)
    assert torch.equal(found_labels, labels)
    assert encoder.training
    assert evaluate(encoder, dataset) == pytest.approx(retrieval_metrics(encoder[0](embeddings).detach(), labels))


def test_bag_quality_by_brute_force():
    embeddings, labels = clusters([6] * 40, noise=0.4)
    bag = BagOfNegatives.as_published(labels, dim=6, bits=3, batch_size=12)
    hash_everything(bag, embeddings, passes=3)
    ours = bag_quality(bag, embeddings, k=5, anchors=240)
    found, chance = [], []
    for i in range(240):
        if len(members := bag.negatives(i)):
            found.append(len(np.intersect1d(nearest_negatives(bag, embeddings, i, 5), members)) / 5)
            chance.append(len(members) / (240 - 6))
    assert ours["anchors"] == len(found)
    assert ours["found"] == pytest.approx(np.mean(found))
    assert ours["found_by_chance"] == pytest.approx(np.mean(chance))
    assert ours["negatives"] == pytest.approx(np.mean(chance) * (240 - 6))
    assert ours["empty"] == pytest.approx(1 - len(found) / 240)
    assert ours["found"] > 2 * ours["found_by_chance"]
    assert ours["relative_rank"] < 0.35


def test_drawn_distances_are_to_the_own_class_and_to_others():
    """Classes on points that are farther apart than samples of one: each distance says what it is to."""
    labels = np.repeat(np.arange(30), 5)
    embeddings = 10.0 * torch.arange(30).repeat_interleave(5)[:, None] + torch.arange(5).repeat(30)[:, None]
    table = drawn_distances(RandomSampling(labels, 1, batch_size=20, per_class=4, seed=3), embeddings, 400)
    assert table.shape == (400, 2)
    assert table["positive"].between(1, 4).all()  # never the anchor itself
    assert (table["negative"] >= 6).all()


def test_bag_quality_refuses_an_empty_table():
    with pytest.raises(ValueError, match="Every bag is empty"):
        bag_quality(BagOfNegatives([0, 0, 1, 1], dim=2, bits=1, batch_size=8), torch.zeros(4, 2))


def test_zero_loss_shares_of_identities_far_apart_and_on_one_point():
    labels = torch.arange(50).repeat_interleave(4)
    far = torch.nn.functional.one_hot(labels).float()  # other classes are sqrt(2) away, the own at 0
    assert (zero_loss_shares(far, labels, [5, 50], anchors=50).drop(columns="identities") == 1).all(axis=None)
    assert (zero_loss_shares(far * 0, labels, [5, 50], anchors=50).drop(columns="identities") == 0).all(axis=None)
    mixed, mixed_labels = clusters([5] * 60, noise=0.5)
    shares = zero_loss_shares(torch.nn.functional.normalize(mixed), mixed_labels, [60], anchors=200)
    assert (shares["hardest"] <= shares["batch"]).all()
    assert (shares["batch"] < shares["random"]).all()


def test_identities_of_one_sample_are_no_anchors_of_triplets():
    points = torch.cat([torch.eye(2).repeat_interleave(2, 0), torch.full((396, 2), 9.0)])  # two pairs, apart
    labels = torch.cat([torch.tensor([0, 0, 1, 1]), torch.arange(2, 398)])
    assert (zero_loss_shares(points, labels, [398]).drop(columns="identities") == 1).all(axis=None)


def brute_force_query_gallery(distances, query_labels, gallery_labels, query_cameras, gallery_cameras, ks):
    """One query after the other, by the words of the protocol; average precision from scikit-learn."""
    first, precisions, r_precisions, at_r = [], [], [], []
    for row, label, camera in zip(distances, query_labels, query_cameras, strict=True):
        kept = [
            j
            for j in np.argsort(row, kind="stable")
            if gallery_labels[j] != -1
            and not (gallery_labels[j] == label and gallery_cameras[j] == camera and camera != -1)
        ]
        right = [gallery_labels[j] == label for j in kept]
        if not any(right):
            continue
        first.append(right.index(True) + 1)
        precisions.append(average_precision_score(right, -np.arange(len(right))))
        r = sum(right)
        r_precisions.append(np.mean(right[:r]))
        at_r.append(sum(np.mean(right[: i + 1]) for i in range(r) if right[i]) / r)
    scores = {f"recall@{k}": np.mean([rank <= k for rank in first]) for k in ks}
    scores |= {"map": np.mean(precisions), "map@r": np.mean(at_r), "r_precision": np.mean(r_precisions)}
    return scores | {"queries": len(first) / len(query_labels)}


@pytest.mark.parametrize("seed", range(12))
def test_cmc_and_map_equal_brute_force_with_cameras_junk_and_missing_matches(seed):
    rng = np.random.default_rng(seed)
    queries, gallery = torch.randn(40, 4), torch.randn(90, 4)
    query_labels, gallery_labels = rng.integers(0, 15, 40), rng.integers(-1, 12, 90)  # -1 junk; 12 to 14 have no match
    query_cameras, gallery_cameras = rng.integers(-1, 3, 40), rng.integers(-1, 3, 90)
    ours = query_gallery_metrics(
        queries, torch.from_numpy(query_labels), gallery, torch.from_numpy(gallery_labels),
        query_cameras=torch.from_numpy(query_cameras), gallery_cameras=torch.from_numpy(gallery_cameras), chunk=7,
    )  # fmt: skip
    distances = torch.cdist(queries.double(), gallery.double()).numpy()
    expected = brute_force_query_gallery(
        distances, query_labels, gallery_labels, query_cameras, gallery_cameras, (1, 2, 4, 8)
    )
    assert ours == pytest.approx(expected)
    assert 0 < expected["queries"] < 1


def test_without_cameras_all_of_the_gallery_counts():
    embeddings, labels = clusters([4] * 12)
    ours = query_gallery_metrics(embeddings[::2], labels[::2], embeddings[1::2], labels[1::2])
    unknown = np.full(24, -1)
    distances = torch.cdist(embeddings[::2], embeddings[1::2]).numpy()
    expected = brute_force_query_gallery(
        distances, labels[::2].numpy(), labels[1::2].numpy(), unknown, unknown, (1, 2, 4, 8)
    )
    assert ours == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_labels": torch.zeros(1, dtype=torch.int64)}, "queries has length 2 and query_labels shape"),
        ({"query_cameras": torch.zeros(2, dtype=torch.int64)}, "Only one of query_cameras"),
        ({"gallery_labels": torch.tensor([5, -1, 6])}, "No query has a match"),
    ],
)
def test_bad_queries_and_galleries_are_refused(change, message):
    labels = torch.tensor([0, 1, 0])
    given = {"queries": torch.zeros(2, 3), "query_labels": labels[:2], "gallery": torch.zeros(3, 3)}
    with pytest.raises(ValueError, match=message):
        query_gallery_metrics(**given | {"gallery_labels": labels} | change)


def test_a_data_set_with_queries_is_evaluated_from_them():
    embeddings, labels = clusters([6] * 8)
    data = ImageSet(torch.zeros(48, 1, 8, 8, dtype=torch.uint8), labels, [str(i) for i in range(8)])
    data.images = (embeddings.clamp(-3, 3) * 40 + 128).to(torch.uint8)[:, :, None, None]  # six pixels stand for them
    query, camera = torch.arange(48) % 6 == 0, torch.arange(48) % 2
    data.attributes = {"query": query.numpy(), "camera": camera.numpy()}
    x = data.images.float().flatten(1) / 255
    assert evaluate(torch.nn.Flatten(), data) == query_gallery_metrics(
        x[query], labels[query], x[~query], labels[~query], query_cameras=camera[query], gallery_cameras=camera[~query]
    )
    del data.attributes["query"]
    assert evaluate(torch.nn.Flatten(), data) == retrieval_metrics(x, labels)


def test_each_layer_gets_its_own_mode_back():
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.5))
    encoder.train()
    encoder[1].eval()  # frozen by its owner
    embeddings, labels = clusters([3] * 4)
    data = torch.utils.data.TensorDataset(embeddings, labels)
    embed(encoder, data)
    assert [module.training for module in encoder] == [True, False, True]
    assert encoder.training


def test_the_nearest_images_are_those_of_brute_force_without_the_query():
    embeddings, _ = clusters([4] * 10)
    queries = np.array([3, 17, 39])
    distances = torch.cdist(embeddings.double(), embeddings.double()).fill_diagonal_(torch.inf)
    assert (nearest_images(embeddings, queries, k=5) == distances[queries].argsort(dim=1)[:, :5].numpy()).all()
    all_others = nearest_images(embeddings, queries, k=100)
    assert all_others.shape == (3, 39)
    assert not (all_others == queries[:, None]).any()


def test_the_nearest_negatives_are_no_more_than_there_are():
    bag = BagOfNegatives([0, 0, 0, 1, 1, 2], 8, form="triplet", batch_size=3)
    found = nearest_negatives(bag, torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), 0, 10)
    assert sorted(found) == [3, 4, 5]


def test_look_alikes_pass_over_identities_without_a_sample():
    embeddings, labels = clusters([4] * 30, noise=0.2)
    dataset = TextSet([str(i) for i in range(120)], labels * 2, [str(c) for c in range(61)])
    same = TextSet([str(i) for i in range(120)], labels, [str(c) for c in range(30)])
    rows, expected = (look_alikes(one, embeddings, rows=3, k=4) for one in (dataset, same))
    assert [row.tolist() for row in rows] == [row.tolist() for row in expected]


def test_look_alikes_are_the_nearest_identities_by_their_means():
    embeddings, labels = clusters([4] * 30, noise=0.2)
    dataset = TextSet([str(i) for i in range(120)], labels, [str(c) for c in range(30)])
    means = torch.stack([embeddings[labels == c].mean(dim=0) for c in range(30)])
    apart = torch.cdist(means, means).fill_diagonal_(-1)
    closest = apart.topk(2, largest=False).values[:, 1].argsort()[:3].tolist()
    rows = look_alikes(dataset, embeddings, rows=3, k=4)
    assert {int(labels[row[0]]) for row in rows} == set(closest)
    for row in rows:
        c = int(labels[row[0]])
        assert labels[row].tolist() == apart[c].topk(5, largest=False).indices.tolist()


def test_embeddings_can_be_trained_on_and_changed():
    data = ImageSet(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]), ["a", "b"])
    embeddings, _ = embed(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)), data)
    probe = torch.nn.Linear(3, 2)
    probe(embeddings).sum().backward()
    assert probe.weight.grad is not None
    embeddings.div_(2)


def test_a_dataset_that_has_a_batch_of_another_kind_is_read_sample_by_sample():
    class Photos(torch.utils.data.Dataset):
        batch = 32

        def __len__(self):
            return 5

        def __getitem__(self, i):
            return torch.full((1, 2, 2), float(i)), i

    embeddings, labels = embed(torch.nn.Flatten(), Photos())
    assert embeddings[:, 0].tolist() == labels.tolist() == list(range(5))
