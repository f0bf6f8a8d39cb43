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


def batches(largest: int, device: str) -> pd.DataFrame:
    return costs.batch_costs([10**k for k in range(4, 9) if 10**k <= largest])


def samplers(largest: int, device: str) -> pd.DataFrame:
    return costs.sampler_costs([k for k in (1_000, 10_000, 100_000, 1_000_000) if 4 * k <= largest])


def hashing(largest: int, device: str) -> pd.DataFrame:
    return costs.hash_costs()


def steps(largest: int, device: str) -> pd.DataFrame:
    return costs.step_costs(device=device)


def variants(largest: int, device: str) -> pd.DataFrame:
    return costs.step_variants()


def evaluation(largest: int, device: str) -> pd.DataFrame:
    return costs.evaluation_costs(min(100_000, largest))


def wire(largest: int, device: str) -> pd.DataFrame:
    return costs.wire_costs()


MEASURED: dict[str, Callable[[int, str], pd.DataFrame]] = {
    function.__name__: function for function in (batches, samplers, hashing, steps, variants, evaluation, wire)
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
