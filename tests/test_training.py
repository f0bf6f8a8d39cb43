"""The training loop on a toy problem: it learns, resumes bit for bit, and stops where it should."""

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from bonlib.core.miner import RandomSampling
from bonlib.datasets.images import ImageSet
from bonlib.miners import list_miners, make_miner
from bonlib.training.loop import CollapseWarning, fit
from bonlib.training.losses import make_loss


def toy(seed: int, classes: int = 40) -> ImageSet:
    """Each class a random pattern, each image that pattern under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(6)
    patterns = torch.randint(0, 200, (classes, 1, 4, 4), generator=generator)
    images = patterns[labels] + torch.randint(0, 56, (len(labels), 1, 4, 4), generator=generator)
    return ImageSet(images.to(torch.uint8), labels, [str(i) for i in range(classes)])


def encoder(dropout: float = 0.2) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 8))


def begin(steps, form="set", miner="bag", *, net, **options):
    data = toy(0)
    looks = {} if miner in ("bag", "random", "class-based") else {"every": 15, "warm_up": 4}
    sampler = make_miner(miner, data.labels, 8, form=form, batch_size=12, seed=1, **looks)
    loss = make_loss({"set": "batch-hard", "triplet": "triplet", "pair": "contrastive"}[form], form)
    return fit(net, data, sampler, loss, steps=steps, **options)


def train(steps, form="set", miner="bag", **options):
    net = options.pop("net", None) or encoder()
    torch.manual_seed(5)
    return net, list(begin(steps, form, miner, net=net, **options))


@pytest.mark.parametrize("form", ["set", "triplet", "pair"])
@pytest.mark.parametrize("miner", ["bag", "random"])
def test_it_learns_unseen_classes_and_reports(form, miner):
    _, steps = train(120, form, miner, validation=toy(1), evaluate_every=50, lr=5e-3)
    assert [s.step for s in steps if s.metrics] == [50, 100, 120]
    assert steps[-1].images == 120 * 12
    assert steps[-1].metrics["map@r"] > 0.5
    assert set(steps[0].seconds) == {"draw", "data", "compute", "hash", "refresh", "evaluate"}
    assert all(seconds >= 0 for step in steps for seconds in step.seconds.values())
    assert all(0 <= step.active <= 1 for step in steps)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("form", ["set", "triplet", "pair"])
def test_a_resumed_run_comes_to_the_same_numbers_bit_for_bit(form, schedule, tmp_path):
    whole, expected = train(60, form, schedule=schedule)
    stopped, net = [], encoder()
    torch.manual_seed(5)
    for step in begin(60, form, net=net, schedule=schedule, checkpoint=tmp_path / "run.pt", checkpoint_every=35):
        stopped.append(step)
        if len(stopped) == 40:
            break
    torch.manual_seed(99)  # the checkpoint brings its own state of the global generator
    resumed = encoder()
    _, steps = train(60, form, net=resumed, schedule=schedule, checkpoint=tmp_path / "run.pt")
    assert [s.step for s in steps] == list(range(36, 61))
    assert [(s.loss, s.active) for s in steps] == [(s.loss, s.active) for s in expected[35:]]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


class OneByOne(Dataset):
    """A plain map-style dataset, which a loader reads."""

    def __init__(self, data):
        self.data, self.labels = data, data.labels

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        images, labels = self.data.batch([i])
        return images[0], labels[0]


def test_a_plain_dataset_resumes_bit_for_bit_too(tmp_path):
    """A loader draws a seed for workers that it does not have; dropout must not notice."""

    def run(steps, **options):
        net, data = encoder(), OneByOne(toy(0))
        torch.manual_seed(5)
        sampler = make_miner("bag", data.labels, 8, batch_size=12, seed=1)
        return list(fit(net, data, sampler, make_loss("batch-hard"), steps=steps, **options))

    expected = run(30)
    run(13, checkpoint=tmp_path / "run.pt")
    assert [step.loss for step in run(30, checkpoint=tmp_path / "run.pt")] == [step.loss for step in expected[13:]]


def test_a_schedule_leaves_the_optimisers_rates_as_they_were():
    net = encoder()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    rates = [optimizer.param_groups[0]["lr"] for _ in begin(9, net=net, optimizer=optimizer, schedule="cosine")]
    assert rates == [0.1] * 9


@pytest.mark.parametrize("miner", sorted(set(list_miners()) - {"bag", "two-stage-bag"}))
def test_every_miner_resumes_bit_for_bit(miner, tmp_path):
    whole, expected = train(40, miner=miner)
    torch.manual_seed(5)
    for step in begin(40, miner=miner, net=encoder(), checkpoint=tmp_path / "run.pt", checkpoint_every=23):
        if step.step == 27:
            break
    resumed = encoder()
    _, steps = train(40, miner=miner, net=resumed, checkpoint=tmp_path / "run.pt")
    assert [s.loss for s in steps] == [s.loss for s in expected[23:]]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_scheduler_of_the_callers_own_sets_the_rates():
    net = encoder()
    optimizer, seen = torch.optim.SGD(net.parameters(), lr=1.0), []
    optimizer.register_step_pre_hook(lambda *_: seen.append(optimizer.param_groups[0]["lr"]))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
    for _ in begin(6, net=net, optimizer=optimizer):
        scheduler.step()
    assert seen == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_frozen_layers_stay_frozen_and_an_encoder_in_evaluation_mode_is_put_into_training_mode():
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 8), nn.Dropout(0.5))
    net[1].eval()
    train(3, net=net)
    assert not net[1].training
    assert net[3].training
    assert net[1].running_mean.eq(0).all()
    net.eval()
    train(1, net=net)
    assert net[1].training


def test_a_checkpoint_is_saved_on_the_way_without_being_asked(tmp_path):
    run = begin(60, net=encoder(), checkpoint=tmp_path / "run.pt")
    for step in run:
        if step.step == 55:
            break
    run.close()
    _, rest = train(60, checkpoint=tmp_path / "run.pt")
    assert rest[0].step == 51


def test_looks_see_the_encoder_in_evaluation_mode_as_it_is_then():
    net, data, seen = encoder(), toy(0), []
    miner = make_miner("exact", data.labels, 8, batch_size=12, seed=1, every=10, warm_up=5)
    learn = miner._look
    miner._look = lambda embeddings: (seen.append(embeddings.clone()), learn(embeddings))
    for step in fit(net, data, miner, make_loss("batch-hard"), steps=15):
        assert net.training
        if step.step == 5:
            with torch.no_grad():
                expected = net.eval()(data.images.float() / 255)
            net.train()
    assert len(seen) == 1
    assert torch.allclose(seen[0], expected, atol=1e-6)


@pytest.mark.parametrize("loss", ["proxy-anchor", "cosface", "cross-batch-memory"])
def test_losses_with_a_state_resume_with_it(loss, tmp_path):
    def run(steps, **options):
        data, net = toy(0), encoder(dropout=0)
        sampler = make_miner("random", data.labels, 8, batch_size=12, seed=1)
        made = make_loss(loss, dim=8, num_classes=40)
        return made, [s.loss for s in fit(net, data, sampler, made, steps=steps, loss_lr=0.05, **options)]

    made, expected = run(40)
    run(25, checkpoint=tmp_path / "run.pt")
    again, rest = run(40, checkpoint=tmp_path / "run.pt")
    assert rest == expected[25:]
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))
    before = make_loss(loss, dim=8, num_classes=40)
    moved = [float((a - b).detach().abs().max()) for a, b in zip(made.parameters(), before.parameters(), strict=True)]
    assert all(distance > 0.1 for distance in moved)  # forty steps at the rate of their own


def test_a_finished_run_has_nothing_left(tmp_path):
    train(10, checkpoint=tmp_path / "c.pt")
    assert train(10, checkpoint=tmp_path / "c.pt")[1] == []


def test_damaged_foreign_and_other_checkpoints_are_refused_before_anything_changes(tmp_path):
    train(10, checkpoint=tmp_path / "c.pt")
    good = torch.load(tmp_path / "c.pt", weights_only=True)
    whole = (tmp_path / "c.pt").read_bytes()
    wider = good["encoder"] | {"1.weight": torch.zeros(33, 16)}
    optimizer = good["optimizer"] | {"param_groups": []}
    cases = {
        "cannot be read": whole[: len(whole) // 2],
        "has the format 'bonlib checkpoint 9'": good | {"format": "bonlib checkpoint 9"},
        "has the format None": {"weights": 1},
        "has the format 'list'": [1, 2],
        "of another encoder: 1.weight": good | {"encoder": wider},
        "of another optimizer": good | {"optimizer": optimizer},
    }
    for message, content in cases.items():
        (tmp_path / "c.pt").write_bytes(content) if isinstance(content, bytes) else torch.save(
            content, tmp_path / "c.pt"
        )
        net = encoder()
        miner = make_miner("bag", toy(0).labels, 8, batch_size=12, seed=1)
        before = [p.clone() for p in net.parameters()], str(miner.state_dict())
        with pytest.raises(ValueError, match=message):
            next(fit(net, toy(0), miner, make_loss("batch-hard", "set"), steps=20, checkpoint=tmp_path / "c.pt"))
        assert all(torch.equal(a, b) for a, b in zip(before[0], net.parameters(), strict=True))
        assert str(miner.state_dict()) == before[1]


class Rows(Dataset):
    """The toy as a dataset that needs a loader."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_with_a_loader_trains_alike(workers):
    data = toy(0)
    results = []
    for dataset in (data, Rows(data)):
        net = encoder(dropout=0)
        miner = RandomSampling(data.labels, 8, batch_size=12, seed=1)
        results.append([s.loss for s in fit(net, dataset, miner, make_loss("batch-hard"), steps=30, workers=workers)])
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_bfloat16_trains():
    _, steps = train(30, precision="bfloat16")
    assert torch.isfinite(torch.tensor([s.loss for s in steps])).all()


def test_a_loss_that_is_not_finite_stops_the_run():
    net = encoder()
    net[1].weight.data[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match="loss is nan at step 1"):
        train(5, net=net)


def test_collapse_is_told():
    net = encoder()
    net[4].weight.data.zero_()
    with pytest.warns(CollapseWarning, match="nearly alike at step 1"):
        train(3, net=net, lr=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1, "precision": "float16"}, "precision is 'float16'"),
        ({"steps": 1, "evaluate_every": 5}, "validation is None"),
        ({"steps": 1, "schedule": "linear"}, "schedule is 'linear'"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        train(**options)
