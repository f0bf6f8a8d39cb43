"""Means over seeds with intervals, and differences paired by seed."""
# pandas is typed more loosely than it behaves:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


class Interval(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        """Mean and half width of the interval; of one seed the value alone."""
        return f"{self.mean:.3f}" + (f" ± {(self.high - self.low) / 2:.3f}" if self.seeds > 1 else "")


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean over seeds and its Student-t interval; with one value the interval is not known (NaN).

    Example:
        >>> print(mean_interval([0.80, 0.82, 0.84]))
        0.820 ± 0.050
    """
    from scipy.stats import t

    array = np.asarray(values, dtype=float)
    n, mean = len(array), float(array.mean())
    if n < 2:
        return Interval(mean, float("nan"), float("nan"), n)
    half = float(t.ppf((1 + confidence) / 2, n - 1) * array.std(ddof=1) / n**0.5)
    return Interval(mean, mean - half, mean + half, n)


def summary(runs: "pd.DataFrame", by: Sequence[str], columns: Sequence[str]) -> "pd.DataFrame":
    """Mean ± half width of the 95 % interval over seeds, as text, for each group of runs.

    Args:
        runs: as :func:`~bonlib.runs.load_runs` gives them.
        by: columns that make a method.
        columns: columns to average.
    """
    table = runs.groupby(list(by), sort=False)[list(columns)].agg(lambda values: str(mean_interval(values)))
    return table.assign(seeds=runs.groupby(list(by), sort=False)["seed"].nunique())


def paired_difference(first: "pd.DataFrame", second: "pd.DataFrame", column: str) -> Interval:
    """Mean of ``first - second`` with its 95 % interval, paired by seed.

    Args:
        first: runs of one method, one a seed.
        second: runs of another.
        column: what to compare.

    Raises:
        ValueError: if a method has two runs of a seed, or the two share no seed.
    """
    a, b = first.set_index("seed")[column], second.set_index("seed")[column]
    if not (a.index.is_unique and b.index.is_unique):
        raise ValueError("A method has several runs of one seed; choose those of one config.")
    differences = (a - b).dropna()
    if differences.empty:
        raise ValueError(f"The methods share no seed: {sorted(a.index)} and {sorted(b.index)}.")
    return mean_interval(differences.to_numpy())


def gains(runs: "pd.DataFrame", column: str, *, miner: str = "bag", baseline: str = "random") -> "pd.DataFrame":
    """What a miner gains over a baseline of the same form and loss, paired by seed.

    Returns:
        One row for each form and loss that both have: ``form``, ``loss``, ``gain`` (mean), ``low`` and ``high`` of
        the 95 % interval, ``seeds``.
    """
    import pandas as pd

    rows = []
    for (form, loss), group in runs.groupby(["form", "loss"], sort=False):
        first, second = group[group["miner"] == miner], group[group["miner"] == baseline]
        if len(first) and len(second):
            gain, low, high, seeds = paired_difference(first, second, column)
            rows.append({"form": form, "loss": loss, "gain": gain, "low": low, "high": high, "seeds": seeds})
    return pd.DataFrame(rows)


def against(runs: "pd.DataFrame", column: str, method: str) -> "pd.DataFrame":
    """What a method is ahead of each other one, paired by seed.

    Args:
        runs: as :func:`~bonlib.runs.load_runs` gives them.
        column: what to compare.
        method: name of the method.

    Returns:
        One row for each other method, best opponent first: its mean ``value``, the method's ``lead`` over it, ``low``
        and ``high`` of the 95 % interval, ``seeds``, and ``verdict``: ahead, behind, or level where the interval holds
        zero.

    Raises:
        ValueError: if there is no such method.
    """
    import pandas as pd

    own = runs[runs["method"] == method]
    if own.empty:
        raise ValueError(f"method is {method!r}; allowed are {sorted(runs['method'].unique())}.")
    rows = []
    for other, group in runs[runs["method"] != method].groupby("method"):
        lead, low, high, seeds = paired_difference(own, group, column)
        verdict = "ahead" if low > 0 else "behind" if high < 0 else "level"
        value = group[column].mean()
        rows.append({"method": other, "value": value, "lead": lead, "low": low, "high": high, "seeds": seeds})
        rows[-1]["verdict"] = verdict
    return pd.DataFrame(rows).sort_values("value", ascending=False).set_index("method")


def leads_by(
    runs: "pd.DataFrame",
    by: str,
    column: str = "metrics.recall@1",
    *,
    miner: str = "bag",
    baseline: str = "random",
) -> "pd.DataFrame":
    """What a miner is ahead of a baseline in each group of runs, such as data sets, paired by seed.

    Args:
        runs: as :func:`~bonlib.runs.load_runs` gives them, one form and loss.
        by: column that makes the groups.
        column: what to compare.
        miner: whose lead it is.
        baseline: over which miner.

    Returns:
        One row a group that has both, by rising number of identities: ``identities`` and ``images`` to train on,
        ``steps``, mean of ``baseline`` and ``miner`` under their names, ``lead``, ``low`` and ``high`` of its 95 %
        interval, ``seeds``.

    Raises:
        ValueError: if a group mixes budgets, or no group has both miners.
    """
    import pandas as pd

    rows = []
    for name, group in runs.groupby(by, sort=False):
        first, second = group[group["miner"] == miner], group[group["miner"] == baseline]
        if first.empty or second.empty:
            continue
        if group["steps"].nunique() > 1:
            steps = sorted(set(map(int, group["steps"])))
            raise ValueError(f"{name} has runs of {steps} steps; choose those of one budget.")
        lead, low, high, seeds = paired_difference(first, second, column)
        size = {part: int(group[f"data.{part}"].median()) for part in ("identities", "images")}  # subsets vary by seed
        means = {baseline: second[column].mean(), miner: first[column].mean()}
        rows.append({by: name, **size, "steps": int(group["steps"].iloc[0]), **means})
        rows[-1] |= {"lead": lead, "low": low, "high": high, "seeds": seeds}
    if not rows:
        raise ValueError(f"No {by} has runs of both {miner!r} and {baseline!r}; run a sweep with both.")
    return pd.DataFrame(rows).sort_values("identities", kind="stable").set_index(by)


def time_to_accuracy(
    runs: "pd.DataFrame",
    history: "pd.DataFrame",
    metric: str = "recall@1",
    baseline: str = "random sets + batch-hard",
) -> "pd.DataFrame":
    """Steps and seconds of training until a run first reaches what the baseline reached at best.

    The target is the baseline's best validation value, averaged over seeds. A run that never
    reaches it is censored: it counts in ``seeds`` but not in ``reached``, and a median is infinite where it is the
    middle one.

    Args:
        runs: as :func:`~bonlib.runs.load_runs` gives them.
        history: as :func:`~bonlib.runs.load_history` gives it.
        metric: column of the history.
        baseline: method whose best value is the target.

    Returns:
        One row a method: ``target``, ``reached``, ``seeds``, and the medians over seeds of ``step`` and ``seconds``.
    """
    import pandas as pd

    best = history.groupby(["key", "method"])[metric].max().reset_index()
    target = float(best.loc[best["method"] == baseline, metric].mean())
    rows = []
    for key in runs["key"]:
        points = history[history["key"] == key].sort_values("step")
        there = points[points[metric] >= target]
        first = there.iloc[0] if len(there) else {"step": np.inf, "training_seconds": np.inf}
        method = {"method": points.iloc[0]["method"]}
        rows.append(method | {"reached": len(there) > 0, "step": first["step"], "seconds": first["training_seconds"]})
    groups = pd.DataFrame(rows).groupby("method", sort=False)
    medians = groups[["step", "seconds"]].median()
    return medians.assign(target=target, reached=groups["reached"].sum(), seeds=groups.size())


def cost_table(runs: "pd.DataFrame") -> "pd.DataFrame":
    """Milliseconds of a step by part, the miner's share of it, and the peak of memory in GiB, means over seeds.

    Returns:
        One row a method: ``draw``, ``data``, ``compute``, ``hash``, ``refresh`` and ``total`` in ms, ``miner_share``
        (draw, hash and refresh) and ``peak_memory_gib``.
    """
    parts = ["draw", "data", "compute", "hash", "refresh"]
    seconds = runs.reindex(columns=[f"seconds.{part}" for part in parts]).fillna(0.0).set_axis(parts, axis=1)
    table = seconds.mul(1000).div(runs["steps"], axis=0).groupby(runs["method"], sort=False).mean()
    total = table.sum(axis=1)
    memory = runs.groupby("method", sort=False)["peak_memory_gib"].mean()
    share = table[["draw", "hash", "refresh"]].sum(axis=1) / total
    return table.assign(total=total, miner_share=share, peak_memory_gib=memory)
