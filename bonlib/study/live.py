"""A picture that follows a run while it trains in JupyterLab, with time left; a stop can be resumed."""

import os
from collections.abc import Callable
from typing import Any

import pandas as pd
from IPython.display import display
from matplotlib import pyplot as plt
from tqdm.auto import tqdm

from bonlib.study.experiment import Experiment
from bonlib.study.figures import training_curves


def somebody_looks() -> bool:
    """Whether this is a notebook open in a browser or an editor, and not one that papermill or nbval executes."""
    return "JPY_SESSION_NAME" in os.environ or "VSCODE_PID" in os.environ


def watch(
    experiment: Experiment,
    *,
    every: int = 25,
    baseline: pd.DataFrame | None = None,
    live: bool | None = None,
    on_evaluation: Callable[[int], Any] | None = None,
) -> pd.DataFrame:
    """Train to the end. Live, one figure is drawn anew every few steps and a bar tells the time left.

    Stop it with the stop button: with a checkpoint (``Experiment(config, checkpoint=…)``) the cell says how to go on.

    Args:
        experiment: what to train.
        every: steps between two drawings.
        baseline: a stored validation curve to draw beside, as :func:`~bonlib.study.records.mean_curve` gives it.
        live: whether to draw; by default where :func:`somebody_looks`.
        on_evaluation: called with the step after each evaluation, such as
            :meth:`~bonlib.study.explorer.Story.remember`.

    Returns:
        The history, one evaluation a row, with miner and form.

    Raises:
        KeyboardInterrupt: if it was stopped; the last checkpoint is whole.
    """
    live, config = somebody_looks() if live is None else live, experiment.config
    handle: Any = display(f"{config.miner} {config.form}s: training has begun.", display_id=True)
    points: list[dict[str, float]] = []
    loss = active = 0.0
    seen = 0
    with tqdm(total=config.steps, unit="step", disable=not live) as bar:
        try:
            for step in experiment:
                bar.update(step.step - bar.n)
                seen += 1
                share = max(0.1, 1 / seen)  # a mean over the first ten steps, then smoothed over about as many
                loss, active = loss + share * (step.loss - loss), active + share * (step.active - active)
                if live and step.step % every == 0:
                    stats = experiment.miner.stats()
                    entropy = {"miner.entropy_bits": stats["entropy_bits"]} if "entropy_bits" in stats else {}
                    points.append({"step": step.step, "loss": loss, "active": active} | entropy)
                    _show(handle, _named(experiment), baseline, pd.DataFrame(points))
                if step.metrics is not None and on_evaluation is not None:
                    on_evaluation(step.step)
        except KeyboardInterrupt:
            print(_how_to_go_on(experiment, bar.n))
            raise KeyboardInterrupt from None  # where exactly it was stopped is of no use to anybody
    history = _named(experiment)
    _show(handle, history, baseline, None)
    return history


def _named(experiment: Experiment) -> pd.DataFrame:
    return pd.DataFrame(experiment.history).assign(miner=experiment.config.miner, form=experiment.config.form)


def _show(handle: Any, history: pd.DataFrame, baseline: pd.DataFrame | None, points: pd.DataFrame | None) -> None:
    if handle is None or (history.empty and points is None):  # outside IPython there is nothing to draw on
        return
    figure = training_curves(history, baseline=baseline, points=points)
    handle.update(figure)
    plt.close(figure)


def _how_to_go_on(experiment: Experiment, step: int) -> str:
    if experiment.checkpoint is None:
        return f"Stopped after step {step}. Nothing was saved: give Experiment a checkpoint to be able to go on."
    if not experiment.checkpoint.exists():
        return f"Stopped after step {step}, before the first checkpoint: run the cells from Experiment(…) on again."
    return (
        f"Stopped after step {step}. The checkpoint {experiment.checkpoint} is whole: to go on from it run the cells "
        "from Experiment(…) on again, now or in another session; to begin anew delete it."
    )
