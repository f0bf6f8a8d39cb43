"""Stop and go on: what a keyboard interrupt leaves behind, and what is drawn for whom."""

import json

import pandas as pd
import pytest
import torch

from bonlib.datasets.characters.glyphs import default_fonts
from bonlib.study import live
from bonlib.study.config import Config
from bonlib.study.experiment import Experiment, checkpoint_path
from bonlib.study.figures import training_curves
from bonlib.study.records import mean_curve, save_run

FEW = {"fonts": [str(path) for path in default_fonts()[:8]], "characters": list(range(0x41, 0x250))}
SMALL = {
    "dataset_options": FEW,
    "identities": 40,
    "batch_size": 24,
    "steps": 120,
    "evaluate_every": 40,
    "bits": 5,
    "test": False,
}


class StopsAt:
    """A miner that stops as the stop button does, in the middle of a step."""

    def __init__(self, miner, step):
        self._miner, self._left = miner, step

    def __getattr__(self, name):
        return getattr(self._miner, name)

    def __iter__(self):
        return iter(self._miner)

    def update(self, indices, embeddings):
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt
        self._miner.update(indices, embeddings)


def weights(experiment: Experiment) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in experiment.encoder.parameters()])


def test_a_stopped_run_goes_on_to_the_same_numbers(folders, capsys):
    config = Config(**SMALL)
    whole = Experiment(config)
    live.watch(whole)
    stopped = Experiment(config, checkpoint_path(config, "scratch"))
    stopped.miner = StopsAt(stopped.miner, 97)
    with pytest.raises(KeyboardInterrupt):
        live.watch(stopped)
    assert "is whole: to go on from it" in capsys.readouterr().out
    again = Experiment(config, checkpoint_path(config, "scratch"))
    live.watch(again)
    assert torch.equal(weights(again), weights(whole))
    assert again.history[-1]["recall@1"] == whole.history[-1]["recall@1"]
    assert [point["step"] for point in again.history] == [40, 80, 120]
    record = again.save("scratch")
    assert json.loads(record.read_text())["history"][-1]["step"] == 120
    assert not list(checkpoint_path(config, "scratch").parent.iterdir())


def test_a_stop_without_a_checkpoint_says_so(folders, capsys):
    experiment = Experiment(Config(**SMALL))
    experiment.miner = StopsAt(experiment.miner, 3)
    with pytest.raises(KeyboardInterrupt):
        live.watch(experiment)
    assert "Nothing was saved" in capsys.readouterr().out


def test_drawing_is_for_those_who_look(monkeypatch, folders):
    for name in ("JPY_SESSION_NAME", "VSCODE_PID"):
        monkeypatch.delenv(name, raising=False)
    assert not live.somebody_looks()
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/04_training.ipynb")
    assert live.somebody_looks()
    drawn = []
    monkeypatch.setattr(live, "_show", lambda handle, history, baseline, points: drawn.append(points))
    config = Config(**SMALL | {"steps": 50, "evaluate_every": 50})
    live.watch(Experiment(config), live=False)
    assert [points is None for points in drawn] == [True]  # the end alone
    drawn.clear()
    live.watch(Experiment(config), every=10, live=True)
    assert [len(points) for points in drawn[:-1]] == [1, 2, 3, 4, 5]
    assert drawn[-2][["loss", "active", "miner.entropy_bits"]].notna().all().all()


def test_the_baseline_is_the_mean_over_recorded_seeds(folders):
    for seed, score in ((0, 0.2), (1, 0.4)):
        history = [{"step": 10, "recall@1": score, "map@r": score / 2}]
        config = {"dataset": "glyphs", "miner": "random", "form": "set", "seed": seed}
        save_run(config, "main", history=history)
        save_run(config | {"form": "triplet"}, "main", history=[{"step": 10, "recall@1": 0.0, "map@r": 0.0}])
    curve = mean_curve("main", "glyphs", "set")
    assert curve["recall@1"].tolist() == pytest.approx([0.3])
    assert mean_curve("main", "hangul", "set").empty
    with pytest.warns(UserWarning, match="no records"):
        assert list(mean_curve("nothing", "glyphs", "set").columns) == ["step", "recall@1", "map@r"]
    save_run(config | {"identities": 5}, "some", history=history)
    save_run(config | {"identities": 9}, "some", history=history)
    with pytest.raises(ValueError, match="'some' has several random sets on glyphs with one seed"):
        mean_curve("some", "glyphs", "set")
    save_run(config | {"seed": 2, "loss": "infonce"}, "main", history=[{"step": 10, "recall@1": 0.9, "map@r": 0.9}])
    with pytest.raises(ValueError, match=r"sweep 'main' has several random sets on glyphs: .* under infonce"):
        mean_curve("main", "glyphs", "set")
    history = pd.DataFrame([{"step": 20, "loss": 1.0, "active": 0.5, "recall@1": 0.3, "miner": "bag", "form": "set"}])
    figure = training_curves(history, baseline=curve)
    assert len(figure.axes) == 3
    assert [line.get_ydata().tolist() for line in figure.axes[-1].lines][-1] == pytest.approx([0.3])
