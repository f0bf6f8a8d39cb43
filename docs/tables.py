"""Tables of results in Markdown, made from the records.

The docs take them as they are built. ``python docs/tables.py`` writes those of the README between its markers, and a
test holds them to the records.
"""

import re
from pathlib import Path

import pandas as pd

from bonlib.study.records import load_bench, load_runs
from bonlib.study.statistics import against, gains, leads_by, mean_interval

ROOT = Path(__file__).parent.parent
NAMES = {
    "omniglot": "Omniglot, minimal sets", "glyphs": "glyphs", "hangul": "Hangul", "parts": "parts in 3D",
    "toponyms": "names of places",
}  # fmt: skip


def markdown(header: str, rows: list[list[str]]) -> str:
    """A table; the header's cells are parted by bars."""
    columns = [cell.strip() for cell in header.split("|")]
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def points(row, column: str = "lead") -> str:
    """A lead in points with its interval and what Holm's correction leaves of it."""
    lead, low, high = (100 * row[name] for name in (column, "low", "high"))
    return f"{lead:+.1f} [{low:.1f}, {high:.1f}] {row['verdict']}"


def finished(sweep: str):
    """The finished runs of a sweep."""
    return load_runs(sweep).query("error.isna()")


def leads() -> str:
    """BoN against random sampling under one loss: the README's rows."""
    rows = []
    for name, row in leads_by(finished("datasets"), "dataset").iterrows():
        size = f"{NAMES[name]}, {row['identities']:,.0f} identities"
        rows.append(
            [size, "sets + batch-hard", f"{row['steps']:,}", f"{row['random']:.3f}", f"{row['bag']:.3f}", points(row)]
        )
    runs = finished("main")
    for row in gains(runs, "metrics.recall@1").to_dict("records"):
        of = runs[(runs["form"] == row["form"]) & (runs["loss"] == row["loss"])]
        means = of.groupby("miner")["metrics.recall@1"].mean()
        count = of.get("data.identities", pd.Series([1599])).iloc[0]  # the oldest records do not say it
        size = f"glyphs, {count:,.0f} identities"
        loss = "" if row["loss"] == row["form"] else f" + {row['loss']}"
        steps = f"{of['steps'].iloc[0]:,}"
        rows.append(
            [size, f"{row['form']}s{loss}", steps, f"{means['random']:.3f}", f"{means['bag']:.3f}", points(row, "gain")]
        )
    for row in _large("metrics.recall@1"):
        steps, means = f"{row['steps']:,}", [f"{row[miner]:.3f}" for miner in ("random", "bag")]
        rows.append([row["size"], f"sets + {row['loss']}", steps, *means, points(row)])
    return markdown("data, to train on | batches and loss | steps | random R@1 | BoN R@1 | lead, points", rows)


def _large(column: str) -> list[dict]:
    """The leads on the large data sets, one table of all data sets and losses."""
    runs = finished("large")
    table = leads_by(runs.assign(setting=runs["dataset"] + "/" + runs["loss"]), "setting", column)
    rows = []
    for setting, row in table.iterrows():
        name, loss = setting.split("/")
        rows.append(dict(row) | {"size": f"{NAMES[name]}, {row['identities']:,.0f} identities", "loss": loss})
    return rows


def large() -> str:
    """BoN sets as published against random sets on the large data sets: all images of an identity, MAP@R."""
    rows = [
        [row["size"], row["loss"], f"{row['random']:.3f}", f"{row['bag']:.3f}", points(row)]
        for row in _large("metrics.map@r")
    ]
    return markdown("data, to train on | loss | random MAP@R | BoN MAP@R | lead, points", rows)


def warm() -> str:
    """From a trained encoder, on validation classes: what each method reaches, and what two stages are ahead of it."""
    runs, rows = finished("warm"), []
    for name, group in runs.groupby("dataset", sort=False):
        means = group.groupby("method")["validation.recall@1"].mean()
        table = against(group, "validation.recall@1", "two stages")
        for method in ("random", "first stage", "two stages", "two stages, learned hash"):
            fewer = 1 - (1 - means[method]) / (1 - means["random"])
            lead = points(table.loc[method]) if method in table.index else ""
            errors = "" if method == "random" else f"{fewer:+.0%}".replace("+", "")
            rows.append([NAMES[name], method, f"{means[method]:.3f}", errors, lead])
    header = "data | method | R@1 | fewer errors than random sets | two stages lead by, points"
    return markdown(header, rows)


def stages() -> str:
    """From a trained encoder: random sets, BoN as published, two stages; the README's rows."""
    runs, rows = finished("warm"), []
    for name, group in runs.groupby("dataset", sort=False):
        means = group.groupby("method")["validation.recall@1"].mean()
        fewer = 1 - (1 - means["two stages"]) / (1 - means["random"])
        row = against(group, "validation.recall@1", "two stages").loc["random"]
        values = [f"{means[method]:.3f}" for method in ("random", "first stage", "two stages")]
        rows.append([NAMES[name], *values, points(row), f"{fewer:.0%}"])
    header = "data | random sets | BoN as published | two stages | two stages lead random by, points | fewer errors"
    return markdown(header, rows)


def field() -> str:
    """BoN sets against each opponent, after 600 steps on glyphs."""
    runs = finished("rivals")
    table = against(runs, "metrics.recall@1", "BoN sets + batch-hard")
    rows = []
    for name, of in sorted(runs.groupby("method"), key=lambda item: -item[1]["metrics.recall@1"].mean()):
        means = [str(mean_interval(of[f"metrics.{metric}"].tolist())) for metric in ("recall@1", "map@r")]
        lead = points(table.loc[name]) + f" (p = {table.loc[name, 'p']:.2g})" if name in table.index else ""
        rows.append([f"**{name}**" if name.startswith("BoN") else name, *means, lead])
    return markdown("method | R@1 | MAP@R | BoN sets lead by, points", rows)


def identities() -> str:
    """BoN sets against random sets on subsets of Hangul."""
    table = leads_by(finished("identities"), "data.identities", "validation.recall@1")
    rows = [[f"{count:,}", f"{row['random']:.3f}", f"{row['bag']:.3f}", points(row)] for count, row in table.iterrows()]
    return markdown("training identities | random sets R@1 | BoN sets R@1 | lead, points", rows)


def ablation(sweep: str, method: str) -> str:
    """What a method is ahead of its variants, on validation classes."""
    table = against(finished(sweep), "validation.recall@1", method)
    rows = [[name, f"{row['value']:.3f}", points(row)] for name, row in table.iterrows()]
    return markdown(f"variant | R@1 | {method} leads by, points", rows)


def ablation_ranks() -> str:
    """BoN triplets against exact negatives of chosen ranks, and against a table without stale codes."""
    triplets = finished("ablation_triplets")
    runs = pd.concat([finished("ablation_ranks"), triplets[triplets["method"].isin(["BoN", "random"])]])
    table = against(runs, "validation.recall@1", "BoN")
    rows = [[name, f"{row['value']:.3f}", points(row)] for name, row in table.iterrows()]
    return markdown("negatives | R@1 | BoN leads by, points", rows)


def costs() -> str:
    """What BoN costs beside its peers."""
    batches, samplers, hashing, steps, evaluation = (
        load_bench(f"{name}_cpu") for name in ("batches", "samplers", "hashing", "steps", "evaluation")
    )
    slowest, memory = batches.groupby("samples")[["milliseconds", "cold"]].max(), batches.iloc[-1]
    ratio, share = samplers.set_index(["miner", "identities"])["to_bon"], steps.set_index("encoder")["share"]
    (_, ours), (_, theirs) = evaluation.iterrows()
    searched = samplers.query("miner == 'exact search'")["identities"].max()
    rows = [
        [f"draw a batch of 128 and move it in the table, {count:,} samples",
         f"{slowest.loc[count, 'milliseconds']:.2f} ms again and again, "
         f"{slowest.loc[count, 'cold']:.2f} ms with cold caches"]
        for count in (slowest.index[1], slowest.index[-1])
    ]  # fmt: skip
    made = f"made in {memory['build_seconds']:.0f} s, filled in {memory['fill_seconds']:.0f} s"
    rows += [
        ["table, labels and class index", f"{memory['bytes_per_sample']:.1f} bytes a sample; {made}"],
        ["`MPerClassSampler` of pytorch-metric-learning at 10⁶ identities",
         f"{ratio['MPerClassSampler', 10**6]:.0f} times the time of BoN for a batch"],
        [f"exact search for the negatives of a batch (faiss, flat) in {4 * searched:,} samples",
         f"{ratio['exact search', searched]:,.0f} times"],
        ["hash step, 64 to 512 dimensions, 10 to 24 bits",
         f"{hashing['milliseconds'].min():.2f} to {hashing['milliseconds'].max():.2f} ms; Adam on the same layers "
         f"by torch {hashing['floor'].min():.2f} to {hashing['floor'].max():.2f} ms"],
        ["share of BoN in a training step, small encoder", f"{share['small']:.1%}"],
        ["share of BoN in a training step, ResNet-50 at 256×128", f"{share['resnet50']:.2%}"],
        ["evaluation of 100,000 against each other, 64 dimensions",
         f"{ours['seconds']:.0f} s and {ours['peak_gib']:.2f} GiB; `AccuracyCalculator` {theirs['seconds']:.0f} s and "
         f"{theirs['peak_gib']:.1f} GiB"],
    ]  # fmt: skip
    return markdown("what | measured on two cores", rows)


def one_batch() -> str:
    """The cost of a batch, as the README says it."""
    rows = load_bench("batches_cpu").groupby("samples")[["milliseconds", "cold"]].max().iloc[-1]
    return f"{rows['milliseconds']:.2f} ms ({rows['cold']:.2f} ms with cold caches)"


def filled(text: str) -> str:
    """A page with what stands between its markers, ``<!-- name -->`` and ``<!-- end -->``, made anew."""
    made = {"leads": f"\n{leads()}\n", "stages": f"\n{stages()}\n", "batch": one_batch()}
    for name, content in made.items():
        text = re.sub(
            rf"(<!-- {name} -->).*?(<!-- end -->)", lambda m, c=content: m[1] + c + m[2], text, flags=re.DOTALL
        )
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
