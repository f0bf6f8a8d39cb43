"""All figures of cost, each beside a peer or a floor in the same run, written to data/results/bench.

    python benchmarks/run.py [--largest 100000000] [--device cuda] [names …]

`make bench` runs it in full: some ten minutes, 10 GB of memory. Notebook 07 draws what it wrote.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import costs
import pandas as pd
import torch
from tqdm.auto import tqdm

from bonlib.study.records import write_bench

MEASURED: dict[str, Callable[[int, str], pd.DataFrame]] = {
    "batches": lambda largest, _: costs.batch_costs([10**k for k in range(4, 9) if 10**k <= largest]),
    "samplers": lambda largest, _: costs.sampler_costs([10**k for k in range(3, 7) if 4 * 10**k <= largest]),
    "hashing": lambda largest, _: costs.hash_costs(),
    "steps": lambda _, device: costs.step_costs(device=device),
    "variants": lambda *_: costs.step_variants(),
    "evaluation": lambda largest, _: costs.evaluation_costs(min(100_000, largest)),
    "wire": lambda *_: costs.wire_costs(),
}


def goals(name: str, table: pd.DataFrame) -> Iterator[tuple[str, float, str, bool]]:
    """What was aimed at: what, the value, the limit, whether it is kept."""
    if name == "batches":
        for method, rows in table.groupby("method", sort=False):
            largest = rows[rows["samples"] == rows["samples"].max()].max(numeric_only=True)
            last, size = largest["milliseconds"], f"{int(largest['samples']):,} samples, {method}"
            yield f"a batch of {size}, ms", last, "< 1", last < 1
            yield "the same with cold caches, ms", largest["cold"], "< 1", largest["cold"] < 1
            if len(few := rows[rows["samples"] == 10**5]):
                ratio = last / few["milliseconds"].max()
                yield "the same over 10^5 samples", ratio, "< 30", ratio < 30
            memory, seconds = largest["bytes_per_sample"], largest["build_seconds"] + largest["fill_seconds"]
            yield "bytes a sample", memory, "<= 32", memory <= 32
            yield "seconds to build and fill", seconds, "< 120", seconds < 120
    elif name == "samplers":
        ratio = table[table["miner"] == "MPerClassSampler"].iloc[-1]["to_bon"]
        yield f"MPerClassSampler over BoN at {table['identities'].max():,} identities", ratio, ">= 100", ratio >= 100
    elif name == "hashing":
        worst = table["milliseconds"].max()
        yield "hash step, worst width and length, ms", worst, "<= 2", worst <= 2
    elif name == "steps":
        for _, row in table.iterrows():
            limit, name = (0.025 if row["encoder"] == "small" else 0.005), f"{row['encoder']}, {row['method']}"
            yield f"BoN's share of a step, {name}", row["share"], f"<= {limit}", row["share"] <= limit
    elif name == "evaluation":
        ours, theirs = table.iloc[0], table.iloc[1]
        yield "evaluation's peak, GiB", ours["peak_gib"], "< 2", ours["peak_gib"] < 2
        ratio = theirs["seconds"] / ours["seconds"]
        yield "AccuracyCalculator's seconds over ours", ratio, ">= 1", ratio >= 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MEASURED)}; all by default")
    parser.add_argument("--largest", type=int, default=10**8, help="most samples")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - MEASURED.keys()):
        parser.error(f"names holds {', '.join(unknown)}; allowed are {', '.join(MEASURED)}.")
    for name in tqdm(options.names or list(MEASURED), desc="measured"):
        table = MEASURED[name](options.largest, options.device)
        write_bench(f"{name}_{options.device}", table)
        tqdm.write(f"\n{name}\n{table.to_string(index=False)}")
        for what, value, limit, kept in goals(name, table):
            tqdm.write(f"  {'kept  ' if kept else 'MISSED'} {what}: {value:.4g} (aim {limit})")


if __name__ == "__main__":
    os.chdir(Path(__file__).parent)
    main()
