"""A picture that follows a run while it trains, in JupyterLab and under papermill."""

from typing import Any

import pandas as pd
from IPython.display import display
from matplotlib import pyplot as plt

from bonlib.experiment import Experiment
from bonlib.plots import training_curves


def watch(experiment: Experiment) -> pd.DataFrame:
    """Train to the end, drawing loss, active tuples and validation recall anew at each evaluation.

    Returns:
        The history, one evaluation a row, with miner and form.
    """
    handle: Any = display(f"{experiment.config.miner} {experiment.config.form}s: training has begun.", display_id=True)
    history = pd.DataFrame()
    for step in experiment:
        if step.metrics is not None:
            history = pd.DataFrame(experiment.history).assign(
                miner=experiment.config.miner, form=experiment.config.form
            )
            figure = training_curves(history)
            handle.update(figure)
            plt.close(figure)
    return history
