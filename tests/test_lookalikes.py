"""Identities that may be one and samples that may be another's, against exact search and what was planted."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bonlib.bag import BagOfNegatives
from bonlib.lookalikes import lookalikes, misfits, nearest_identities

DIM = 16


def filled(labels, embeddings, **options):
    bag = BagOfNegatives(labels, DIM, **({"batch_size": 8, "per_class": 2} | options))
    bag.fill(lambda ids: embeddings[ids])
    return bag


def groups(classes=300, samples=6, scatter=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(samples)
    centres = torch.randn(classes, DIM, generator=generator)
    return labels, centres[labels] + scatter * torch.randn(len(labels), DIM, generator=generator)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 12), st.booleans())
def test_with_room_for_all_identities_the_search_is_exact(seed, k, leave_out):
    labels, embeddings = groups(40, 3, seed=seed)
    bag = filled(labels, embeddings, bits=2, pool=64)
    queries = torch.randn(10, DIM, generator=torch.Generator().manual_seed(seed + 1))
    own = np.random.default_rng(seed).integers(0, 40, 10) if leave_out else None
    found, apart = nearest_identities(bag, queries, k, without=own)
    exact = (queries.double()[:, None] - bag.means.double()).square().sum(dim=2).sqrt()
    if leave_out:
        exact[torch.arange(10), torch.from_numpy(own)] = torch.inf
    expected = exact.sort(dim=1)
    assert np.allclose(apart, expected.values[:, :k], atol=1e-5)
    assert np.allclose(np.take_along_axis(exact.numpy(), found, axis=1), expected.values[:, :k], atol=1e-5)


def test_what_is_remembered_of_an_identity_is_its_mean():
    labels, embeddings = groups()
    bag = filled(labels, embeddings)
    means = torch.stack([embeddings[labels == c].mean(dim=0) for c in range(300)])
    # Eight bits for four times the usual entry to each side: rounded by half a step, cut beyond.
    assert (bag.means - means.clamp(-4, 4)).abs().max() < 0.51 * 4 / 127


def test_identities_that_were_split_in_two_come_first_with_a_ratio_of_one():
    labels, embeddings = groups(samples=12)
    split = labels.clone()
    chosen = torch.arange(0, 300, 20)
    for c in chosen:
        split[(labels == c).nonzero()[:5, 0]] = 1000 + c  # five samples under another name
    table = lookalikes(filled(split, embeddings), embeddings, top=len(chosen))
    assert {tuple(pair) for pair in table[["first", "second"]].to_numpy()} == {(int(c), 1000 + int(c)) for c in chosen}
    assert table["ratio"].is_monotonic_increasing
    assert table["ratio"].median() == pytest.approx(1, abs=0.25)
    assert (table["first_size"] == 7).all()
    assert (table["second_size"] == 5).all()
    for row in table.itertuples():
        assert split[row.first_sample] == row.first
        other = embeddings[split == row.second].mean(dim=0)
        mine = (split == row.first).nonzero()[:, 0]
        assert row.first_sample == int(mine[(embeddings[mine] - other).norm(dim=1).argmin()])


def test_samples_under_a_wrong_label_come_first_by_a_formula_worked_out_one_by_one():
    labels, embeddings = groups()
    wrong = np.random.default_rng(1).choice(len(labels), 60, replace=False)
    given_labels = labels.clone()
    given_labels[wrong] = torch.from_numpy(np.random.default_rng(2).permutation(given_labels[wrong].numpy()))
    changed = set(np.flatnonzero((given_labels != labels).numpy()))
    bag = filled(given_labels, embeddings, pool=300, bits=2)
    table = misfits(bag, embeddings, top=len(changed))
    assert len(set(table["sample"]) & changed) > 0.9 * len(changed)
    for row in table.iloc[:10].itertuples():
        others = (given_labels == row.label).nonzero()[:, 0]
        others = others[others != row.sample]
        rest = (embeddings[row.sample] - embeddings[others].mean(dim=0)).norm()
        near = (given_labels == row.nearest).nonzero()[:, 0]
        apart = (embeddings[row.sample] - embeddings[near].mean(dim=0)).norm()
        assert row.own_distance == pytest.approx(float(rest), rel=1e-4)
        assert row.distance == pytest.approx(float(apart), rel=1e-4)
        corrected = float(rest / apart) * ((1 + 1 / len(near)) / (1 + 1 / len(others))) ** 0.5
        assert row.ratio == pytest.approx(corrected, rel=1e-4)
        assert all(
            (embeddings[row.sample] - embeddings[given_labels == c].mean(dim=0)).norm() >= apart - 1e-5
            for c in given_labels.unique()
            if c != row.label
        )


def test_an_identity_of_one_sample_is_no_misfit_and_has_the_usual_scatter():
    labels, embeddings = groups(30, 4)
    labels = torch.cat([labels, torch.tensor([30, 31])])
    twice = torch.randn(1, DIM, generator=torch.Generator().manual_seed(5)) * 3
    embeddings = torch.cat([embeddings, twice, twice + 0.01])
    bag = filled(labels, embeddings)
    assert not {120, 121} & set(misfits(bag, embeddings)["sample"])
    first = lookalikes(bag, embeddings).iloc[0]
    assert (first["first"], first["second"]) == (30, 31)
    assert np.isfinite(first["ratio"])


def test_looking_changes_no_draw():
    labels, embeddings = groups()
    bags = [filled(labels, embeddings) for _ in range(2)]
    lookalikes(bags[0], embeddings)
    misfits(bags[0], embeddings)
    bags[0].negatives(0, k=3)
    bags[0].candidates(0)
    assert next(iter(bags[0])) == next(iter(bags[1]))


def test_what_cannot_be_is_refused():
    labels, embeddings = groups(20, 4)
    bag = filled(labels, embeddings)
    with pytest.raises(ValueError, match="pool 0"):
        nearest_identities(BagOfNegatives.as_published(labels, DIM, batch_size=8), embeddings)
    with pytest.raises(ValueError, match="k is 65"):
        nearest_identities(bag, embeddings, 65)
    with pytest.raises(ValueError, match="without"):
        nearest_identities(bag, embeddings[:3], without=[0, 1, 20])
    with pytest.raises(ValueError, match=r"means has shape \(3, 16\)"):
        nearest_identities(bag, embeddings, means=embeddings[:3])
    for look in (lookalikes, misfits):
        with pytest.raises(ValueError, match="embeddings has length 79"):
            look(bag, embeddings[:-1])
        with pytest.raises(ValueError, match=r"codes of 0 of 20 entries; call bag.fill"):
            look(BagOfNegatives(labels, DIM, batch_size=8), embeddings)
    alone = filled(np.arange(80), embeddings, form="triplet", batch_size=3)
    with pytest.raises(ValueError, match="one sample for each identity"):
        lookalikes(alone, embeddings)


def test_near_duplicates_are_told_apart_far_from_the_origin():
    labels, embeddings = groups(60, 8, scatter=1e-3)
    embeddings = embeddings + 30
    table = lookalikes(filled(labels, embeddings), embeddings, top=20)
    means = torch.stack([embeddings[labels == c].double().mean(dim=0) for c in range(60)])
    for row in table.itertuples():
        exact = float((means[row.first] - means[row.second]).norm())
        assert row.distance == pytest.approx(exact, rel=1e-3)


def test_a_small_pool_is_searched_whole_by_default():
    labels, embeddings = groups(20, 4)
    assert nearest_identities(filled(labels, embeddings, pool=4), embeddings)[0].shape == (80, 4)


def test_copies_of_one_photo_under_two_names_come_first():
    """Two samples without any scatter say nothing of how far apart two of one identity are: the usual scatter does."""
    labels, embeddings = groups(60, 2)
    embeddings[1], embeddings[3] = embeddings[0], embeddings[2] = embeddings[0], embeddings[0] + 0.01
    table = lookalikes(filled(labels, embeddings, bits=1, pool=64), embeddings, top=3)
    assert table.loc[0, ["first", "second"]].tolist() == [0, 1]
