"""Every opponent against a brute-force oracle on 200 points, and the rules that all share with BoN."""

import threading
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from bonlib.bag import BagOfNegatives
from bonlib.core.kernels import draw_seeds
from bonlib.miners import list_miners, make_miner
from bonlib.miners.base import Refreshing
from bonlib.training.losses import make_loss

DIM = 8
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(40) * 2 + 7, 5))  # 200 points, labels with gaps
CLASS_OF = (LABELS - 7) // 2
LOOKING = sorted(set(list_miners()) - {"bag", "two-stage-bag", "random", "class-based"})


def points(seed: int = 0, noise: float = 0.3) -> torch.Tensor:
    """Unit embeddings around a random centre for each class."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(40, DIM, generator=generator)
    rows = centres[torch.from_numpy(CLASS_OF)] + noise * torch.randn(200, DIM, generator=generator)
    return torch.nn.functional.normalize(rows, dim=1)


def make(name, form="set", **options):
    size = {"set": 32, "triplet": 33, "pair": 32}[form]
    return make_miner(name, LABELS, DIM, form=form, **{"batch_size": size, "per_class": 4} | options)


def looked(name, form="set", **options):
    miner = make(name, form, **options)
    miner.refresh(lambda ids: points()[torch.from_numpy(ids)])
    return miner


def brute_ranks(anchor: int, embeddings: torch.Tensor) -> tuple[list[int], dict[int, int]]:
    """Other classes by the distance of their nearest sample, and that sample, one by one."""
    best: dict[int, tuple[float, int]] = {}
    for i in range(len(embeddings)):
        distance = float((embeddings[i].double() - embeddings[anchor].double()).norm())
        c = int(CLASS_OF[i])
        if c != CLASS_OF[anchor] and (c not in best or distance < best[c][0]):
            best[c] = (distance, i)
    return sorted(best, key=lambda c: best[c][0]), {c: i for c, (_, i) in best.items()}


@pytest.mark.parametrize("ranks", [(1, 1), (1, 5), (4, 9), (30, 39)])
def test_exact_draws_just_the_ranks_that_brute_force_finds(ranks):
    miner, embeddings = looked("exact", "triplet", ranks=ranks), points()
    for anchor in range(0, 200, 17):
        order, samples = brute_ranks(anchor, embeddings)
        wanted = {samples[c] for c in order[ranks[0] - 1 : ranks[1]]}
        drawn = miner.draw_negatives(np.full(400, anchor))
        assert set(drawn.tolist()) == wanted


def test_exact_sets_hold_the_nearest_samples_of_the_nearest_classes():
    miner, embeddings = looked("exact", ranks=(1, 7)), points()
    seeds = miner.draw_seeds(8)
    order, samples = brute_ranks(int(seeds[0]), embeddings)
    assert set(seeds[1:].tolist()) == {samples[c] for c in order[:7]}


def test_smart_mining_at_full_hardness_draws_what_brute_force_finds_nearest():
    miner, embeddings = looked("smart", nearest=200), points()
    miner._hardness = 1.0
    for _ in range(10):
        seeds = miner.draw_seeds(8)
        order, samples = brute_ranks(int(seeds[0]), embeddings)
        expected = {samples[c] for c in order[:8]}  # the window holds eight, of which the set has room for seven
        assert len(set(seeds[1:].tolist()) & expected) >= 6  # approximate: an index may miss one


@pytest.mark.parametrize("options", [{}, {"per_class": 1}, {"per_class": 40, "groups": 2}, {"batch_size": 3}])
def test_triplets_of_smart_mining_depend_on_nothing_that_is_of_sets(options):
    miner, embeddings = looked("smart", "triplet", nearest=200, **options), points()
    miner._hardness = 1.0
    anchors = np.arange(0, 200, 7)
    nearest = [samples[order[0]] for order, samples in (brute_ranks(int(i), embeddings) for i in anchors)]
    assert np.mean(miner.draw_negatives(anchors) == nearest) > 0.9  # approximate: an index may miss one


def test_the_usual_number_of_subspaces_counts_the_identities_of_a_batch():
    assert make("subspaces", batch_size=16).subspaces == 40 // (2 * 4)
    for form, blocks in (("triplet", 3), ("pair", 4)):
        for per_class in (1, 4, 40):
            assert make("subspaces", form, batch_size=12, per_class=per_class).subspaces == 40 // (2 * 12 // blocks)


def test_smart_mining_at_no_hardness_draws_the_farthest_it_knows():
    miner, embeddings = looked("smart", "triplet", nearest=200), points()
    miner._hardness = 0.0
    anchor = 11
    order, samples = brute_ranks(anchor, embeddings)
    assert set(miner.draw_negatives(np.full(50, anchor)).tolist()) <= {samples[c] for c in order[-3:]}


@pytest.mark.parametrize(("margin", "direction"), [(-3.0, 1), (3.0, -1)])
def test_smart_mining_raises_hardness_where_too_few_tuples_are_active_and_lowers_it_where_too_many(margin, direction):
    miner = looked("smart", "triplet", margin=margin, target=0.5)  # no triplet is active, or every one
    miner._hardness = 0.5
    batch = next(iter(miner))
    miner.update(batch, points()[batch])
    assert np.sign(miner.stats()["hardness"] - 0.5) == direction


def test_class_based_signatures_are_running_means_and_classes_the_nearest():
    miner, embeddings = make("class-based", nearest=7, momentum=0.5), points()
    seen: dict[int, np.ndarray] = {}
    for batch in miner:
        miner.update(batch, embeddings[batch])
        for c in np.unique(CLASS_OF[batch]):
            mean = embeddings[[i for i in batch if CLASS_OF[i] == c]].mean(dim=0).numpy()
            seen[c] = mean if c not in seen else 0.5 * seen[c] + 0.5 * mean
    for c, signature in seen.items():
        np.testing.assert_allclose(miner.signatures[c], signature, rtol=1e-4, atol=1e-6)
    anchor = int(np.flatnonzero(np.isin(CLASS_OF, list(seen)))[0])
    own = CLASS_OF[anchor]
    nearest = sorted((c for c in seen if c != own), key=lambda c: np.linalg.norm(seen[c] - seen[own]))[:7]
    assert {c for c, _ in miner._hard_classes(anchor)} == set(nearest)


def test_class_based_negatives_are_the_nearest_instances_of_a_hard_class():
    miner, embeddings = make("class-based", "triplet", nearest=3), points()
    miner.update(np.arange(200), embeddings)
    for anchor in (0, 50, 199):
        means = np.stack([embeddings[c == CLASS_OF].mean(dim=0).numpy() for c in range(40)])
        distances = np.linalg.norm(means - means[CLASS_OF[anchor]], axis=1)
        hard = np.argsort(distances)[1:4]
        _, samples = brute_ranks(anchor, embeddings)
        assert set(miner.draw_negatives(np.full(100, anchor)).tolist()) == {samples[c] for c in hard}


def test_subspaces_cluster_class_means_as_well_as_scikit_learn_and_sets_stay_inside():
    miner, embeddings = looked("subspaces", subspaces=3), points()
    means = np.stack([embeddings[c == CLASS_OF].mean(dim=0).numpy() for c in range(40)])
    of = miner._subspace_of
    inertia = sum(np.square(means[of == s] - means[of == s].mean(axis=0)).sum() for s in np.unique(of))
    assert inertia < 1.15 * KMeans(3, n_init=10, random_state=0).fit(means).inertia_
    for _ in range(20):
        classes = CLASS_OF[miner.draw_seeds(4)]
        size = (of == of[classes[0]]).sum()
        assert (of[classes[: min(size, 4)]] == of[classes[0]]).all()
    negatives = looked("subspaces", "triplet", subspaces=3).draw_negatives(np.arange(200))
    alone = np.bincount(of)[of[CLASS_OF]] == 1
    assert (alone | (of[CLASS_OF[negatives]] == of[CLASS_OF])).all()


def test_graph_sampling_joins_a_class_to_its_nearest_by_one_probe_each():
    miner = make("graph")
    asked = []
    miner.refresh(lambda ids: (asked.extend(ids.tolist()), points()[torch.from_numpy(ids)])[1])
    assert CLASS_OF[asked].tolist() == list(range(40))  # one sample a class
    table = torch.cdist(points()[asked], points()[asked]).numpy()
    np.fill_diagonal(table, np.inf)
    centres = []
    for _ in range(40):
        centre, *others = CLASS_OF[miner.draw_seeds(8)]
        assert others == np.argsort(table[centre])[:7].tolist()
        centres.append(int(centre))
    assert sorted(centres) == list(range(40))  # every class once


def test_a_refreshed_bag_has_no_stale_code_after_a_look_and_is_corrected_like_bon_between():
    miner = make("refreshed-bag", bits=3)
    miner.update(np.arange(200), points(1))
    miner.refresh(lambda ids: points()[torch.from_numpy(ids)])
    assert miner.bag.table.codes(np.arange(200)).tolist() == miner.bag.hasher.encode(points()).tolist()
    assert miner.stats()["filled"] == miner.stats()["looks"] == 1
    miner.update([5, 6], points(2)[[5, 6]])
    assert miner.bag.table.codes([5, 6]).tolist() == miner.bag.hasher.encode(points(2)[[5, 6]]).tolist()


def test_the_first_look_of_a_refreshed_bag_hashes_as_filling_does():
    miner, bag = make("refreshed-bag", bits=3), make("bag", bits=3)
    shifted = points() + 2.0  # far from the origin, where nothing that is not centred tells them apart
    miner.refresh(lambda ids: shifted[torch.from_numpy(ids)])
    bag.fill(lambda ids: shifted[ids])
    everyone = np.arange(200)
    assert miner.bag.codes(everyone).tolist() == bag.codes(everyone).tolist()
    assert len(set(bag.codes(everyone))) == 8


@pytest.mark.parametrize("name", LOOKING)
def test_looks_come_after_the_warm_up_and_then_every_so_often(name):
    miner, looks = make(name, warm_up=5, every=4, steps=20), []
    assert isinstance(miner, Refreshing)
    batches = iter(miner)
    for step in range(20):
        if miner.due:
            looks.append(step)
            miner.refresh(lambda ids: points()[torch.from_numpy(ids)])
        batch = next(batches)
        miner.update(batch, points()[batch])
    assert looks == [5, 9, 13, 17]


@pytest.mark.parametrize("name", LOOKING)
def test_a_loop_that_forgets_to_look_is_warned_once(name):
    miner = make(name, warm_up=2, every=3, steps=20)
    with pytest.warns(UserWarning, match="waits for a look at the data set since 3 batches") as warned:
        assert len(list(miner)) == 20
    assert len(warned) == 1
    assert warned[0].filename == __file__ or name == "refreshed-bag"  # the loop's line


@pytest.mark.parametrize("name", list_miners())
def test_epochs_repeat_and_differ(name):
    drawn = []
    for epoch in (1, 2, 1):
        miner = make(name, steps=5, **({"every": 50} if name in LOOKING else {}))
        next(iter(miner))  # what was drawn before leaves no trace
        miner.set_epoch(epoch)
        drawn.append(list(miner))
    assert drawn[0] == drawn[2] != drawn[1]


@pytest.mark.parametrize("name", LOOKING)
@pytest.mark.parametrize("bad", [torch.zeros(3, DIM), torch.zeros(200, DIM + 1), torch.full((200, DIM), torch.nan)])
def test_a_bad_look_is_refused_and_changes_nothing(name, bad):
    miner, untouched = looked(name, steps=10), looked(name, steps=10)
    with pytest.raises(ValueError, match=r"embeddings|indices"):
        miner.refresh(lambda ids: bad[: len(ids)] if bad.isnan().any() else bad)
    assert list(miner) == list(untouched)


@pytest.mark.parametrize("name", list_miners())
@pytest.mark.parametrize(
    ("indices", "embeddings", "message"),
    [
        ([0, 200], torch.zeros(2, DIM), "indices holds values from 0 to 200; allowed are 0 to 199"),
        ([0, 1, 2], torch.zeros(2, DIM), "indices has length 3 and embeddings 2"),
        ([0.0, 1.0], torch.zeros(2, DIM), "integers"),
        ([0, 1], torch.zeros(2, DIM + 1), "set dim to its width"),
        ([0, 1], torch.full((2, DIM), torch.nan), "NaN"),
        ([0, 1], torch.full((2, DIM), torch.inf), "infinite"),
        ([-1, 0], torch.zeros(2, DIM), "indices holds values from -1"),
    ],
)
def test_every_miner_refuses_what_bon_refuses_and_stays_as_it_was(name, indices, embeddings, message):
    miner, untouched = make(name, steps=10), make(name, steps=10)
    for one in (miner, untouched):
        one.update(np.arange(200), points())
        if one.due:
            one.refresh(lambda ids: points()[torch.from_numpy(ids)])
    with pytest.raises(ValueError, match=message):
        miner.update(indices, embeddings)
    assert list(miner) == list(untouched)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("class-based", {"nearest": 0}, "nearest is 0"),
        ("class-based", {"groups": 9}, "groups is 9; allowed are 1 to 8"),
        ("class-based", {"momentum": 1}, "momentum is 1"),
        ("smart", {"target": 2}, "target is 2"),
        ("smart", {"nearest": 0}, "nearest is 0"),
        ("subspaces", {"subspaces": 41}, "subspaces is 41; allowed are 1 to 40"),
        ("graph", {"nearest": 0}, "nearest is 0"),
        ("graph", {"every": 0}, "every is 0"),
        ("graph", {"warm_up": -1}, "warm_up is -1"),
        ("exact", {"ranks": (0, 4)}, "counted from 1"),
        ("exact", {"ranks": (40, 50)}, "there are 39 other classes"),
        ("bag", {"random_share": 1.5}, "random_share is 1.5"),
        ("bag", {"hasher": "md5"}, "hasher is 'md5'; allowed are 'autoencoder'"),
        ("medium", {}, "miner is 'medium'; allowed are 'bag', 'class-based'"),
    ],
)
def test_bad_arguments_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)


@pytest.mark.parametrize("name", list_miners())
def test_a_state_of_other_arguments_is_refused(name):
    miner = make(name)
    for foreign in (make(name, batch_size=16), make(name, "triplet"), make("random" if name != "random" else "bag")):
        with pytest.raises(ValueError, match="state has"):
            miner.load_state_dict(foreign.state_dict())


@pytest.mark.parametrize("name", ["exact", "graph", "smart", "subspaces"])
def test_a_state_from_before_the_first_look_loads_after_it(name):
    miner = make(name, every=50, warm_up=2)
    draws = iter(miner)
    next(draws)
    before = miner.state_dict()
    expected = next(draws)
    miner.refresh(lambda ids: points()[ids])
    miner.load_state_dict(before)
    assert next(iter(miner)) == expected


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_share_of_a_set_and_of_the_negatives_is_drawn_at_random(share):
    miner = make("bag", random_share=share, bits=1)
    miner.update(np.arange(200), points())
    for _ in range(30):
        assert len(set(CLASS_OF[miner.draw_seeds(8)])) == 8
    assert miner._tally.sum() == 30 * (8 - (share < 1))  # all classes but the anchor's
    assert miner.stats()["from_random"] >= share * 8 / (8 - (share < 1)) - 1e-9
    miner = make("bag", "triplet", random_share=share, bits=1)
    miner.update(np.arange(200), points())
    anchors = np.repeat(np.arange(200), 50)
    codes = miner.table.codes(np.arange(200))
    elsewhere = codes[miner.draw_negatives(anchors)] != codes[anchors]
    by_chance = np.mean([(codes != codes[i])[CLASS_OF[i] != CLASS_OF].mean() for i in range(200)])
    assert elsewhere.mean() == pytest.approx(share * by_chance, abs=0.02)
    assert miner.stats()["from_random"] == pytest.approx(share, abs=0.02)
    assert miner._tally.sum() == len(anchors)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.97])
def test_a_share_that_is_no_whole_number_of_identities_is_right_on_average(share):
    miner = make("bag", random_share=share, bits=1)
    miner.update(np.arange(200), points())
    with mock.patch("bonlib.bag.draw_seeds", wraps=draw_seeds) as drawn:
        for _ in range(400):
            assert len(set(CLASS_OF[miner.draw_seeds(8)])) == 8
    near = sum(call.args[1][1] for call in drawn.call_args_list)
    assert near / (400 * 8) == pytest.approx(1 - share, abs=0.02)


@pytest.mark.parametrize("name", ["bag", "two-stage-bag"])
def test_a_set_that_is_all_random_throws_nobody_away(name):
    miner = make(name, random_share=1.0, bits=2)
    miner.fill(lambda ids: points()[ids])
    seen = np.concatenate([miner.class_of[miner.draw_seeds(8)] for _ in range(5)])
    assert sorted(seen) == list(range(40))


def test_without_probing_too_small_a_bucket_is_filled_up_at_random():
    for probe in (True, False):
        miner = make("bag", bits=5, probe=probe)
        miner.update(np.arange(200), points())
        for _ in range(30):
            assert len(set(CLASS_OF[miner.draw_seeds(8)])) == 8
        stats = miner.stats()
        assert (stats["from_hamming1"] > 0.3) == probe
        assert (stats["from_random"] > 0.3) != probe


def test_cross_batch_memory_keeps_its_pointer_in_the_state():
    first, second = (make_loss("cross-batch-memory", dim=DIM, memory_size=50) for _ in range(2))
    labels = torch.from_numpy(CLASS_OF)
    for i in range(0, 100, 20):
        first(points()[i : i + 20], labels[i : i + 20])
    second.load_state_dict(first.state_dict())
    values = [float(loss(points()[100:120], labels[100:120])[0]) for loss in (first, second)]
    assert values[0] == values[1]
    assert first.loss.queue_idx == second.loss.queue_idx == 120 % 50
    assert second.loss.has_been_filled


def test_losses_with_weights_draw_them_from_their_seed_alone():
    before = torch.get_rng_state()
    options = {"dim": DIM, "num_classes": 40}
    weights = [next(make_loss("proxy-anchor", seed=seed, **options).parameters()) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_losses_say_what_they_need():
    with pytest.raises(ValueError, match="needs num_classes; give it, as num_classes="):
        make_loss("cosface", dim=DIM)
    with pytest.raises(ValueError, match=r"no option .'memory'.; it has .'dim', 'memory_size'"):
        make_loss("cross-batch-memory", dim=DIM, memory=5)


@pytest.mark.parametrize("shift", [0.0, 1e3, 1e4])
def test_exact_search_is_exact_far_from_the_origin_too(shift):
    moved = points() + shift  # float32: what the shift rounds off is gone for both
    exact = moved.double()
    distances = torch.cdist(exact, exact)
    distances[torch.from_numpy(CLASS_OF[:, None] == CLASS_OF)] = torch.inf
    miner = make("exact", "triplet", ranks=(1, 1))
    miner.refresh(lambda ids: moved[torch.from_numpy(ids)])
    drawn = torch.from_numpy(miner.draw_negatives(np.arange(200)))
    found = distances[torch.arange(200), drawn]
    assert ((found - distances.amin(dim=1)).abs() < 1e-4 * distances.amin(dim=1)).all()


@pytest.mark.parametrize("offset", [0.1, 1e-2, 1e-3, 1e-4])
def test_the_oracle_is_exact_for_near_duplicates(offset):
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(30, 32, generator=generator))
    apart = torch.nn.functional.normalize(torch.randn(30, 6, 32, generator=generator), dim=2)
    rows = (centres[:, None] + offset * apart).reshape(-1, 32)  # six identities around each of thirty directions
    embeddings = rows.repeat_interleave(2, dim=0)
    miner = make_miner("exact", np.arange(360) // 2, 32, form="triplet", batch_size=90, ranks=(1, 1))
    miner.refresh(lambda ids: embeddings[ids])
    distances = torch.cdist(rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distances.fill_diagonal_(torch.inf).argmin(dim=1).numpy()
    anchors = np.arange(0, 360, 2)
    assert (miner.draw_negatives(anchors) // 2 == nearest[anchors // 2]).mean() > 0.99


def test_a_refreshed_bag_misses_no_batch_that_it_was_told():
    miner = make("refreshed-bag", bits=3)
    miner.refresh(lambda ids: points()[ids])
    for indices in miner:
        miner.update(indices, points()[indices])
    assert miner.stats()["batches_missed"] == 0


def test_smart_mining_knows_neighbours_of_classes_larger_than_a_search():
    labels = np.arange(900) // 300
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0]])
    embeddings = centres[labels] + 0.01 * torch.randn(900, 2, generator=torch.Generator().manual_seed(0))
    miner = make_miner("smart", labels, 2, form="triplet", batch_size=30)
    miner.refresh(lambda ids: embeddings[ids])
    miner._hardness = 1.0
    assert (labels[miner.draw_negatives(np.arange(50))] == 1).all()  # of the class beside


def test_a_save_during_a_look_waits_for_its_end():
    miner, embeddings = make_miner("exact", LABELS, DIM, batch_size=16, every=5), points()
    begun, go = threading.Event(), threading.Event()
    look = miner._look

    def slowly(rows):
        begun.set()
        assert go.wait(60)
        look(rows)

    miner._look = slowly
    other = threading.Thread(target=lambda: miner.refresh(lambda ids: embeddings[ids]))
    other.start()
    assert begun.wait(60)
    saved = []
    saver = threading.Thread(target=lambda: saved.append(miner.state_dict()))
    saver.start()
    saver.join(0.2)
    assert not saved
    go.set()
    for thread in (other, saver):
        thread.join(60)
    assert saved[0]["looks"] == 1


@pytest.mark.parametrize("make", [partial(make_miner, "smart"), partial(BagOfNegatives, target=0.5, pool=256)])
def test_a_dial_that_nothing_could_turn_is_refused(make):
    with pytest.raises(ValueError, match="per_class"):
        make(LABELS, DIM, batch_size=16, per_class=1)
