"""The bag and the shared protocol of miners, against brute force."""

import io
import threading
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from bonlib.bag import BagOfNegatives
from bonlib.core.hashes import OnlineAutoencoder
from bonlib.core.miner import Miner, RandomSampling
from bonlib.core.table import BucketTable
from bonlib.miners import list_miners, make_miner

DIM = 8
SIZES = {"set": 12, "triplet": 12, "pair": 12}


def clustered(labels, seed: int = 0) -> torch.Tensor:
    """Embeddings around a random centre for each class."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(int(max(labels)) + 1, DIM, generator=generator)
    return centres[torch.as_tensor(labels)] + 0.2 * torch.randn(len(labels), DIM, generator=generator)


def make(labels, form="set", **options) -> BagOfNegatives:
    """The first stage alone, whose buckets a test can count."""
    return BagOfNegatives.as_published(labels, DIM, form=form, **{"batch_size": SIZES[form], "bits": 3} | options)


def train(miner: Miner, embeddings: torch.Tensor, passes: int = 1) -> list[list[int]]:
    batches = []
    look(miner, embeddings)
    for _ in range(passes):
        for indices in miner:
            miner.update(indices, embeddings[indices])
            look(miner, embeddings)
            batches.append(indices)
    return batches


def look(miner: Miner, embeddings: torch.Tensor) -> None:
    if miner.due:
        miner.refresh(lambda ids: embeddings[ids])


def assert_layout(miner: Miner, labels: np.ndarray, batch: list[int]) -> None:
    """Every batch is what its form promises."""
    of = labels[batch]
    assert len(batch) == miner.batch_size
    if miner.form == "set":
        groups = of.reshape(-1, miner.per_class)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0])) == len(groups)
        for group in np.reshape(batch, (-1, miner.per_class)):
            assert len(set(group)) == min(miner.per_class, (labels == labels[group[0]]).sum())
    else:
        *anchors, other, negative = (position.tolist() for position in miner.index_tuple)
        assert (of[other] == of[anchors[0]]).all() or miner.form == "pair"
        assert (of[other] != of[negative]).all()
        if miner.form == "pair":
            assert (of[anchors[0]] == of[anchors[1]]).all()


@pytest.mark.parametrize("form", SIZES)
@pytest.mark.parametrize("name", list_miners())
@settings(deadline=None, max_examples=15)
@given(counts=st.lists(st.integers(1, 6), min_size=4, max_size=12), seed=st.integers(0, 99))
def test_batches_keep_their_promise_on_any_labels(name, form, counts, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)) * 3 - 5, counts))
    miner = make_miner(name, labels, DIM, form=form, batch_size=12, per_class=3, steps=6, seed=seed)
    embeddings = clustered(labels + 5)
    for batch in train(miner, embeddings, passes=2):
        assert_layout(miner, labels, batch)


@pytest.mark.parametrize("form", SIZES)
@pytest.mark.parametrize("name", list_miners())
def test_a_save_in_mid_pass_gives_the_same_batches_to_the_end(name, form):
    labels = np.repeat(np.arange(20), 5)
    embeddings = clustered(labels)
    options = {"form": form, "batch_size": 12, "steps": 30, "seed": 3}
    miner = make_miner(name, labels, DIM, **options)
    expected, saved = [], io.BytesIO()
    look(miner, embeddings)
    for step, indices in enumerate(miner):
        miner.update(indices, embeddings[indices])
        look(miner, embeddings)
        if step == 17:
            torch.save(miner.state_dict(), saved)
        if step > 17:
            expected.append(indices)
    expected += train(miner, embeddings)
    loaded = make_miner(name, labels, DIM, **options | {"seed": 99})  # what the seed decides is in the state
    saved.seek(0)
    loaded.load_state_dict(torch.load(saved, weights_only=True))
    assert train(loaded, embeddings, passes=2) == expected
    assert len(expected) == 12 + 30


@pytest.mark.parametrize("form", SIZES)
@pytest.mark.parametrize("name", list_miners())
def test_same_seed_same_batches_another_seed_others(name, form):
    labels = np.repeat(np.arange(20), 5)
    embeddings = clustered(labels)
    runs = [train(make_miner(name, labels, DIM, form=form, batch_size=12, seed=s), embeddings) for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_negatives_are_the_samples_of_other_classes_with_the_same_code():
    labels = np.repeat(np.arange(30), 6)
    bag = make(labels)
    train(bag, clustered(labels), passes=5)
    codes = bag.table.codes(np.arange(180))
    for i in range(180):
        expected = np.flatnonzero((codes == codes[i]) & (codes != -1) & (labels != labels[i]))
        assert sorted(bag.negatives(i)) == expected.tolist()
        assert set(bag.negatives(i, 4)) <= set(expected)


def near(*flips: int) -> int:
    """Bits to flip, the first first, as the bag keeps them of a sample."""
    return sum(bit << (5 * place) for place, bit in enumerate(flips))


def filled(labels, codes, **options) -> BagOfNegatives:
    """A bag whose table holds given codes."""
    bag = make(labels, **options)
    bag.table.move(np.arange(len(labels)), codes)
    return bag


@pytest.mark.parametrize("own", [2, 60])  # 60 of 70: rejection fails now and then, and the bucket is searched
def test_drawn_negatives_are_uniform_over_the_bag(own):
    labels = np.array([0] * own + [1] * 4 + [2] * 6 + [3] * 10)
    bag = filled(labels, [5] * (own + 10) + [1] * 10, form="triplet", seed=2)
    drawn = bag.draw_negatives(np.zeros(20_000, dtype=np.int64))
    observed = np.bincount(drawn, minlength=len(labels))
    assert observed[:own].sum() == observed[own + 10 :].sum() == 0
    chi_square = ((observed[own : own + 10] - 2000) ** 2 / 2000).sum()
    assert chi_square < 27.9  # 99.9 % point with 9 degrees of freedom
    assert bag.stats()["from_own"] == 1


def test_random_negatives_are_uniform_over_all_other_classes():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 7)
    miner = RandomSampling(np.random.default_rng(0).permutation(labels), DIM, form="triplet", batch_size=3)
    anchor = int(np.flatnonzero(miner.class_of == 0)[0])
    observed = np.bincount(miner.draw_negatives(np.full(20_000, anchor)), minlength=60)
    assert observed[miner.class_of == 0].sum() == 0
    assert ((observed[miner.class_of != 0] - 2000) ** 2 / 2000).sum() < 27.9


def test_an_empty_bag_falls_back_on_the_nearest_hyperplane_first():
    labels = np.array([0, 0, 1, 1, 2, 2])
    bag = filled(labels, [0b000, 0b000, 0b001, 0b001, 0b100, 0b100], form="triplet")
    bag.table.move([0, 1], [0, 0], np.array([near(2, 1, 0), near(1, 0, 2)]))
    assert set(bag.draw_negatives(np.zeros(50, dtype=np.int64))) == {4, 5}
    assert set(bag.draw_negatives(np.ones(50, dtype=np.int64))) == {2, 3}
    assert bag.stats()["from_hamming1"] == 1
    assert bag.stats()["empty_bag_rate"] == 1


def test_where_no_neighbour_has_negatives_they_are_random_and_counted():
    bag = filled(np.array([0, 0, 1, 1]), [0b000, 0b000, 0b111, 0b111], form="triplet")
    assert set(bag.draw_negatives(np.zeros(50, dtype=np.int64))) == {2, 3}
    assert bag.stats()["from_random"] == 1
    unseen = make(np.array([0, 0, 1, 1]), form="triplet")
    unseen.draw_negatives(np.zeros(50, dtype=np.int64))
    assert unseen.stats()["from_unseen"] == 1


@pytest.mark.parametrize("bags", [1, 2])
def test_a_set_comes_from_the_anchors_bucket_then_from_its_neighbours(bags):
    labels = np.repeat(np.arange(64), 2)
    codes = np.repeat(np.arange(64) // 8, 2)  # 8 classes a bucket
    bag = filled(labels, codes, batch_size=16 * bags, per_class=2, bags=bags)
    buckets = [len(set(codes[bag.draw_seeds(8 * bags)])) for _ in range(20)]
    assert np.median(buckets) == bags
    assert max(buckets) <= 2 * bags  # draws may miss a class of a bag: a neighbour then fills it up
    bag = filled(labels, codes, batch_size=40, per_class=2)
    seeds = bag.draw_seeds(20)
    own = codes[seeds[0]]
    distances = [int(code ^ own).bit_count() for code in codes[seeds]]
    assert distances == sorted(distances)
    assert max(distances) == 1
    assert distances.count(0) >= 7
    assert codes[seeds[distances.index(1)]] == own ^ 1  # the first of the anchor's flips


def test_one_pass_fills_the_table_and_every_sample_is_an_anchor_once():
    labels = np.repeat(np.arange(50), 8)
    bag = make(labels, form="triplet")
    embeddings = clustered(labels)
    anchors = [i for batch in train(bag, embeddings, passes=3) for i in batch[:4]]
    assert sorted(anchors[:396]) == sorted(set(anchors[:396]))
    sets = make(labels)
    train(sets, embeddings, passes=3)
    assert sets.stats()["filled"] > 0.9
    assert bag.stats()["filled"] > 0.9


def test_sets_hold_harder_negatives_than_chance():
    labels = np.repeat(np.arange(200), 4)
    embeddings = clustered(labels)
    bag, random = make(labels, bits=5), RandomSampling(labels, DIM, batch_size=12)
    train(bag, embeddings, passes=5)

    def spread(miner: Miner) -> float:
        return float(np.mean([torch.pdist(embeddings[batch]).mean() for batch in miner]))

    assert spread(bag) < 0.9 * spread(random)


def test_stats_of_a_known_table():
    bag = filled(np.array([0, 0, 1, 1]), [0, 0, 3, 3], bits=2, batch_size=4, per_class=2)
    stats = bag.stats()
    assert stats["entropy_bits"] == 1
    assert stats["buckets_used"] == 0.5
    assert stats["bucket_mean"] == stats["bucket_max"] == 2
    assert stats["filled"] == 1


def test_index_tuples():
    labels = np.repeat(np.arange(5), 4)
    assert make(labels).index_tuple is None
    assert [t.tolist() for t in make(labels, "triplet", batch_size=6).index_tuple] == [[0, 1], [2, 3], [4, 5]]
    assert [t.tolist() for t in make(labels, "pair", batch_size=8).index_tuple] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_broken_off_pass_starts_anew_and_set_epoch_repeats():
    labels = np.repeat(np.arange(20), 5)
    miner = RandomSampling(labels, DIM, batch_size=12)
    next(iter(miner))
    assert len(list(miner)) == len(miner) == 8
    fresh = RandomSampling(labels, DIM, batch_size=12, seed=0)
    fresh.set_epoch(4)
    again = RandomSampling(labels, DIM, batch_size=12, seed=0)
    again.set_epoch(4)
    assert list(fresh) == list(again)


class Pictures(Dataset):
    """A dataset whose pictures tell their index."""

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return torch.tensor(float(index)), int(self.labels[index])


@pytest.mark.parametrize("form", SIZES)
def test_prefetching_workers_draw_ahead_of_the_updates(form):
    labels = np.repeat(np.arange(30), 5)
    bag = make(labels, form)
    embeddings = clustered(labels)
    loader = DataLoader(Pictures(labels), batch_sampler=bag, num_workers=2, prefetch_factor=3)
    for _ in range(2):
        for pictures, targets in loader:
            indices = pictures.long()
            assert (targets.numpy() == labels[indices]).all()
            assert_layout(bag, labels, indices.tolist())
            bag.update(indices, embeddings[indices])
    assert bag.stats()["filled"] > 0.7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [[0, 1]]}, "labels has shape"),
        ({"labels": [0.0, 1.0]}, "integers"),
        ({"labels": ["a", "b"]}, "return_inverse"),
        ({"labels": [3, 3, 3]}, "labels has 1 class"),
        ({"form": "quad"}, "form is 'quad'; allowed are 'set', 'triplet', 'pair'"),
        ({"batch_size": 13}, "batch_size is 13; it must be a multiple of 4 .* Near are 12 or 16"),
        ({"batch_size": 4}, "at least 8. Near are 8"),
        ({"form": "triplet", "batch_size": 16}, "multiple of 3 .* Near are 15 or 18"),
        ({"form": "pair", "batch_size": 2}, "multiple of 4 .* Near are 4"),
        ({"batch_size": 400}, "asks for 100 classes a batch, but labels has 20; lower batch_size to 80"),
        ({"per_class": 0}, "per_class is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"bags": 4}, "bags is 4; allowed are 1 to 3"),
        ({"bits": 25}, "bits is 25; allowed are 1 to 24"),
        ({"bits": 0}, "bits is 0"),
        ({"dim": 0}, "dim is 0"),
        ({"hasher": OnlineAutoencoder(9, 4)}, "hasher has dim=9"),
        ({"hasher": OnlineAutoencoder(8, 4), "bits": 5}, "leave bits out"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    good = {"labels": np.repeat(np.arange(20), 5), "dim": DIM, "batch_size": 12}
    with pytest.raises(ValueError, match=message):
        BagOfNegatives(**good | arguments)


def test_miners_leave_global_randomness_alone():
    numpy_before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    labels = np.repeat(np.arange(20), 5)
    train(make(labels), clustered(labels))
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_before)


@pytest.mark.parametrize("form", SIZES)
@settings(deadline=None, max_examples=40)
@given(
    data=st.data(), bits=st.integers(1, 8), counts=st.lists(st.integers(1, 7), min_size=5, max_size=9),
    probe=st.booleans(), share=st.sampled_from([0.0, 0.4, 1.0]), bags=st.integers(1, 3),
)  # fmt: skip
def test_no_state_of_the_table_leads_a_draw_out_of_its_arrays(form, data, bits, counts, probe, share, bags):
    """Filled by any public way; `make test` sets NUMBA_BOUNDSCHECK=1, where a wrong index is an IndexError."""
    labels = np.repeat(np.arange(len(counts)), counts)
    bag = BagOfNegatives.as_published(
        labels, DIM, form=form, batch_size=12, per_class=4, bits=bits, probe=probe, random_share=share,
        bags=bags if form == "set" else 1,
    )  # fmt: skip
    moved = data.draw(st.lists(st.integers(0, len(labels) - 1), max_size=30))
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=len(moved), max_size=len(moved)))
    near = st.lists(st.integers(-(2**31), 2**31 - 1), min_size=len(moved), max_size=len(moved))
    bag.table.move(moved, codes)  # of whose nearest hyperplanes nothing is known
    bag.table.move(moved, codes, np.array(data.draw(near), dtype=np.int32))  # or nonsense
    for batch in bag:
        assert_layout(bag, labels, batch)
    drawn = bag.draw_negatives(np.arange(len(labels)))
    assert (labels[drawn] != labels).all()
    for count in range(1, len(counts) + 1):
        assert len(set(labels[bag.draw_seeds(count)])) == count
    bag.correct(np.arange(len(labels)), clustered(labels))
    assert bag.stats()["filled"] == 1
    for batch in bag:
        assert_layout(bag, labels, batch)


@pytest.mark.parametrize("name", list_miners())
def test_public_draws_refuse_what_is_out_of_range(name):
    miner = make_miner(name, np.repeat(np.arange(20), 5), DIM, form="triplet", batch_size=12)
    for looked in (False, True):
        if looked:
            look(miner, clustered(np.repeat(np.arange(20), 5)))
        for anchors in ([100], [-1], [0.5], [[0]], [2**40]):
            with pytest.raises(ValueError, match="anchors h"):
                miner.draw_negatives(anchors)
        with pytest.raises(ValueError, match="count is -1"):
            miner.draw_anchors(-1)
        for classes in (0, 21):
            with pytest.raises(ValueError, match="num_classes is"):
                miner.random_seeds(classes)


def test_sizes_that_would_overflow_are_refused():
    with pytest.raises(ValueError, match=r"num_samples is 1073741825; allowed are 1 to 1073741824"):
        BucketTable(2**30 + 1, 4)
    labels = np.lib.stride_tricks.as_strided(np.zeros(1, np.int8), (2**30 + 1,), (0,))  # takes no memory
    with pytest.raises(ValueError, match=r"labels has 1073741825 samples; allowed are up to 1073741824"):
        RandomSampling(labels, 4)


def test_marks_of_classes_begin_anew_before_they_overflow():
    labels = np.repeat(np.arange(20), 5)
    bag, reference = make(labels), make(labels)
    bag._means.sketches.stamp[0] = 2**31 - 3
    bag._means.sketches.mark[:] = np.arange(20) + 1  # as if marked by the first sets of all
    for _, batch, other in zip(range(6), bag, reference, strict=False):
        assert batch == other
        assert_layout(bag, labels, batch)


def test_a_coordinate_that_all_share_leaves_codes_of_the_same_embeddings_as_they_are():
    rows = torch.randn(1600, 32, generator=torch.Generator().manual_seed(0))
    rows += 2 * rows[::4].repeat_interleave(4, 0)
    rows[:, 0] += 40  # beyond the levels of a sketch
    rows = torch.nn.functional.normalize(rows)
    bag = BagOfNegatives(np.arange(1600) // 4, 32, bits=6)
    bag.fill(lambda ids: rows[ids])
    before, balance = bag.table.codes(np.arange(400)), bag.stats()["balance"]
    for _ in range(4):
        bag.correct(np.arange(1600), rows)
    assert (bag.table.codes(np.arange(400)) != before).mean() < 0.1
    assert bag.stats()["balance"] == pytest.approx(balance, abs=0.05)


@pytest.mark.parametrize(
    "call",
    ["bag.candidates(0)", "bag.negatives(0)", "bag.codes([0])", "bag.members(0)", "bag.stats()", "bag.means",
     "bag.means_of([0])", "bag.draw_seeds(2)", "bag.draw_negatives([0])", "bag.state_dict()"],
)  # fmt: skip
def test_whoever_looks_waits_for_who_writes(call):
    bag = BagOfNegatives(np.arange(80) // 4, DIM, batch_size=16)
    eval(call, {"bag": bag})  # compiled now, not while the other waits
    done = threading.Event()
    other = threading.Thread(target=lambda: (eval(call, {"bag": bag}), done.set()))
    with bag._lock:
        other.start()
        assert not done.wait(0.2)
    other.join(120)
    assert done.is_set()


def test_a_filled_table_of_identities_is_centred_on_them_not_on_the_largest():
    labels = np.concatenate([np.zeros(20_000, dtype=int), np.arange(1, 1001).repeat(2)])
    centres = torch.randn(1001, 16, generator=torch.Generator().manual_seed(1))
    bag = BagOfNegatives(labels, 16)
    bag.fill(lambda ids: centres[labels[ids]])
    shares = [(bag.table.codes(np.arange(1001)) >> bit & 1).mean() for bit in range(bag.bits)]
    assert all(0.4 < share < 0.6 for share in shares)


def test_an_embed_that_uses_its_memory_again_fills_as_any_other():
    labels, rows = np.arange(600) // 4, torch.randn(600, DIM, generator=torch.Generator().manual_seed(2))
    memory, bags = torch.empty(600, DIM), [BagOfNegatives(labels, DIM) for _ in range(2)]
    bags[0].fill(lambda ids: rows[ids], at_once=50)
    bags[1].fill(lambda ids: torch.index_select(rows, 0, torch.from_numpy(ids), out=memory[: len(ids)]), at_once=50)
    assert torch.equal(bags[0].means, bags[1].means)
    assert bags[0].codes(np.arange(600)).tolist() == bags[1].codes(np.arange(600)).tolist()


def test_a_pass_that_ended_is_followed_by_a_whole_one_however_often_it_is_saved():
    labels = np.arange(240) // 4
    state = (ended := BagOfNegatives(labels, DIM, batch_size=16, steps=5)).state_dict()
    for _ in ended:
        state = ended.state_dict()
    for _ in range(3):
        longer = BagOfNegatives(labels, DIM, batch_size=16, steps=20)
        longer.load_state_dict(state)
        state = longer.state_dict()
    assert len(list(longer)) == 20


@pytest.mark.parametrize(
    ("told", "warns"),
    [
        (lambda i, labels: i, False),
        (lambda i, labels: i[:3], False),  # a part of the batch
        (lambda i, labels: labels[i], True),
        (lambda i, labels: np.arange(len(i)), True),
    ],
)
def test_updates_with_other_numbers_than_indices_are_told(told, warns):
    labels = np.arange(4000) // 4
    bag = BagOfNegatives(labels, DIM, batch_size=16, steps=100)
    rows = torch.randn(16, DIM, generator=torch.Generator().manual_seed(3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for indices in bag:
            ids = told(np.array(indices), labels)
            bag.update(ids, rows[: len(ids)])
    found = [warning for warning in caught if "are these labels, or positions in the batch?" in str(warning.message)]
    assert len(found) == int(warns)
