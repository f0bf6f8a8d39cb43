"""Means over seeds with intervals, and differences paired by seed."""
# pandas is typed more loosely than it behaves:
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportIndexIssue=false

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

_ROUNDING = 1e-12  # differences that arithmetic makes
_LEVEL = 0.05  # of significance, over all comparisons of a table


class Interval(NamedTuple):
    """A mean with its 95 % interval; NaN where one value does not tell."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        """Mean and half width of the interval; of one seed the value alone."""
        return f"{self.mean:.3f}" + (f" ± {(self.high - self.low) / 2:.3f}" if self.seeds > 1 else " (one seed)")


class Difference(NamedTuple):
    """A mean difference paired by seed, with its 95 % interval; NaN where one pair does not tell."""

    mean: float
    low: float
    high: float
    seeds: int  # that both methods have
    p: float  # of a paired t-test, or of the signs where all pairs differ alike; not corrected
    unmatched: list[int]  # seeds that only one of them has, left out of everything here
    first: float  # mean of each, over the shared seeds
    second: float


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean over seeds and its Student-t interval; with one value the interval is not known (NaN).

    Raises:
        ValueError: if there is no value.

    Example:
        >>> print(mean_interval([0.80, 0.82, 0.84]))
        0.820 ± 0.050
        >>> print(mean_interval([0.80]))
        0.800 (one seed)
    """
    from scipy.stats import sem, t

    array = np.asarray(values, dtype=float)
    if not len(array):
        raise ValueError("values is empty; give at least one run.")
    if not np.isfinite(array).all():
        raise ValueError(f"values holds {int((~np.isfinite(array)).sum())} that are not finite; leave such runs out.")
    if len(array) < 2:
        return Interval(float(array[0]), float("nan"), float("nan"), 1)
    mean, half = float(array.mean()), float(t.ppf((1 + confidence) / 2, len(array) - 1) * sem(array))
    return Interval(mean, mean - half, mean + half, len(array))


def summary(runs: pd.DataFrame, by: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Mean ± half width of the 95 % interval over seeds, as text, for each group of runs.

    Args:
        runs: as :func:`~bonlib.study.records.load_runs` gives them.
        by: columns that make a method.
        columns: columns to average.

    Raises:
        ValueError: if a group has two runs of a seed.
    """
    groups = runs.groupby(list(by), sort=False, dropna=False)
    if (groups["seed"].count() > groups["seed"].nunique()).any():
        raise ValueError(f"A group of {', '.join(by)} has several runs of one seed; add what tells them apart to by.")
    table = groups[list(columns)].agg(lambda values: str(mean_interval(values)))
    return table.assign(seeds=groups["seed"].nunique())


def paired_difference(first: pd.DataFrame, second: pd.DataFrame, column: str) -> Difference:
    """Mean of ``first - second`` with its 95 % interval and a paired t-test, over the seeds that both have.

    Args:
        first: runs of one method, one a seed.
        second: runs of another.
        column: what to compare.

    Raises:
        ValueError: if a method has two runs of a seed, or the two share no seed.
    """
    from scipy.stats import ttest_rel

    a, b = (runs.set_index("seed")[column].astype(float) for runs in (first, second))
    a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    if not (a.index.is_unique and b.index.is_unique):
        raise ValueError("A method has several runs of one seed; choose those of one config.")
    shared = a.index.intersection(b.index)
    if shared.empty:
        names = [
            str(runs["method"].iloc[0]) if "method" in runs and len(runs) else "a method" for runs in (first, second)
        ]
        raise ValueError(
            f"{names[0]} and {names[1]} share no seed with a {column}: {sorted(a.index)} and {sorted(b.index)}; "
            "run the missing ones, or leave the method out."
        )
    unmatched = sorted(map(int, a.index.symmetric_difference(b.index)))
    a, b = a[shared].to_numpy(dtype=float), b[shared].to_numpy(dtype=float)
    mean, low, high, p = float((a - b).mean()), float("nan"), float("nan"), float("nan")
    if len(shared) > 1 and np.ptp(a - b) < _ROUNDING:  # the same at each seed: the t-test has no spread, signs tell
        low, high, p = mean, mean, 1.0 if abs(mean) < _ROUNDING else 2.0 ** (1 - len(shared))
    elif len(shared) > 1:
        test = ttest_rel(a, b)
        (low, high), p = map(float, test.confidence_interval(0.95)), float(test.pvalue)
    return Difference(mean, low, high, len(shared), p, unmatched, float(a.mean()), float(b.mean()))


def verdicts(differences: Sequence[Difference]) -> list[tuple[str, float]]:
    """What the comparisons of one table say: ``ahead``, ``behind``, ``level`` or ``not known``, and Holm's p.

    A table with many comparisons finds some by luck; Holm's correction holds the chance of any false lead at 5 %. Where
    one seed is all there is, nothing is known, and it does not count.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979, as in statsmodels.
    """
    from statsmodels.stats.multitest import multipletests

    known = [i for i, found in enumerate(differences) if not np.isnan(found.p)]
    corrected = np.full(len(differences), np.nan)
    if known:
        corrected[known] = multipletests([differences[i].p for i in known], method="holm")[1]
    said = []
    for found, p in zip(differences, corrected.tolist(), strict=True):
        lead = "ahead" if found.mean > 0 else "behind"
        said.append(("not known: one seed" if np.isnan(p) else lead if p < _LEVEL else "level", p))
    return said


def _one_budget(runs: pd.DataFrame, name: str) -> None:
    """Refuse to compare runs of several data sets or lengths, or methods that are several.

    Raises:
        ValueError: if there are several.
    """
    of_one = {"steps": "steps; choose those of one budget", "dataset": "as data set; choose those of one"}
    of_one["data.content"] = "as content of the files; choose those of one folder"
    for column, what in of_one.items():
        if column in runs and runs[column].nunique() > 1:
            raise ValueError(f"{name} has runs of {sorted(set(runs[column].dropna().tolist()))} {what}.")
    for column in {"label_noise", "split_identities", "identities"} & set(runs.columns):
        kinds = runs[column].fillna(0).groupby(runs["method"]).nunique()
        if (kinds > 1).any():
            raise ValueError(f"{kinds.idxmax()} has runs of several {column}; choose those of one, or name them apart.")


def _one_run_a_seed(runs: pd.DataFrame) -> None:
    """Refuse to take runs of several configs for several seeds.

    Raises:
        ValueError: if a method has two runs of a seed.
    """
    if (twice := runs.duplicated(["method", "seed"])).any():
        name = runs["method"][twice].iloc[0]
        raise ValueError(f"{name} has several runs of one seed; choose those of one config, or name them apart.")


def _devices(runs: pd.DataFrame) -> list[str]:
    """Those of the runs, by their names where these are known; the seconds of several cannot be compared."""
    columns = ["device", "provenance.gpu", "provenance.processor", "provenance.cores"]
    known, names = runs.reindex(columns=columns).astype(object), set[str]()
    for device, gpu, processor, cores in known.where(known.notna(), None).itertuples(index=False):
        if gpu and device != "cpu":  # a machine that has a GPU may still compute without it
            names.add(gpu)
        elif processor or device:
            names.add(f"{processor}, {cores:.0f} cores" if processor and cores else processor or device)
    return sorted(names)


def _compared(rows: list[dict[str, Any]], differences: list[Difference]) -> pd.DataFrame:
    """A table of comparisons with the columns that all of them have."""
    for row, found, (verdict, p) in zip(rows, differences, verdicts(differences), strict=True):
        row |= {"lead": found.mean, "low": found.low, "high": found.high, "p": p, "seeds": found.seeds}
        row |= {"verdict": verdict}
        if found.unmatched:
            row["without seeds"] = ", ".join(map(str, found.unmatched))
    return pd.DataFrame(rows)


def against(runs: pd.DataFrame, column: str, method: str) -> pd.DataFrame:
    """What a method is ahead of each other one, paired by seed, with Holm's correction over the table.

    Args:
        runs: as :func:`~bonlib.study.records.load_runs` gives them.
        column: what to compare.
        method: name of the method.

    Returns:
        One row for each other method, best opponent first: its mean ``value`` and the method's ``lead`` over it, both
        over the ``seeds`` that they share, ``low`` and ``high`` of the lead's 95 % interval (not corrected), ``p`` by
        Holm over the rows, and ``verdict``: ahead or behind where p is below 0.05, level, or not known of one seed.
        Where a seed has no partner, ``without seeds`` names it.

    Raises:
        ValueError: if there is no such method.
    """
    _one_budget(runs, "The table")
    own = runs[runs["method"] == method]
    if own.empty:
        raise ValueError(f"method is {method!r}; allowed are {sorted(runs['method'].unique())}.")
    rows, differences = [], []
    for other, group in runs[runs["method"] != method].groupby("method"):
        differences.append(paired_difference(own, group, column))
        rows.append({"method": other, "value": differences[-1].second})
    table = _compared(rows, differences)
    return table if table.empty else table.sort_values("value", ascending=False).set_index("method")


def of_shared_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of those seeds that every method has, so that means of methods can be compared.

    Args:
        runs: as :func:`~bonlib.study.records.load_runs` gives them.

    Raises:
        ValueError: if the methods share no seed, or the runs are of several data sets or lengths.
    """
    _one_budget(runs, "The table")
    wanted = runs["method"].nunique()
    runs = runs.loc[runs["error"].isna()] if "error" in runs else runs
    methods = runs.groupby("seed")["method"].nunique()
    shared = methods.index[methods == wanted]
    if not len(shared):
        raise ValueError(f"runs share no seed; each method has its own: {runs.groupby('method')['seed'].unique()}.")
    return runs.loc[runs["seed"].isin(shared)]


def leads_by(
    runs: pd.DataFrame, by: str, column: str = "metrics.recall@1", *, miner: str = "bag", baseline: str = "random"
) -> pd.DataFrame:
    """What a miner is ahead of a baseline in each group of runs, such as data sets, paired by seed.

    Args:
        runs: as :func:`~bonlib.study.records.load_runs` gives them, one form and loss.
        by: column that makes the groups.
        column: what to compare.
        miner: whose lead it is.
        baseline: over which miner.

    Returns:
        One row a group that has both, by rising number of identities: ``identities`` and ``images`` to train on,
        ``steps``, mean of ``baseline`` and ``miner`` under their names, and ``lead``, ``low``, ``high``, ``p``,
        ``seeds``, ``verdict`` as :func:`against` gives them.

    Raises:
        ValueError: if a group mixes budgets, or no group has both miners.
    """
    rows, differences = [], []
    if runs[by].isna().any():
        raise ValueError(f"{by} is missing in {int(runs[by].isna().sum())} runs; fill it in, such as by fillna.")
    for name, group in runs.groupby(by, sort=False):
        first, second = group[group["miner"] == miner], group[group["miner"] == baseline]
        if first.empty or second.empty:
            continue
        _one_budget(group, str(name))
        found = paired_difference(first, second, column)
        size = {part: int(group[f"data.{part}"].median()) for part in ("identities", "images")}  # subsets vary by seed
        means = {baseline: found.second, miner: found.first}
        differences.append(found)
        rows.append({by: name, **size, "steps": int(group["steps"].iloc[0]), **means})
    if not rows:
        raise ValueError(f"No {by} has runs of both {miner!r} and {baseline!r}; run a sweep with both.")
    return _compared(rows, differences).sort_values("identities", kind="stable").set_index(by)


def ahead_of(history: pd.DataFrame, method: str, metric: str = "recall@1") -> pd.DataFrame:
    """The others of a history with the column ``lead``: what each is ahead of a method's run of that seed and step.

    Raises:
        ValueError: if the method has no history here, or a run has no partner.
    """
    own = history[history["method"] == method].set_index(["dataset", "seed", "step"])[metric]
    at = history.set_index(["dataset", "seed", "step"]).index
    if own.empty or not at.isin(own.index).all():
        raise ValueError(f"method is {method!r}, which has no run for each data set, seed and step of the others here.")
    found = history.assign(lead=history[metric].to_numpy() - own[at].to_numpy())
    return found.query("method != @method")


def time_to_accuracy(
    runs: pd.DataFrame, history: pd.DataFrame, metric: str = "recall@1", baseline: str = "random sets + batch-hard"
) -> pd.DataFrame:
    """Steps and seconds of training until a run first reaches what the baseline reached at best.

    The target is the best validation value of the baseline's run of the same seed. A run that never reaches it is
    censored: it counts in ``seeds`` but not in ``reached``, and a median is infinite where it is the middle one.

    Args:
        runs: as :func:`~bonlib.study.records.load_runs` gives them.
        history: as :func:`~bonlib.study.records.load_history` gives it.
        metric: column of the history.
        baseline: method whose best value is the target.

    Returns:
        One row a method: ``target``, its mean over seeds, ``reached``, ``seeds``, and the medians over seeds of
        ``step`` and ``seconds``; no seconds where the runs are of several devices.

    Raises:
        ValueError: if the baseline has no run, or none of a seed, a run has no history, or a method two of a seed.
    """
    _one_budget(runs, "The table")
    history = history.loc[history["key"].isin(runs["key"])] if len(history) else history
    known = set(history["method"]) if len(history) else set()
    if baseline not in known:
        raise ValueError(f"baseline is {baseline!r}, which has no history here; allowed are {sorted(known)}.")
    if silent := sorted(set(runs["key"]) - set(history["key"])):
        raise ValueError(f"The runs {', '.join(silent)} have no history; run them again, or leave them out.")
    if silent := sorted(history.loc[history[metric].isna(), "key"].unique()):
        raise ValueError(f"The runs {', '.join(silent)} have no {metric} at some step; leave them out.")
    best = history[history["method"] == baseline].groupby("seed")[metric].max()
    targets = {int(seed): float(value) for seed, value in best.items()}  # pyright: ignore[reportArgumentType]
    if alone := sorted(set(runs["seed"]) - set(targets)):
        raise ValueError(f"baseline is {baseline!r}, which has no run of the seeds {alone}; leave them out.")
    rows = []
    for key, seed in zip(runs["key"], runs["seed"], strict=True):
        points = history[history["key"] == key].sort_values("step")
        there = points[points[metric] >= targets[seed] - _ROUNDING]
        first = there.iloc[0] if len(there) else {"step": np.inf, "training_seconds": np.inf}
        method = {"method": points.iloc[0]["method"], "seed": seed}
        rows.append(method | {"reached": len(there) > 0, "step": first["step"], "seconds": first["training_seconds"]})
    _one_run_a_seed(pd.DataFrame(rows))
    groups = pd.DataFrame(rows).groupby("method", sort=False)
    medians = groups[["step", "seconds"] if len(_devices(runs)) < 2 else ["step"]].median()
    return medians.assign(target=best.mean(), reached=groups["reached"].sum(), seeds=groups.size())


def cost_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds of a step by part, the miner's share of it, and the peak of memory in GiB, means over seeds.

    Returns:
        One row a method: ``draw``, ``data``, ``compute``, ``hash``, ``refresh`` and ``total`` in ms, ``miner_share``
        (draw, hash and refresh) and ``peak_memory_gib``.

    Raises:
        ValueError: if the runs are of several devices, or a method has two of a seed.
    """
    if len(devices := _devices(runs)) > 1:
        raise ValueError(f"The table has runs of {devices}; choose those of one device.")
    _one_run_a_seed(runs)
    parts = ["draw", "data", "compute", "hash", "refresh"]
    runs = runs.dropna(subset=["seconds.compute"])  # a failed run has none
    seconds = runs.reindex(columns=[f"seconds.{part}" for part in parts]).fillna(0.0).set_axis(parts, axis=1)
    table = seconds.mul(1000).div(runs["steps"], axis=0).groupby(runs["method"], sort=False).mean()
    total = table.sum(axis=1)
    memory = runs.groupby("method", sort=False)["peak_memory_gib"].mean()
    share = table[["draw", "hash", "refresh"]].sum(axis=1) / total
    return table.assign(total=total, miner_share=share, peak_memory_gib=memory)
