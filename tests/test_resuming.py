"""A bag saved anywhere goes on as the one that was not stopped: by itself and in other people's loaders."""

import copy
import io

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from bonlib import BagOfNegatives, list_miners, make_miner
from bonlib.core.hashes import list_hashers, make_hasher
from bonlib.core.miner import RandomSampling

DIM, LABELS = 8, np.repeat(np.arange(50), 4)
STEPS = 200 // 12  # batches of a pass
EMBEDDINGS = torch.randn(200, DIM, generator=torch.Generator().manual_seed(0))


def make_bag(labels=LABELS, **options) -> BagOfNegatives:
    return BagOfNegatives(labels, DIM, **{"form": "triplet", "batch_size": 12} | options)


def passed_through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Numbers(Dataset):
    """Each sample is its own index."""

    def __len__(self):
        return 200

    def __getitem__(self, index):
        return index


def train(batches, bag, stop: int | None = None) -> list[list[int]]:
    seen = []
    for batch in batches:
        indices = batch.tolist() if isinstance(batch, torch.Tensor) else list(batch)
        bag.update(indices, EMBEDDINGS[indices])
        seen.append(indices)
        if len(seen) == stop:
            break
    return seen


def test_a_pass_that_ended_is_followed_by_a_whole_one():
    bag, again = make_bag(), make_bag()
    assert len(list(bag)) == STEPS
    again.load_state_dict(passed_through_a_file(bag.state_dict()))
    assert len(rest := list(again)) == STEPS
    assert rest == list(bag)


@pytest.mark.parametrize("stop", range(1, 2 * STEPS + 1, 5))
def test_a_bag_saved_after_any_batch_of_two_passes_draws_what_would_have_come(stop):
    def batches(bag, count):
        """Pass after pass, as many batches as are asked for."""
        while count:
            for indices in bag:
                bag.update(indices, EMBEDDINGS[indices])
                yield indices
                count -= 1
                if not count:
                    return

    dial = {"pool": 24, "target": 0.5}
    whole = list(batches(make_bag(**dial), 3 * STEPS))
    bag, again = make_bag(**dial), make_bag(**dial, seed=5)
    assert list(batches(bag, stop)) == whole[:stop]
    again.load_state_dict(passed_through_a_file(bag.state_dict()))
    assert list(batches(again, 3 * STEPS - stop)) == whole[stop:]


@pytest.mark.parametrize("stop", [1, 5, STEPS - 1])
def test_the_saved_epoch_keeps_its_place_and_another_begins_anew(stop):
    whole = make_bag()
    whole.set_epoch(3)
    expected = train(whole, whole)
    bag = make_bag()
    bag.set_epoch(3)
    assert train(bag, bag, stop) == expected[:stop]
    state = bag.state_dict()
    again, other, reference = make_bag(), make_bag(), make_bag()
    for one in (again, other, reference):
        one.load_state_dict(state)
    again.set_epoch(3)
    assert train(again, again) == expected[stop:]
    again.set_epoch(3)  # not right after loading: once more from its beginning
    assert len(list(again)) == STEPS
    with pytest.warns(
        UserWarning, match=r"set_epoch\(4\) begins anew, though .* in the middle of epoch 3; to go on"
    ) as told:
        other.set_epoch(4)
    assert told[0].filename == __file__
    assert len(list(other)) == STEPS
    assert train(reference, reference) == expected[stop:]  # without set_epoch


def test_epochs_after_a_load_are_those_of_the_saved_seed():
    saved, other = make_bag(seed=4), make_bag(seed=5)
    list(saved)
    other.load_state_dict(passed_through_a_file(saved.state_dict()))
    for bag in (saved, other):
        bag.set_epoch(1)
    assert list(saved) == list(other)


def test_a_hash_of_another_learning_rate_is_refused():
    saved, other = (
        make_bag(unit="sample", pool=0, hasher=make_hasher("autoencoder", DIM, 4, lr=lr)) for lr in (0.003, 0.5)
    )
    with pytest.raises(ValueError, match=r"state has lr=0.003, this hash has 0.5"):
        other.load_state_dict(saved.state_dict())


def test_the_end_of_an_epoch_is_followed_by_the_whole_of_any():
    bag = make_bag()
    bag.set_epoch(0)
    train(bag, bag)
    for epoch in (0, 1):
        again = make_bag()
        again.load_state_dict(bag.state_dict())
        again.set_epoch(epoch)
        assert len(list(again)) == STEPS


def test_each_iterator_is_a_pass_of_its_own():
    bag = make_bag()
    first = iter(bag)
    begun = [next(first) for _ in range(6)]
    second = list(bag)
    assert len(second) == STEPS
    assert len(begun + list(first)) == STEPS
    again = make_bag()
    again.load_state_dict(bag.state_dict())
    assert len(list(again)) == STEPS  # the latest pass has ended, whatever became of the older one
    third, fourth = iter(bag), iter(bag)
    next(third), next(fourth), next(fourth), next(third), next(third)
    again.load_state_dict(bag.state_dict())
    assert len(list(again)) == STEPS - 2  # of the latest


def test_an_iterator_from_before_a_load_does_not_move_the_place():
    bag, donor = make_bag(), make_bag()
    old = iter(bag)
    next(old)
    train(donor, donor, 5)
    bag.load_state_dict(donor.state_dict())
    next(old)
    assert len(list(bag)) == STEPS - 5


@pytest.mark.parametrize("stop", [1, 7, STEPS - 1, STEPS, STEPS + 3])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata calls it
def test_a_stateful_loader_resumes_in_the_middle_and_at_the_end_of_a_pass(stop, workers):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def make():
        bag = make_bag()
        # One batch ahead at a time: then what a worker has drawn is what was used.
        ahead = {"num_workers": workers, "prefetch_factor": 1} if workers else {}
        return bag, stateful.StatefulDataLoader(Numbers(), batch_sampler=bag, **ahead)

    bag, loader = make()
    seen, state = [], None
    while len(seen) < stop:
        for batch in loader:
            if not workers:  # with workers batches are drawn ahead of updates: only their number is held here
                bag.update(batch, EMBEDDINGS[batch])
            seen.append(batch.tolist())
            if len(seen) == stop:
                state = copy.deepcopy(loader.state_dict())
                if stop % STEPS:
                    break
        if stop == STEPS and len(seen) == stop:
            state = copy.deepcopy(loader.state_dict())  # the pass has ended
    _, resumed = make()
    resumed.load_state_dict(state)
    rest = [batch.tolist() for batch in resumed]
    assert len(rest) == (STEPS - stop % STEPS)
    assert len(list(resumed)) == STEPS
    if not workers:
        reference = make_bag()
        reference.load_state_dict(bag.state_dict() if stop % STEPS == 0 else state["_index_sampler_state"])
        assert rest == list(reference)


@pytest.mark.parametrize("stop", [4, STEPS])
def test_accelerates_loader_resumes_though_it_sets_the_epoch_by_itself(stop):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)

    def make():
        bag = make_bag()
        return bag, accelerator.prepare_data_loader(DataLoader(Numbers(), batch_sampler=bag))

    whole_bag, loader = make()
    whole = train(loader, whole_bag)
    bag, loader = make()
    source = iter(loader)
    seen = [next(source).tolist() for _ in range(stop)]
    assert [sorted(batch) for batch in seen[:1]] == [sorted(batch) for batch in whole[:1]]
    ahead = bag.state_dict()["drawn"] - stop  # it looks one batch ahead
    assert 0 <= ahead <= 1
    state = bag.state_dict()
    del source
    bag, loader = make()
    bag.load_state_dict(state)
    assert len(list(loader)) == (STEPS - stop - ahead or STEPS)
    assert len(list(loader)) == STEPS


class Killed(Exception):
    """Somebody stops the run."""


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of loggers and workers
@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_epoch_end"])
@pytest.mark.parametrize("stop", [STEPS // 2, STEPS, STEPS + 4, 2 * STEPS])
def test_lightning_goes_on_in_the_middle_and_at_the_end_of_an_epoch(stop, hook, tmp_path):
    if hook == "on_train_epoch_end" and stop % STEPS:
        return
    lightning = pytest.importorskip("lightning")
    seen: list[list[int]] = []

    class Stop(lightning.Callback):
        def stop(self, trainer, *_):
            if trainer.global_step == stop:
                trainer.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
                raise Killed

    setattr(Stop, hook, Stop.stop)

    class Training(lightning.LightningModule):
        def __init__(self, bag):
            super().__init__()
            self.layer, self.bag = torch.nn.Linear(DIM, DIM), bag

        def training_step(self, indices, _):
            seen.append(indices.tolist())
            embeddings = self.layer(EMBEDDINGS[indices])
            self.bag.update(indices, EMBEDDINGS[indices])  # of no weights, so that batches can be compared
            return embeddings.square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

        def on_save_checkpoint(self, checkpoint):
            checkpoint["bag"] = self.bag.state_dict()

        def on_load_checkpoint(self, checkpoint):
            self.bag.load_state_dict(checkpoint["bag"])

    def run(callbacks, checkpoint=None):
        bag, off = make_bag(), dict.fromkeys(["logger", "enable_checkpointing", "enable_model_summary"], False)
        trainer = lightning.Trainer(
            max_epochs=3, accelerator="cpu", devices=1, enable_progress_bar=False, callbacks=callbacks, **off
        )
        trainer.fit(Training(bag), DataLoader(Numbers(), batch_sampler=bag), ckpt_path=checkpoint)

    run([])
    whole = list(seen)
    assert len(whole) == 3 * STEPS
    seen.clear()
    with pytest.raises(Killed):
        run([Stop()])
    assert seen == whole[:stop]
    run([], tmp_path / "half.ckpt")
    assert seen == whole


@pytest.mark.parametrize("name", list_miners())
def test_states_of_other_labels_are_refused_and_change_nothing(name):
    permuted = np.random.default_rng(1).permutation(LABELS)
    miner, untouched = (make_miner(name, LABELS, DIM, form="triplet", batch_size=12) for _ in range(2))
    foreign = make_miner(name, permuted, DIM, form="triplet", batch_size=12).state_dict()
    with pytest.raises(ValueError, match=r"state has the labels \w+, this miner \w+ .*another order or other classes"):
        miner.load_state_dict(foreign)
    assert str(miner.state_dict()) == str(untouched.state_dict())
    renamed = make_miner(name, LABELS + 3, DIM, form="triplet", batch_size=12).state_dict()
    with pytest.raises(ValueError, match="state has the labels"):
        miner.load_state_dict(renamed)


@pytest.mark.parametrize("kind", ["uint8", "int64", "list", "tensor", ">i4"])
def test_the_same_labels_in_any_type_are_the_same(kind):
    labels = {"list": LABELS.tolist(), "tensor": torch.from_numpy(LABELS)}.get(kind)
    bag = make_bag(LABELS.astype(kind) if labels is None else labels)
    make_bag().load_state_dict(bag.state_dict())


def damaged(state):
    """States that no bag has, each with a name."""
    streams = state["streams"].clone()
    streams[0, 0] = 10**6
    yield "streams", state | {"streams": streams}
    yield "order", state | {"order": state["order"].flip(0)}
    yield "order", state | {"order": torch.full_like(state["order"], 10**6)}
    yield "order", state | {"order": state["order"][:-1]}
    yield "cursor", state | {"cursor": torch.full_like(state["cursor"], 99)}
    yield "cursor", state | {"cursor": torch.full_like(state["cursor"], -1)}
    yield "drawn", state | {"drawn": 10**6}
    yield "table", state | {"table": state["table"] | {"near": torch.zeros(3, dtype=torch.int32)}}
    yield "table", state | {"table": state["table"] | {"members": state["table"]["members"] + 10**6}}
    yield "corrected", state | {"corrected": torch.zeros(3, dtype=torch.int32)}
    yield "tally", state | {"tally": torch.zeros(1, dtype=torch.int64)}
    tensors = state["hasher"]["tensors"]
    yield "hash", state | {"hasher": state["hasher"] | {"tensors": tensors | {"mean": torch.full((DIM,), torch.nan)}}}
    yield "hash", state | {"hasher": state["hasher"] | {"tensors": {"mean": tensors["mean"]}}}
    for name in state:
        yield name, {key: value for key, value in state.items() if key != name}


def test_damaged_states_are_refused_and_change_nothing():
    bag = make_bag()
    train(bag, bag)
    state = bag.state_dict()
    for name, broken in damaged(state):
        before = str(bag.state_dict())
        with pytest.raises(ValueError, match=r"state|drawn|holds values"):
            bag.load_state_dict(broken)
        assert str(bag.state_dict()) == before, name
    for foreign in (None, [], 3, {"config": {}}):
        with pytest.raises(ValueError, match="state is no state of"):
            bag.load_state_dict(foreign)


@pytest.mark.parametrize("name", list_hashers())
def test_a_state_with_numpy_arguments_loads_with_weights_only(name):
    bag = BagOfNegatives(
        LABELS, np.int64(DIM), form="triplet", batch_size=np.int32(12), bits=np.uint8(4), steps=np.int64(9),
        seed=np.int16(3), hasher=name, random_share=np.float32(0.5),
    )  # fmt: skip
    train(bag, bag)
    again = BagOfNegatives(LABELS, DIM, form="triplet", batch_size=12.0, bits=4, steps=9, hasher=name, random_share=0.5)
    again.load_state_dict(passed_through_a_file(bag.state_dict()))
    assert list(again) == list(bag)


def test_the_plainest_miner_resumes_too():
    miner = RandomSampling(LABELS, DIM, batch_size=12)
    again = RandomSampling(LABELS, DIM, batch_size=12, seed=9)
    list(miner)
    again.load_state_dict(miner.state_dict())
    assert list(again) == list(miner)


def broken_states(name, miner):
    """States of a miner, each with one part that cannot be."""
    state = miner.state_dict()
    for part in state["learned"]:
        array = state["learned"][part]
        other = array.double() if array.dtype != torch.float64 else array.float()
        for wrong in (array[:-1], array[..., :-1], array[:0], other, array + 10**6):
            if wrong.dtype == array.dtype and wrong.shape == array.shape and wrong.is_floating_point():
                continue  # other numbers are not to be told from true ones
            yield state | {"learned": state["learned"] | {part: wrong}}
        if array.dtype == torch.int64 and part == "_neighbours":
            yield state | {"learned": state["learned"] | {part: torch.zeros_like(array)}}
    yield state | {"rng": {}}
    yield state | {"config": None}
    yield state | {"epoch": "third"}
    yield state | {"drawn": -1}
    for part, value in (("hardness", -1), ("index", torch.zeros(9, dtype=torch.uint8)), ("looks", "x"), ("left", None)):
        if part in state:
            yield state | {part: value}
    if name == "refreshed-bag":
        yield state | {"bag": state["bag"] | {"tally": None}}
    if name == "bag":
        table, hasher = state["table"], state["hasher"]
        yield state | {"updates": 2**40}
        yield state | {"table": table | {"members": table["members"].long() + 2**32}}
        yield state | {"table": table | {"sizes": None}}
        for change in ({"generator": torch.zeros(3)}, {"lengths": None}, {"lengths": [float("nan")]}, {"steps": "many"},
                       {"scale": float("nan")}, {"scale": -1.0}, {"scale": float("inf")}):  # fmt: skip
            yield state | {"hasher": hasher | change}
        tensors = hasher["tensors"]
        for change in ({"mean": torch.zeros(7)}, {"weights": tensors["weights"].double()}):
            yield state | {"hasher": hasher | {"tensors": tensors | change}}


@pytest.mark.parametrize("name", list_miners())
def test_no_damaged_state_of_any_miner_is_taken_or_changes_anything(name):
    miner = make_miner(name, LABELS, DIM, form="triplet", batch_size=12)

    def look():
        if miner.due:
            miner.refresh(lambda ids: EMBEDDINGS[ids])

    look()
    for indices in miner:
        miner.update(indices, EMBEDDINGS[indices])
        look()
    fresh = make_miner(name, LABELS, DIM, form="triplet", batch_size=12)
    for one in (miner, fresh):  # what goes on, and what a new process resumes with
        before = str(one.state_dict())
        for broken in broken_states(name, miner):
            with pytest.raises(ValueError, match=r"state|holds values| is .*; (give|allowed)| has shape"):
                one.load_state_dict(broken)
            assert str(one.state_dict()) == before


def test_classes_that_are_none_are_refused_before_compiled_code_sees_them():
    miner = make_bag()
    with pytest.raises(ValueError, match="c is 50; allowed are 0 to 49"):
        miner.seeds_around(3, np.array([0]), lambda _: [(50, -1)])
    with pytest.raises(ValueError, match="num_classes is 51"):
        miner.seeds_around(51, np.array([0]), lambda _: [])
