"""One checkpoint, one owner: a run stopped anywhere and resumed is the run that was not stopped, history included."""

import copy
import json
import random
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from bonlib import fit, make_miner
from bonlib.datasets.characters.glyphs import default_fonts
from bonlib.datasets.images import ImageSet
from bonlib.study.config import Config
from bonlib.study.experiment import Experiment, checkpoint_path
from bonlib.study.records import config_key
from bonlib.training import checkpoint as checkpoint_module
from bonlib.training import loop
from bonlib.training.checkpoint import Progress
from bonlib.training.encoders import load_encoder, make_encoder, save_encoder, unwrapped
from bonlib.training.losses import make_loss

FEW = {"fonts": [str(path) for path in default_fonts()[:8]], "characters": list(range(0x41, 0x1B0))}
STEPS = 24


def toy(seed: int, classes: int = 40) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(6)
    patterns = torch.randint(0, 200, (classes, 1, 4, 4), generator=generator)
    images = patterns[labels] + torch.randint(0, 56, (len(labels), 1, 4, 4), generator=generator)
    return ImageSet(images.to(torch.uint8), labels, [str(i) for i in range(classes)], transform=jitter)


def jitter(image: torch.Tensor) -> torch.Tensor:
    """A user's augmentation, which draws from all three global generators."""
    noise = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002
    return image.float() / 255 + 0.01 * noise


class Encoder(nn.Sequential):
    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().__init__(
                nn.Flatten(), nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 8)
            )


class Stopped(Exception):
    """Somebody stops the run."""


def run(file=None, miner="bag", loss="batch-hard", *, steps=STEPS, stop=None, encoder=None, seed=5, **options):
    """Train; returns the encoder, the progress and the state of the miner."""
    data, encoder, progress = toy(0), encoder or Encoder(), Progress()
    sampler = make_miner(miner, data.labels, 8, batch_size=24, seed=1)
    torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)  # noqa: NPY002
    made = make_loss(loss, dim=8, num_classes=40)
    if "optimizer" in options:
        options["optimizer"] = options["optimizer"](encoder.parameters(), lr=1e-3)
    for _ in fit(
        encoder, data, sampler, made, steps=steps, validation=toy(1), **{"evaluate_every": 7} | options,
        checkpoint=file, checkpoint_every=5, progress=progress,
    ):  # fmt: skip
        if progress.step == stop:
            break
    return encoder, progress, sampler, made


def told(progress: Progress) -> str:
    """What was measured, seconds aside."""
    history = [{name: value for name, value in point.items() if "seconds" not in name} for point in progress.history]
    return repr([progress.step, history, progress.loss, progress.active, progress.since])


def assert_same(first, second):
    for one, other in ((first[0], second[0]), (first[3], second[3])):
        for name, value in one.state_dict().items():
            other_value = other.state_dict()[name]
            assert torch.equal(value, other_value) if isinstance(value, torch.Tensor) else value == other_value, name
    assert told(first[1]) == told(second[1])
    assert str(first[2].state_dict()) == str(second[2].state_dict())


@pytest.mark.parametrize("loss", ["batch-hard", "cross-batch-memory"])
@pytest.mark.parametrize("miner", ["bag", "random"])
def test_a_run_stopped_at_any_step_and_resumed_has_the_same_numbers_and_history(miner, loss, tmp_path, monkeypatch):
    whole = run(miner=miner, loss=loss)
    measure = loop._measure
    for stop in range(1, STEPS + 1):
        file = tmp_path / f"{stop}.pt"

        def stopping(progress, done, of, stop=stop):
            measure(progress, done, of)
            if done.step == stop:
                raise Stopped

        monkeypatch.setattr(loop, "_measure", stopping)
        with pytest.raises(Stopped):
            run(file, miner, loss)
        monkeypatch.setattr(loop, "_measure", measure)
        assert_same(run(file, miner, loss, seed=99 if file.exists() else 5), whole)


PLACES = [
    (loop, "evaluate"),
    (loop, "save_checkpoint"),
    (checkpoint_module, "write_torch"),
    (loop, "embeddings_of"),
    (loop, "_loss_and_active"),
    (loop, "_spread"),
    (torch.optim.Adam, "step"),
    (torch.optim.Adam, "zero_grad"),
    (torch.Tensor, "backward"),
    (ImageSet, "batch"),
]


@pytest.mark.parametrize(("owner", "name"), PLACES, ids=[name for _, name in PLACES])
@pytest.mark.parametrize("before", [True, False])
def test_a_run_stopped_at_any_place_inside_a_step_resumes(owner, name, before, tmp_path, monkeypatch):
    whole = run()
    original, calls = getattr(owner, name), 0

    def stopping(*arguments, **options):
        nonlocal calls
        calls += 1
        if before and calls == limit:
            raise Stopped
        result = original(*arguments, **options)
        if calls == limit:
            raise Stopped
        return result

    limit = 3 if name in ("evaluate", "save_checkpoint", "write_torch") else 13
    monkeypatch.setattr(owner, name, stopping)
    with pytest.raises(Stopped):
        run(tmp_path / "run.pt")
    monkeypatch.setattr(owner, name, original)
    assert_same(run(tmp_path / "run.pt", seed=99), whole)


def test_it_says_from_where_it_resumes(tmp_path, capsys):
    run(tmp_path / "run.pt", steps=10)
    assert "Resuming" not in capsys.readouterr().err
    run(tmp_path / "run.pt")
    assert f"Resuming from {tmp_path / 'run.pt'} at step 10." in capsys.readouterr().err


def test_seconds_are_kept(tmp_path):
    _, first, *_ = run(tmp_path / "run.pt", steps=10)
    _, second, *_ = run(tmp_path / "run.pt")
    for part, value in first.seconds.items():
        assert second.seconds[part] >= value
    assert second.seconds["compute"] > first.seconds["compute"]
    times = [point["training_seconds"] for point in second.history]
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.1}, r"saved with another lr: it is '0.001' there and '0.1' here; resume with what it was saved"),
        ({"schedule": "cosine"}, "another schedule: it is 'constant' there and 'cosine' here"),
        ({"precision": "bfloat16"}, "another precision"),
        ({"loss": "cross-batch-memory", "loss_lr": 0.1}, "another loss"),
        ({"loss": "semi-hard"}, "another loss: it is"),
        ({"optimizer": torch.optim.SGD}, "another optimizer: it is"),
        ({"optimizer": torch.optim.AdamW}, "another optimizer: it is"),
        ({"evaluate_every": 5}, "another evaluate_every: it is 7 there and 5 here"),
        ({"steps": 9}, r"steps is 9, but the checkpoint .*run.pt is at step 10; give as many or more"),
        ({"miner": "random"}, "is of another miner: state has miner='BagOfNegatives'"),
        ({"loss": "cross-batch-memory"}, "another loss: it is"),
    ],
)
def test_a_checkpoint_of_other_arguments_is_refused_and_nothing_changes(options, message, tmp_path):
    run(tmp_path / "run.pt", steps=10)
    kept, encoder = (tmp_path / "run.pt").read_bytes(), Encoder()
    before = copy.deepcopy(encoder.state_dict())
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run.pt", encoder=encoder, **options)
    assert str(encoder.state_dict()) == str(before)
    assert (tmp_path / "run.pt").read_bytes() == kept


def flipped(image):
    return image.flip(-1).float() / 255


def test_a_checkpoint_of_other_images_or_labels_is_refused(tmp_path):
    run(tmp_path / "run.pt", steps=10)
    data, there = toy(0), r"the fingerprint is \"\w+ \{'transform': <function jitter>\}\" there"
    for other in (
        replace(data, images=data.images.flip(0)),
        replace(data, labels=data.labels.flip(0)),
        data.with_label_noise(0.1),
        replace(data, class_names=data.class_names[::-1]),
        replace(data, transform=flipped),
    ):
        miner = make_miner("bag", other.labels, 8, batch_size=24, seed=1)
        with pytest.raises(ValueError, match=rf"run.pt was saved with other data: {there} and "):
            next(fit(Encoder(), other, miner, make_loss("batch-hard"), steps=20, checkpoint=tmp_path / "run.pt"))


def test_compiled_and_wrapped_encoders_share_a_checkpoint_and_are_saved_unwrapped(tmp_path):
    whole = run()
    run(tmp_path / "run.pt", stop=10, encoder=nn.DataParallel(Encoder()))
    resumed = Encoder()
    assert_same(run(tmp_path / "run.pt", encoder=resumed), whole)
    small = make_encoder(dim=8)
    for wrapped in (nn.DataParallel(small), torch.compile(small), torch.compile(nn.DataParallel(small))):
        assert unwrapped(wrapped) is small
        save_encoder(tmp_path / "e.pt", wrapped, name="small", dim=8, in_channels=1)
        loaded, _ = load_encoder(tmp_path / "e.pt")
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), small.parameters(), strict=True))


class Picky(nn.Module):
    """An encoder that returns what it is told to, of a batch norm's output."""

    def __init__(self, wrap):
        super().__init__()
        self.inner, self.wrap = Encoder(), wrap

    def forward(self, images):
        return self.wrap(self.inner(images))


@pytest.mark.parametrize("wrap", [lambda e: (e, None), lambda e: {"embeddings": e}, lambda e: [e.mean(), e]])
def test_encoders_of_any_usual_shape_train_and_evaluate(wrap):
    plain, packed = run(steps=8), run(steps=8, encoder=Picky(wrap))
    assert told(plain[1]) == told(packed[1])


@pytest.mark.parametrize("where", ["image", "gradient", "embedding"])
def test_what_is_not_finite_changes_neither_weights_nor_running_statistics_nor_queues(where):
    data, encoder = toy(0), Encoder()
    miner, made = make_miner("random", data.labels, 8, batch_size=24, seed=1), make_loss("cross-batch-memory", dim=8)
    steps = fit(encoder, data, miner, made, steps=20)
    for _ in range(5):
        next(steps)
    if where == "image":
        data.transform = lambda image: image.float() * torch.nan
    if where == "gradient":  # a finite loss whose gradient is not
        encoder[5].register_forward_hook(lambda module, _, output: output + 0 * (module.weight[0, 0] * 0).abs().sqrt())
    if where == "embedding":
        encoder[5].register_forward_hook(lambda *_: _[-1] / 0.0)
    before = copy.deepcopy((encoder.state_dict(), made.state_dict()))
    with pytest.raises(FloatingPointError, match=r"at step 6; weights and running statistics are as before it"):
        next(steps)
    after = (encoder.state_dict(), made.state_dict())
    for one, other in zip(before, after, strict=True):
        for name, value in one.items():
            same = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
            assert same, name


def test_a_miner_of_another_number_of_samples_is_refused():
    data = toy(0)
    miner = make_miner("bag", toy(0, classes=50).labels, 8, batch_size=24)
    with pytest.raises(
        ValueError, match="miner was made with 300 labels, dataset has 240 samples; make the miner with"
    ):
        next(fit(Encoder(), data, miner, make_loss("batch-hard"), steps=5))


def test_numbers_as_text_and_of_numpy_are_taken():
    plain = run(steps=np.int64(8), lr="1e-3")
    assert told(plain[1]) == told(run(steps=8.0)[1])
    config = Config(lr="1e-3", steps=np.int64(5), margin=np.float32(0.5))
    assert json.loads(json.dumps(asdict(config)))["lr"] == 0.001
    for wrong in ({"steps": "many"}, {"lr": "fast"}, {"steps": 1.5}, {"batch_size": True}, {"dataset_options": "root"}):
        with pytest.raises(ValueError, match="; give"):
            Config(**wrong)


# A run of the study: config, checkpoint, record.


def small(**options) -> Config:
    settings = {"dataset_options": FEW, "steps": 130, "evaluate_every": 40, "batch_size": 24, "bits": 4}
    return Config(**settings | options)


def record(experiment: Experiment) -> dict:
    """The record that it writes, without what a clock decides."""
    content = json.loads(experiment.save("trial").read_text())
    for part in ("seconds", "provenance", "peak_memory_gib"):
        del content[part]
    for point in content["history"]:
        del point["training_seconds"]
    return content


def test_a_record_does_not_tell_where_the_run_was_stopped(folders):
    config = small(steps=60, evaluate_every=25)
    whole = Experiment(config)
    list(whole)
    expected, file = record(whole), checkpoint_path(config, "trial")
    for stop in (3, 50, 55, 60):
        for step in Experiment(config, file):
            if step.step == stop:
                break
        resumed = Experiment(config, file)
        assert len(list(resumed)) == (60 - stop // 50 * 50 if stop < 60 else 0)
        assert record(resumed) == expected
        assert not list(file.parent.iterdir())


def test_a_run_begun_twice_in_one_process_begins_anew(folders):
    config = small(steps=20)
    whole = Experiment(config)
    losses = [step.loss for step in whole]
    again = Experiment(config)
    for step in again:
        if step.step == 7:
            break
    assert [step.loss for step in again] == losses
    assert told(again.progress) == told(whole.progress)


def test_a_folder_is_known_by_its_content_not_by_its_path(example, folders, monkeypatch):
    for name in ("a", "b"):
        shutil.copytree(example, folders / name / "photos")
    monkeypatch.chdir(folders / "a")
    keys = {
        config_key(asdict(Config(dataset="folder", dataset_options={"root": root, "size": 32})))
        for root in ("photos", "./photos", str(folders / "a" / "photos"), "../b/photos")
    }
    assert len(keys) == 1
    image = next((folders / "b" / "photos").rglob("*.png"))
    content = image.read_bytes()
    image.write_bytes(next(path for path in image.parent.glob("*.png") if path != image).read_bytes())
    assert config_key(asdict(Config(dataset="folder", dataset_options={"root": "../b/photos", "size": 32}))) not in keys
    # A run in b with a's checkpoint is refused: same counts, another image.
    config = Config(dataset="folder", dataset_options={"root": "photos", "size": 32}, steps=60, batch_size=24)
    file = folders / "run.pt"
    for step in Experiment(config, file):
        if step.step == 50:
            break
    for child in (folders / "b" / "photos").rglob("*.png"):  # so that a changed image is among those for training
        child.write_bytes(content) if child.read_bytes() == image.read_bytes() and child != image else None
    monkeypatch.chdir(folders / "b")
    changed = sorted((folders / "b" / "photos").iterdir())
    for identity in changed[:20]:
        files = sorted(identity.glob("*.png"))
        files[0].write_bytes(files[1].read_bytes())
    with pytest.raises(ValueError, match=r"run.pt was saved with other data: the fingerprint is"):
        next(iter(Experiment(config, file)))
    assert not list((folders / "results").rglob("scratch/*.json"))


@pytest.mark.parametrize(("name", "option"), [("cosface", "scale"), ("proxy-anchor", "alpha")])
def test_another_setting_inside_a_loss_is_another_loss(tmp_path, name, option):
    data = toy(0)
    make = {value: make_loss(name, dim=8, num_classes=40, **{option: value}) for value in (16, 32)}
    for value, expected in ((16, None), (32, "another loss")):
        run = fit(
            Encoder(),
            data,
            make_miner("random", data.labels, 8, batch_size=24),
            make[value],
            steps=2,
            checkpoint=tmp_path / "c.pt",
        )
        if expected is None:
            list(run)
        else:
            with pytest.raises(ValueError, match=expected):
                list(run)


def test_looking_at_a_plain_dataset_does_not_change_the_training():
    """A loader takes a seed from the global generator, in which dropout goes on."""

    class Plain(torch.utils.data.Dataset):
        def __init__(self, data):
            self.data, self.labels = data, data.labels

        def __len__(self):
            return len(self.data)

        def __getitem__(self, index):
            return self.data.images[index].float() / 255, self.labels[index]

    weights = []
    for evaluate_every in (0, 2):
        torch.manual_seed(3)
        data, encoder = Plain(toy(0)), Encoder()
        miner = make_miner("random", data.labels, 8, batch_size=24)
        options = {"validation": Plain(toy(1)), "evaluate_every": evaluate_every}
        list(fit(encoder, data, miner, make_loss("batch-hard"), steps=6, **options))
        weights.append(encoder.state_dict())
    assert all(torch.equal(values, weights[1][name]) for name, values in weights[0].items())
