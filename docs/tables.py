"""Tables of results in Markdown, made from the records.

``python docs/tables.py`` writes them into the pages, between markers; a test holds the pages to the records, and the
site makes them anew as it is built.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from bonlib.study.records import load_bench, load_history, load_runs
from bonlib.study.statistics import (
    Difference,
    against,
    cost_table,
    of_shared_seeds,
    paired_difference,
    time_to_accuracy,
    verdicts,
)

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "docs" / "results.md"]
STEERED = "two stages, steered"
NAMES = {"glyphs": "glyphs", "hangul": "Hangul", "parts": "parts in 3D", "toponyms": "names of places"}
_RENAMED = {"two stages": "two stages (default)", "two stages, learned hash": "learned hash"}  # beside their parts


def markdown(header: str, rows: list[list[str]]) -> str:
    """A table; the header's cells are parted by bars."""
    columns = [cell.strip() for cell in header.split("|")]
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def points(row, column: str = "lead") -> str:
    """A lead in points with its interval and what Holm's correction leaves of it."""
    lead, low, high = (round(100 * row[name], 1) + 0.0 for name in (column, "low", "high"))  # no -0.0
    return f"{lead:+.1f} [{low:.1f}, {high:.1f}] {row['verdict']}"


def compared(rows: list[tuple[list[str], list[Difference]]]) -> list[list[str]]:
    """Cells of each row, and behind them its leads, with one Holm's correction over the leads of all rows."""
    said = iter(verdicts([found for _, leads in rows for found in leads]))
    return [
        [*cells, *(points({"lead": d.mean, "low": d.low, "high": d.high, "verdict": next(said)[0]}) for d in leads)]
        for cells, leads in rows
    ]


def of_miners(runs: pd.DataFrame, column: str, *miners: str) -> tuple[list[str], list[Difference]]:
    """Means of random sets and of miners, by default of both stages, and what these lead random sets by."""
    of = {str(miner): group for miner, group in runs.groupby("miner")}
    miners = miners or ("bag", "two-stage-bag")
    values = [f"{of[miner][column].mean():.3f}" for miner in ("random", *miners)]
    return values, [paired_difference(of[miner], of["random"], column) for miner in miners]


def lead_of(table: pd.DataFrame, method: str) -> str:
    """The lead over a method, empty for the one whose lead it is."""
    return points(table.loc[method]) if method in table.index else ""


def fewer(value: float, baseline: float) -> str:
    """Share of the errors of a baseline, both recalls, that are no errors any more."""
    return f"{1 - (1 - value) / (1 - baseline):.0%}".replace("-0%", "0%").replace("-", "\u2212")


def finished(sweep: str):
    """The finished runs of a sweep."""
    return load_runs(sweep).query("error.isna()")


def scratch() -> str:
    """From scratch: triplets on glyphs, and BoN sets against random ones on the large data sets."""
    runs = finished("stages")
    values, leads = of_miners(runs, "validation.recall@1")
    size = f"{NAMES['glyphs']}, {runs['data.identities'].median():,.0f} identities"
    rows = [([size, "triplets", f"{runs['steps'].iloc[0]:,}", *values], leads)]
    for (size, loss, steps), values, leads in _large("metrics.recall@1"):
        rows.append(([size, f"sets + {loss}", steps, *values], leads))
    header = "data, to train on | batches and loss | steps | random | as published, sets of four bags | two stages"
    header += " | as published leads random by, points | two stages lead random by, points"
    return markdown(header, compared(rows))


def _large(column: str) -> Iterator[tuple[tuple[str, str, str], list[str], list[Difference]]]:
    """Size, loss and steps of the runs on the large data sets, their means, and their leads over random sets."""
    runs = finished("large")
    for (identities, loss), group in runs.groupby(["data.identities", "loss"]):
        size = f"{NAMES[group['dataset'].iloc[0]]}, {identities:,.0f} identities"
        yield (size, str(loss), f"{group['steps'].iloc[0]:,}"), *of_miners(group, column)


def large() -> str:
    """BoN sets against random sets on the large data sets: all samples of an identity, MAP@R."""
    rows = [([size, loss, *values], leads) for (size, loss, _), values, leads in _large("metrics.map@r")]
    header = "data, to train on | loss | random MAP@R | as published | two stages"
    return markdown(f"{header} | as published leads by, points | two stages lead by, points", compared(rows))


def trials() -> str:
    """The trials on validation places by which margins and augmentation of the large runs on names were chosen."""
    rows = []
    for _, run in finished("tune_toponyms").sort_values(["method", "margin"]).iterrows():
        options = ", ".join(f"{name} {value}" for name, value in run["dataset_options"].items()) or "none"
        rows.append([run["method"], f"{run['margin']:.1f}", options, f"{run['validation.recall@1']:.3f}"])
    return markdown("method | margin | augmentation | R@1", rows)


def _field(smooth: bool = False) -> dict[str, pd.DataFrame]:
    """The runs of each data set from a trained encoder: those under InfoNCE, or all others."""
    runs = finished("field")
    runs = runs[(runs["loss"] == "infonce") == smooth]
    return {str(name): group for name, group in runs.groupby("dataset", sort=False)}


def stages() -> str:
    """From a trained encoder: random sets, BoN as published, two stages, the best of the others; the README's rows."""
    rows = []
    for name, group in _field().items():
        means = group.groupby("method")["validation.recall@1"].mean()
        others = means[[method for method in means.index if not method.startswith(("random", "first", "two"))]]
        own = against(group, "validation.recall@1", "two stages")
        values = [f"{means[method]:.3f}" for method in ("random", "first stage", "two stages")]
        best = f"{others.max():.3f} {others.idxmax()}".replace("memory", "memory (a loss)")
        rows.append([NAMES[name], *values, best, points(own.loc["random"]),
                     fewer(means["two stages"], means["random"])])  # fmt: skip
    header = "data | random sets | as published | two stages | best of the others"
    return markdown(f"{header} | two stages lead random by, points | fewer errors than random", rows)


def dial() -> str:
    """From a trained encoder to the end of a cosine schedule, a table a data set."""
    runs = finished("dial")
    known = {NAMES[str(name)]: group for name, group in runs.groupby("dataset", sort=False)}
    known |= {"parts in seven colours": finished("many")}
    tables = []
    for name, group in known.items():
        timed = group[group["provenance.cores"] == group["provenance.cores"].mode()[0]]  # one run was made elsewhere
        seconds = cost_table(timed)["total"] * group["steps"].iloc[0] / 1000
        spent = {"seconds of training and looks": seconds.map("{:.0f}".format)}
        tables.append(f"### {name}\n\n{ranked(group, STEERED, spent)}")
    return "\n\n".join(tables)


def _settings(runs: pd.DataFrame) -> pd.Series:
    """What each method was run with: the margin, and the options of its miner and loss that are its own."""
    said = {}
    for method, group in runs.groupby("method"):
        options = group["miner_options"].iloc[0] | group["loss_options"].iloc[0]
        own = [f"{name} {value}" for name, value in options.items() if name not in ("every", "margin", "hasher")]
        said[method] = ", ".join([f"margin {group['margin'].iloc[0]}", *own]).replace("_", " ")
    return pd.Series(said)


def smooth_trials() -> str:
    """Temperatures of InfoNCE for each miner, one seed."""
    runs = finished("tune").query("loss == 'infonce'")
    scores = runs.pivot_table(
        index=["dataset", "method"], columns="margin", values="validation.recall@1", sort=False
    ).sort_index(axis="columns")
    rows = [
        [NAMES[name], method, *("" if math.isnan(value) else f"{value:.3f}" for value in row)]
        for (name, method), row in scores.iterrows()
    ]
    return markdown(" | ".join(["data", "miner", *(f"temperature {margin}" for margin in scores.columns)]), rows)


def _sizes() -> tuple[pd.DataFrame, pd.Series]:
    """The runs with batches of several sizes, and R@1 of the encoders that they begin with, by data set and seed."""
    runs = finished("batches")
    begins = runs["method"] == "start"
    return runs[~begins], runs[begins].set_index(["dataset", "seed"])["validation.recall@1"]


def batches() -> str:
    """Two stages and random sets in batches of several sizes, the same number of images."""
    runs, begins = _sizes()
    rows = []
    for (name, loss, margin, size), group in runs.groupby(["dataset", "loss", "margin", "batch_size"]):
        setting = f"{loss}, {'temperature' if loss == 'infonce' else 'margin'} {margin}"
        values, leads = of_miners(group, "validation.recall@1", "two-stage-bag")
        begin = f"{begins[name][group['seed'].unique()].mean():.3f}"
        rows.append(([NAMES[name], setting, str(size), begin, *values], leads))
    return markdown("data | loss | batch | before | random | two stages | two stages lead by, points", compared(rows))


def batches_field() -> str:
    """The best of the opponents under InfoNCE."""
    runs = finished("batches").query("dataset == 'parts' and batch_size == 128 and margin == 0.05")
    return ranked(of_shared_seeds(runs), "two stages")


def _long() -> dict[str, pd.DataFrame]:
    """The long runs on parts, those in one colour and those in seven."""
    names = {4000: NAMES["parts"], 6000: "parts in seven colours"}
    return {names[steps]: of for steps, of in finished("long").groupby("steps")}  # pyright: ignore


def longest() -> str:
    """From a trained encoder through several passes, a table a data set."""
    tables, history = [], load_history("long")
    for name, group in _long().items():
        means = group.groupby("method")["validation.recall@1"].mean()
        times = time_to_accuracy(group, history, baseline="random")
        more = {
            "fewer errors than random": means.map(lambda value, of=means["random"]: fewer(value, of)),
            "steps to random's best": times.apply(_steps_to, axis=1).where(times.index != "random", ""),
        }
        size = f"{group['data.identities'].median():,.0f} identities, {group['steps'].iloc[0]:,} steps"
        tables.append(f"### {name}, {size}\n\n{ranked(group, 'two stages', more)}")
    return "\n\n".join(tables)


def field() -> str:
    """Every method from a trained encoder, best first, a table a data set."""
    parts = []
    for name, group in _field().items():
        costs, of = cost_table(group), group.groupby("method")
        errors = of["validation.recall@1"].mean()
        looks = group["miner_stats.looks"].fillna(group["fill"].astype(int)).groupby(group["method"]).mean()
        more = {
            "setting": _settings(group),
            "fewer errors than random": errors.map(lambda value, random=errors["random"]: fewer(value, random)),
            "draw and hash, ms a step": (costs["draw"] + costs["hash"]).map("{:.1f}".format),
            "looks at all the data": looks.map("{:.0f}".format),
        }
        parts.append(f"### {NAMES[name]}\n\n{ranked(group, 'two stages', more)}")
    return "\n\n".join(parts)


def smooth() -> str:
    """The same under InfoNCE, each miner with the temperature of its best trial, a table a data set."""
    parts = []
    for name, group in _field(smooth=True).items():
        more = {"temperature": group.groupby("method")["margin"].first()}
        parts.append(f"#### {NAMES[name]}\n\n{ranked(group, 'two stages', more)}")
    return "\n\n".join(parts)


def _variants(runs: pd.DataFrame, method: str, header: str) -> str:
    """What a method is ahead of its variants, on validation classes."""
    table = against(runs, "validation.recall@1", method)
    rows = [[name, f"{row['value']:.3f}", points(row)] for name, row in table.iterrows()]
    return markdown(f"{header} | R@1 | {method} leads by, points", rows)


def ablation_hash() -> str:
    """What the learned hash is ahead of other hashes."""
    return _variants(finished("ablation_hash"), "autoencoder (ours)", "variant")


def ablation_ranks() -> str:
    """BoN triplets against exact negatives of chosen ranks, and against a table without stale codes."""
    triplets = finished("ablation_triplets")
    runs = pd.concat([finished("ablation_ranks"), triplets[triplets["method"].isin(["BoN", "random"])]])
    return _variants(runs, "BoN", "negatives")


def _law() -> pd.DataFrame:
    """The runs on some and on all identities, with their number as ``size``."""
    every = _field()["hangul"]
    runs = pd.concat([finished("law"), every[every["method"].isin(["random", "first stage", "two stages"])]])
    return runs.assign(size=runs["identities"].fillna(runs["data.identities"].max()).astype(int))


def law() -> str:
    """Leads over random sets by the number of training identities."""
    rows = []
    for size, group in _law().groupby("size"):
        (random, *_), leads = of_miners(group, "validation.recall@1")
        rows.append(([f"{size:,}", f"{size * math.log(2) / 15:,.0f}", random], leads))
    header = "training identities | rank of the nearest in a random set | random"
    return markdown(f"{header} | as published leads by, points | two stages lead by, points", compared(rows))


def nearness() -> str:
    """How near the hardest negatives of a set are, by exact rank, against the number of identities."""
    rows = []
    for variant, of in load_bench("ranks").groupby("variant", sort=False):
        wide = of.pivot(index="identities", columns="table", values="rank")
        cells = [f"{row['stale']:,.0f} / {row['fresh']:,.0f}" for _, row in wide.iterrows()]
        many = wide["stale"].loc[10_000:]  # fewer were trained on for more passes
        slope, _ = np.polyfit(np.log(many.index.to_numpy(dtype=float)), np.log(many.to_numpy(dtype=float)), 1)
        rows.append([str(variant), *cells, f"N^{slope:.1f}"])
    sizes = " | ".join(f"N = {size:,}" for size in sorted(load_bench("ranks")["identities"].unique()))
    return markdown(f"sets | {sizes} | stale ones grow from 10,000 on like", rows)


def second_stage() -> str:
    """What the parts of the second stage are worth, a table a data set: each changes one thing of the default."""
    tables, last = [], load_history("ablation_stages").sort_values("step").groupby("key")["active"].last()
    for name, runs in finished("ablation_stages").groupby("dataset", sort=False):
        runs = of_shared_seeds(runs.assign(method=runs["method"].replace(_RENAMED)))
        more = {"active tuples": runs["key"].map(last).groupby(runs["method"]).mean().map("{:.2f}".format)}
        tables.append(f"{NAMES[str(name)]}:\n\n{ranked(runs, 'two stages (default)', more)}")
    return "\n\n".join(tables)


def sketches() -> str:
    """What is remembered of an identity, to put a pool in order."""
    runs = load_bench("sketches").rename(columns={"sketch": "method"})
    means, table = runs.groupby("method", sort=False).mean(), against(runs, "recall@1", "mean in 8 bits (default)")
    rows = [
        [str(name), f"{of['recall@1']:.3f}", f"{of['map@r']:.3f}", f"{of['active']:.2f}", lead_of(table, str(name))]
        for name, of in means.sort_values("recall@1", ascending=False).iterrows()
    ]
    return markdown("remembered | R@1 | MAP@R | active tuples | the default leads by, points", rows)


def _steps_to(row: pd.Series) -> str:
    """Median steps to a target, and how many runs reach it where not all do."""
    step = "not" if math.isinf(row["step"]) else f"{row['step']:,.0f}"
    return step if row["reached"] == row["seeds"] else f"{step}; {row['reached']:.0f} of {row['seeds']:.0f} do"


def ranked(runs: pd.DataFrame, method: str, more: Mapping[str, pd.Series] | None = None) -> str:
    """The methods of a table of runs, best first, and what one of them is ahead of the others.

    Args:
        runs: finished ones of one data set.
        method: whose lead it is.
        more: further columns, by their headers: cells by method.
    """
    columns, more, runs = ["validation.recall@1", "validation.map@r"], more or {}, of_shared_seeds(runs)
    means, table = runs.groupby("method")[columns].mean(), against(runs, columns[0], method)
    rows = [
        [
            str(other),
            f"{recall:.3f}",
            f"{precision:.3f}",
            *(str(of[other]) for of in more.values()),
            lead_of(table, other),
        ]
        for other, (recall, precision) in means.sort_values(columns[0], ascending=False).iterrows()
    ]
    return markdown(" | ".join(["method", "R@1", "MAP@R", *more, f"{method} leads by, points"]), rows)


def transfer() -> str:
    """From an encoder that was trained on another data set."""
    return ranked(finished("transfer"), "two stages")


def _sooner() -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """The runs by the clock, when each method reaches random's best, and the R@1 that it ends with."""
    runs, history = finished("sooner"), load_history("sooner")
    # The encoder's step is the same work for all, on a machine that others used too: it counts as the mean of all runs.
    step = (runs["seconds.compute"] + runs["seconds.data"]) / runs["steps"]
    faster = (step.mean() - step).set_axis(runs["key"])
    history["training_seconds"] += history["step"] * history["key"].map(faster)
    times = time_to_accuracy(runs, history, baseline="random")
    return runs, times, runs.groupby("method")["validation.recall@1"].mean()


def sooner() -> str:
    """Images and seconds until a method first reaches what random sets reach at best."""
    (runs, times, last), rows = _sooner(), []
    parts = cost_table(runs)
    for method, row in times.sort_values("seconds").iterrows():
        reached = f"{row['reached']:.0f} of {row['seeds']:.0f}"
        to_it = [f"{row[name]:.0f}".replace("inf", "not") for name in ("step", "seconds")]
        looks = parts.loc[method, "refresh"] * runs["steps"].iloc[0] / 1000
        errors = fewer(last[method], last["random"])
        rows.append([method, f"{last[method]:.3f}", errors, reached, *to_it, f"{looks:.0f}"])
    header = "method | R@1 in the end | fewer errors than random | reach random's best | steps to it | seconds to it"
    return markdown(f"{header} | seconds of looks, whole run", rows)


def harm() -> str:
    """Labels that are wrong: what each method comes to, and what two stages lead it by."""
    runs = finished("harm")
    names = {
        0.0: "5 % of the identities have two names",
        0.1: "10 % of the labels wrong",
        0.3: "30 % of the labels wrong",
    }
    rows = []
    for noise, group in runs.groupby("label_noise"):
        table = against(group, "validation.recall@1", "two stages")
        for method, mean in group.groupby("method", sort=False)["validation.recall@1"].mean().items():
            lead = lead_of(table, method)
            rows.append([names[noise], method, f"{mean:.3f}", lead])
    return markdown("training labels | method | R@1 | two stages lead by, points", rows)


def classes() -> str:
    """Classifiers over all, some and near class centres beside batch-hard, a table a data set."""
    tables = []
    for name, group in finished("classes").groupby("dataset", sort=False):
        timed = group[~group["method"].str.contains("sets|schedule")]  # those ran on another machine
        milliseconds = cost_table(timed)["compute"].map("{:.0f}".format)
        spent = {"ms of forward, loss and backward": milliseconds.reindex(group["method"].unique(), fill_value="")}
        tables.append(f"### {NAMES[str(name)]}\n\n{ranked(group, '10 %, at random', spent)}")
    return "\n\n".join(tables)


def classifier() -> str:
    """What a classifier over a tenth of the classes leads tuned batch-hard by on names, as the README says it."""
    runs = finished("classes").query("method.str.contains('schedule')")
    table = against(runs, "validation.recall@1", "10 %, at random, to the end of a schedule")
    lead, _ = points(table.loc["batch-hard, to the end of a schedule"]).rsplit(" ", 1)
    return f"nominally leads by {lead} points"


def loops() -> str:
    """Pairs of texts and identities that arrive."""
    pairs = load_bench("pairs").groupby("method", sort=False)[["mrr@10", "seconds"]].mean()
    rows = [
        ["pairs of names, MRR@10", name, f"{row['mrr@10']:.3f}", f"{row['seconds']:.0f}"]
        for name, row in pairs.iterrows()
    ]
    ends = load_bench("captions").groupby(["method", "seed"], sort=False).last().groupby("method", sort=False)
    for name, row in ends[["title of an image", "image of a title", "seconds"]].mean().iterrows():
        both = f"{row['title of an image']:.3f} and {row['image of a title']:.3f}"
        rows.append(["titles of unseen parts by an image, and back, MRR@10", name, both, f"{row['seconds']:.0f}"])
    last = load_bench("arriving").groupby(["method", "seed"], sort=False).last()
    for name, row in last.groupby("method", sort=False)[["recall@1", "seconds"]].mean().iterrows():
        rows.append(["half of the places arrive, R@1", name, f"{row['recall@1']:.3f}", f"{row['seconds']:.0f}"])
    return markdown("task | method | mean of three seeds | seconds of training", rows)


def lookalikes() -> str:
    """What lists of wrong labels find."""
    found = load_bench("lookalikes")
    columns = ["precision_first_half", "recall", "seconds"]
    means = found.groupby(["learned", "what", "method"], sort=False)[columns].mean()
    rows = [
        [learned, what, method, f"{row[columns[0]]:.2f}", f"{row['recall']:.2f}", f"{row['seconds']:.1f}"]
        for (learned, what, method), row in means.iterrows()
    ]
    return markdown("encoder learned | planted | list | precision of the first half | recall | seconds", rows)


def lists() -> str:
    """What listing look-alikes costs, and how many of those that were planted are found."""
    rows = []
    for _, row in load_bench("lists").iterrows():
        exact = "" if math.isnan(row["exact"]) else f"{row['exact']:.1f}"
        spent = [f"{row[name]:.1f}" for name in ("fill", "lookalikes", "misfits")]
        rows.append([f"{row['identities']:,.0f}", *spent, exact, f"{row['found']:.0%}"])
    header = "identities | fill the bag, s | pairs, s | samples, s | exact search of all means, s"
    return markdown(f"{header} | planted pairs found by the bag", rows)


def costs() -> str:
    """What BoN costs beside its peers."""
    batches, samplers, hashing, steps, evaluation = (
        load_bench(f"{name}_cpu") for name in ("batches", "samplers", "hashing", "steps", "evaluation")
    )
    slowest = batches.groupby(["samples", "method"]).max(numeric_only=True)
    ratio, share = (
        samplers.set_index(["miner", "identities"])["to_bon"],
        steps.set_index(["encoder", "method"])["share"],
    )
    (_, ours), (_, theirs) = evaluation.iterrows()
    searched = samplers.query("miner == 'exact search'")["identities"].max()
    largest = slowest.index.get_level_values("samples")[-1]
    rows = [
        [f"draw a batch of 128 and correct its codes, {count:,} samples, {method}",
         f"{slowest.loc[(count, method), 'milliseconds']:.2f} ms again and again, "
         f"{slowest.loc[(count, method), 'cold']:.2f} ms with cold caches"]
        for count in (10**5, largest) for method in ("as published", "two stages")
    ]  # fmt: skip
    for method in ("as published", "two stages"):
        row = slowest.loc[(largest, method)]
        made = f"made in {row['build_seconds']:.0f} s, filled in {row['fill_seconds']:.0f} s"
        rows.append([f"all that a bag holds, {method}", f"{row['bytes_per_sample']:.1f} bytes a sample; {made}"])
    grown = batches.dropna(subset=["extend_seconds"])
    grown = grown.groupby(["samples", "method"])["extend_seconds"].max() * 1000
    rows += [
        *([f"append 1,000 samples to a bag of {count:,}, all of which is copied, {method}",
           f"{grown[count, method]:,.0f} ms; once a pass, {1000 * grown[count, method] / (count // 128):.1f} µs a step"]
          for count in (10**5, 10**7) for method in ("as published", "two stages")),
        ["`MPerClassSampler` of pytorch-metric-learning at 10⁶ identities",
         f"{ratio['MPerClassSampler', 10**6]:.0f} times the time of BoN for a batch"],
        [f"exact search for the negatives of a batch (faiss, flat) in {4 * searched:,} samples",
         f"{ratio['exact search', searched]:,.0f} times"],
        ["hash step as published, 64 to 512 dimensions, 10 to 24 bits",
         f"{hashing['milliseconds'].min():.2f} to {hashing['milliseconds'].max():.2f} ms; Adam on the same layers "
         f"by torch {hashing['floor'].min():.2f} to {hashing['floor'].max():.2f} ms"],
        *([f"share of BoN in a step of {name}, {method}", f"{part:.2%}" if part >= 1e-4 else "less than 0.01%"]
          for (name, method), part in share.items()),
        *([f"the same on a GPU (H100), {row['encoder']}, {row['method']}",
           f"{row['share']:.1%}: draw {row['draw']:.2f} ms and update {row['update']:.2f} ms, the copy from the GPU "
           f"with it, beside {row['training']:.1f} ms of training"] for _, row in load_bench("steps_cuda").iterrows()),
        ["evaluation of 100,000 against each other, 64 dimensions",
         f"{ours['seconds']:.0f} s and {ours['peak_gib']:.2f} GiB; `AccuracyCalculator` {theirs['seconds']:.0f} s and "
         f"{theirs['peak_gib']:.1f} GiB"],
    ]  # fmt: skip
    return markdown("what | measured on two cores", rows)


def aims() -> str:
    """What the second stage was to reach, set down before it was measured, and what was found."""
    field, ranks = _field(), load_bench("ranks")
    means = {name: group.groupby("method")["validation.recall@1"].mean() for name, group in field.items()}
    errors = ", ".join(f"{fewer(of['two stages'], of['random'])} on {NAMES[name]}" for name, of in means.items())
    history, sooner = load_history("field"), []
    for name, group in field.items():
        times = (
            time_to_accuracy(group, history, baseline="random").loc[["random", "two stages"]].apply(_steps_to, axis=1)
        )
        sooner.append(f"{times['two stages']} (random sets {times['random']}) on {NAMES[name]}")
    near = ranks[(ranks["identities"] == ranks["identities"].max()) & (ranks["variant"] == "two stages")]
    rank = near.set_index("table")["rank"]
    of_oracle = ", ".join(
        f"{(of['two stages'] - of['random']) / (of[exact] - of['random']):.0%} on {NAMES[name]}"
        for name, of in means.items()
        for exact in [next(method for method in of.index if method.startswith("exact"))]
    )
    batches, steps = load_bench("batches_cpu").query("method == 'two stages'"), load_bench("steps_cpu")
    cold = batches.groupby("samples")["cold"].max()
    (own,) = steps.query("encoder == 'small' and method == 'two stages'").to_dict("records")
    _, (published, two) = of_miners(finished("stages"), "validation.recall@1")
    rows = [
        ["errors of random sets that are none any more", "30 % on each", errors],
        ["steps to random's best, of those that random sets take", "a quarter on each", "; ".join(sooner)],
        ["share of the exact oracle's lead over random sets", "not set", of_oracle],
        ["median rank of the nearest negative in a set, 100,000 identities", "64",
         f"{rank['stale']:.0f}, {rank['fresh']:.0f} with a table filled anew"],
        ["triplets", "as far ahead of random ones as published",
         f"{100 * two.mean:+.1f} points, as published {100 * published.mean:+.1f}"],
        ["update of a batch in a step, 64 dimensions", "0.25 ms", f"{own['update']:.2f} ms"],
        ["draw and correct a batch, cold caches, slowest form", "0.25 ms at 10⁵ samples, 0.5 ms at 10⁸",
         f"{cold[10**5]:.2f} ms and {cold[10**8]:.2f} ms"],
        ["memory of all that a bag holds", "40 bytes a sample", f"{batches['bytes_per_sample'].max():.0f} bytes"],
    ]  # fmt: skip
    return markdown("what | aim | two stages", rows)


def gallery(folder: Path = ROOT / "notebooks") -> str:
    """All figures of the notebooks, each with the sentence that stands before it there."""
    parts = []
    for path in sorted(folder.glob("[0-9]*.ipynb")):
        cells, said = json.loads(path.read_text())["cells"], ""
        parts.append(f"## [{path.stem[:2]}](notebooks/{path.name}) {''.join(cells[0]['source']).splitlines()[0][2:]}")
        for cell in cells:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                text = [line for line in source.splitlines() if line and not line.startswith(("#", "|", "$", "-"))]
                plain = re.sub(r"[*`$]|\\cdot |\\|\[([^]]*)\]\([^)]*\)", r"\1", text[-1]) if text else said
                first, *rest = re.split(r"(?<=[.!?])\s", plain)
                said = f"{first} {rest[0]}" if rest and len(first.split()) < 8 else first
            for name in re.findall(r'save_figure\(\w+, "(\w+)"\)', source):
                if (ROOT / "figures" / f"{name}.png").exists():
                    parts.append(f"![{said.replace(']', '').replace('[', '')}](figures/{name}.png)\n\n*{said}*")
    return "\n\n".join(parts)


def one_batch() -> str:
    """The cost of a batch, as the README says it."""
    table = load_bench("batches_cpu")
    largest = table[table["samples"] == table["samples"].max()].groupby("method").max(numeric_only=True)
    first, two = (largest.loc[method] for method in ("as published", "two stages"))
    return (
        f"{two['milliseconds']:.2f} ms ({two['cold']:.2f} with cold caches) and {two['bytes_per_sample']:.0f} bytes a "
        f"sample with two stages; {first['milliseconds']:.2f} ({first['cold']:.2f}) and "
        f"{first['bytes_per_sample']:.0f} as published"
    )


def soonest() -> str:
    """Who reaches random's best when, as the README says it."""
    runs, times, _ = _sooner()
    random, two, schem, smart = (
        f"step {times.loc[name, 'step']:,.0f}, {times.loc[name, 'seconds']:.0f} seconds"
        for name in ("random", "two stages", "SCHEM", "smart mining")
    )
    reached = f"the best R@1 of random sets in {runs['steps'].iloc[0]:,} steps on Hangul ({random.split(', ')[-1]})"
    return f"{reached} is reached by two stages at {two}; by SCHEM at {schem}; by smart mining at {smart}"


def larger() -> str:
    """What two stages come to among the most identities, as the README says it."""
    name, runs = "parts in seven colours", _long()["parts in seven colours"]
    table = against(runs, "validation.recall@1", "two stages")
    (lead, verdict), behind = points(table.loc["random"]).rsplit(" ", 1), 100 * table.loc["smart mining", "lead"]
    return (
        f"among {runs['data.identities'].median():,.0f} identities ({name}, three seeds) two stages lead random sets "
        f"by {lead} points after {runs['steps'].iloc[0]:,} steps, {verdict}; smart mining, "
        f"{table.loc['smart mining', 'verdict']}, is nominally {abs(behind):.1f} points "
        f"{'behind' if behind > 0 else 'ahead'}"
    )


def small_batches() -> str:
    """What a bag does for a small batch, at the temperature that is best for random sets; the README's rows."""
    runs, begins = _sizes()
    runs = runs[runs["loss"] == "infonce"]
    random = runs[(runs["miner"] == "random") & (runs["seed"] < 3)]  # the seeds that all temperatures have
    scores = random.groupby(["batch_size", "dataset", "margin"])["validation.recall@1"].mean()
    best = {at: scores[at].idxmax() for at in scores.index.droplevel("margin").unique()}
    groups = {at: group[group["margin"] == best[at]] for at, group in runs.groupby(["batch_size", "dataset"])}
    found = {at: of_miners(group, "validation.recall@1", "two-stage-bag") for at, group in groups.items()}
    said = verdicts([leads[0] for _, leads in found.values()])
    cells = {
        at: f"{values[0]} → {values[1]}, {100 * leads[0].mean:+.1f} {verdict} ({best[at]})"
        for (at, (values, leads)), (verdict, _) in zip(found.items(), said, strict=True)
    }
    names = sorted({name for _, name in groups})
    first = ["before", *(f"{begins[name].mean():.3f}" for name in names)]
    rows = [[str(size), *(cells.get((size, name), "") for name in names)] for size in sorted({at for at, _ in groups})]
    return markdown(f"batch | {' | '.join(NAMES[name] for name in names)}", [first, *rows])


def growth() -> str:
    """How the lead of two stages grows with the identities, as the README says it."""
    said = []
    for size, group in _law().groupby("size"):
        _, (lead,) = of_miners(group, "validation.recall@1", "two-stage-bag")
        interval = f"[{100 * lead.low:.1f}, {100 * lead.high:.1f}]"
        said.append(f"{100 * lead.mean:+.1f} {interval} among {size:,}")
    return f"on Hangul two stages lead random sets by {', '.join(said)} identities"


def nearer() -> str:
    """How near negatives are among the most identities, as the README says it."""
    table = load_bench("ranks").query("table == 'stale'")
    most = table["identities"].max()
    rank = table[table["identities"] == most].set_index("variant")["rank"]
    first, two = rank["as published, 4 bags"], rank["two stages"]
    return (
        f"among {most:,} identities of names the nearest negative in a random set has rank {rank['random']:,.0f} in "
        f"the median (one seed); as published {first:,.0f}; with two stages {two:,.0f}"
    )


def filled(text: str) -> str:
    """A page with what stands between markers, ``<!-- name -->`` and ``<!-- end -->``, made anew by ``name()``."""

    def anew(found: re.Match[str]) -> str:
        content = globals()[found[2]]()
        return f"{found[1]}\n\n{content}\n\n{found[3]}" if "\n" in content else f"{found[1]}{content}{found[3]}"

    return re.sub(r"(<!-- (\w+) -->).*?(<!-- end -->)", anew, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
