"""Data sets that grow: bags that are extended, against bags that were made at once."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bonlib.bag import BagOfNegatives
from bonlib.core.distributed import RankMiner

DIM = 8
FORMS = ["set", "triplet", "pair"]


def labels_of(seed, old=120, new=60):
    """Old labels, and new ones of old, of earlier and of later identities."""
    rng = np.random.default_rng(seed)
    return rng.integers(10, 40, old), rng.integers(0, 60, new)


def embeddings_of(count, seed=0):
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))


def make(labels, published=False, **options):
    kind = BagOfNegatives.as_published if published else BagOfNegatives
    return kind(labels, DIM, **({"batch_size": 24, "per_class": 2, "steps": 4, "bits": 3} | options))


def trained(labels, embeddings, **options):
    bag = make(labels, **options)
    for indices in bag:
        bag.update(indices, embeddings[indices])
    return bag


@pytest.mark.parametrize("published", [False, True])
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), form=st.sampled_from(FORMS))
def test_what_was_known_stays_and_the_rest_is_as_in_a_bag_made_at_once(published, seed, form):
    old, new = labels_of(seed)
    rows = embeddings_of(180, seed)
    bag = trained(old, rows, published=published, form=form)
    codes, means = bag.codes(np.arange(120)), bag.means[bag.class_of]
    bag.extend(new)
    whole = np.concatenate([old, new])
    at_once = make(whole, published=published, form=form)
    assert (bag.classes[bag.class_of] == whole).all()
    assert bag.fingerprint == at_once.fingerprint
    if published:
        assert (bag.codes(np.arange(120)) == codes).all()
        assert (bag.codes(np.arange(120, 180)) == -1).all()
    else:
        known = np.isin(whole, old)
        assert (bag.codes(np.arange(180))[:120] == codes).all()
        assert (bag.codes(np.arange(180))[~known] == -1).all()
        assert torch.equal(bag.means[bag.class_of[:120]], means)
    assert bag.num_samples == 180
    # Told of everything once more, with nothing to learn, both hold the same.
    for other in (bag, at_once):
        other.hasher.load_state_dict(bag.hasher.state_dict())
        other._means.sketches.rows[:] = 0
        other._means._seen[:] = False
        other.correct(np.arange(180), rows)
    assert (bag.codes(np.arange(180)) == at_once.codes(np.arange(180))).all()
    for code in range(2**bag.bits):
        assert set(bag.members(code)) == set(at_once.members(code))


@pytest.mark.parametrize("form", FORMS)
def test_the_next_pass_goes_through_old_and_new_samples(form):
    old, new = labels_of(3)
    rows = embeddings_of(180)
    bag = trained(old, rows, form=form, random_share=0.5)
    bag.extend(new, steps=60)
    drawn = np.zeros(180, dtype=int)
    for indices in bag:
        np.add.at(drawn, indices, 1)
        bag.update(indices, rows[indices])
    assert len(bag) == 60
    assert (drawn > 0).all()
    assert bag.stats()["filled"] == 1


@pytest.mark.parametrize("published", [False, True])
def test_a_state_saved_before_or_after_leads_to_the_same_batches(published):
    old, new = labels_of(4)
    whole, rows = np.concatenate([old, new]), embeddings_of(180)
    bag = trained(old, rows, published=published)
    file = io.BytesIO()
    torch.save(bag.state_dict(), file)
    bag.extend(new)
    # The state of the smaller set in a bag of the larger one; and that of the extended bag, stopped in a pass.
    file.seek(0)
    loaded = make(whole, published=published)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    batches = []
    for other in (bag, loaded):
        batches.append([])
        for at, indices in enumerate(other):
            batches[-1].append(indices)
            other.update(indices, rows[indices])
            if at == 2:
                half = other.state_dict()
    assert batches[0] == batches[1]
    resumed = make(whole, published=published)
    resumed.load_state_dict(half)
    rest = []
    for indices in resumed:
        rest.append(indices)
        resumed.update(indices, rows[indices])
    assert rest == batches[0][3:]


def test_a_bag_that_was_used_for_other_things_takes_the_smaller_state_as_a_new_one_does():
    old, new = labels_of(7)
    whole, rows = np.concatenate([old, new]), embeddings_of(180)
    state = trained(old, rows).state_dict()
    fresh, used = make(whole), trained(whole, rows)
    for bag in (fresh, used):
        bag.load_state_dict(state)
    assert torch.equal(fresh.means, used.means)
    assert list(fresh) == list(used)


def test_a_pass_through_all_stays_one_and_a_chosen_length_stays():
    old, new = labels_of(8)
    bag, chosen = make(old, steps=None), make(old)
    for grown in (bag, chosen):
        grown.extend(new)
    assert (len(bag), len(chosen)) == (180 // 24, 4)
    make(np.concatenate([old, new]), steps=None).load_state_dict(bag.state_dict())
    bag.extend(np.array([3, 4], dtype=np.uint64))
    assert bag.num_samples == 182
    with pytest.raises(ValueError, match="steps is 0"):
        bag.extend([1], steps=0)


def test_a_wrapped_bag_grows_too():
    old, new = labels_of(5)
    bag = make(old)
    share = RankMiner(bag)
    bag.extend(new)
    rows = embeddings_of(180)
    for indices in share:
        share.update(indices, rows[indices])
    assert bag.stats()["filled"] > 0


def test_a_state_of_other_samples_is_refused_and_wrong_labels_change_nothing():
    old, new = labels_of(6)
    bag = trained(old, embeddings_of(120))
    other = make(np.concatenate([old[::-1], new]))
    with pytest.raises(ValueError, match="state has num_samples=120"):
        other.load_state_dict(bag.state_dict())
    with pytest.raises(ValueError, match="state has bits=3"):
        make(np.concatenate([old, new]), bits=4).load_state_dict(bag.state_dict())
    with pytest.raises(
        ValueError, match="state has dim=8, this miner has 4; make it with the labels and arguments of the saved"
    ):
        BagOfNegatives(np.concatenate([old, new]), 4, batch_size=24, per_class=2).load_state_dict(bag.state_dict())
    before = {name: str(value) for name, value in bag.state_dict().items()}
    for labels in ([0.5], [[1]], ["a"]):
        with pytest.raises(ValueError, match="1-D array of integers"):
            bag.extend(labels)
    with pytest.raises(ValueError, match="steps is -1"):
        bag.extend([1], steps=-1)
    damaged = bag.state_dict() | {"order": torch.zeros(120, dtype=torch.int32)}
    larger = make(np.concatenate([old, new]))
    with pytest.raises(ValueError, match="damaged"):
        larger.load_state_dict(damaged)
    assert next(iter(larger)) == next(iter(make(np.concatenate([old, new]))))
    assert {name: str(value) for name, value in bag.state_dict().items()} == before
    bag.extend(np.empty(0, dtype=np.int64))
    assert {name: str(value) for name, value in bag.state_dict().items()} == before


def test_where_nothing_arrives_a_pass_goes_on_and_the_next_is_whole():
    bag = make(labels_of(9)[0])
    seen = []
    for indices in bag:
        seen.append(indices)
        bag.extend(np.empty(0, dtype=np.int64))
    assert seen == list(make(labels_of(9)[0]))
    assert len(list(bag)) == len(bag)
    for k, _ in enumerate(bag):
        if k == 1:
            bag.extend(np.empty(0, dtype=np.int64), steps=9)
            break
    assert len(list(bag)) == 9
