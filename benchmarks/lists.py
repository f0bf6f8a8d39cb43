"""What it costs to list look-alikes, up to a million identities: python benchmarks/lists.py, some ten minutes, 8 GB.

Random centres, four samples around each, one identity in a hundred split in two. Beside the bag's lists faiss searches
all means for those nearest to each, by one thread, up to 100,000 identities. The record is
data/results/bench/lists.json.
"""

import time
from collections.abc import Iterable, Iterator

import faiss
import numpy as np
import pandas as pd
import torch

from bonlib import BagOfNegatives
from bonlib.lookalikes import lookalikes, misfits
from bonlib.study.records import write_bench

DIM = 64


def clouds(count: int) -> tuple[np.ndarray, torch.Tensor, set[tuple[int, int]]]:
    """Labels and embeddings of ``count`` identities of four samples, and the pairs that are one, each hundredth."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(count, DIM, generator=generator)
    twins = torch.arange(0, count - 1, 200)  # and those after them
    centres[twins + 1] = centres[twins]
    labels = np.arange(4 * count) // 4
    rows = centres.repeat_interleave(4, dim=0).add_(torch.randn(4 * count, DIM, generator=generator), alpha=0.3)
    return labels, torch.nn.functional.normalize(rows), {(int(c), int(c) + 1) for c in twins}


def costs(sizes: Iterable[int]) -> Iterator[dict[str, object]]:
    """Seconds of filling a bag and of both lists, and the share of split identities found, against their number."""
    faiss.omp_set_num_threads(1)
    for count in sizes:
        labels, rows_of, pairs = clouds(count)
        bag = BagOfNegatives(labels, DIM)
        spent = {}
        for name, action in {
            "fill": lambda bag=bag, rows=rows_of: bag.fill(lambda ids: rows[ids]),
            "lookalikes": lambda bag=bag, rows=rows_of, pairs=pairs: lookalikes(bag, rows, top=len(pairs)),
            "misfits": lambda bag=bag, rows=rows_of: misfits(bag, rows),
        }.items():
            began = time.perf_counter()
            table = action()
            spent[name] = time.perf_counter() - began
            if name == "lookalikes":
                found = {tuple(sorted(pair)) for pair in table[["first", "second"]].to_numpy().tolist()}
        row = {"identities": count, "found": len(found & pairs) / len(pairs)} | spent
        if count <= 100_000:
            index, means = faiss.IndexFlatL2(DIM), bag.means.numpy()
            began = time.perf_counter()
            index.add(means)
            index.search(means, 9)  # itself and eight others
            row["exact"] = time.perf_counter() - began
        print(row, flush=True)
        yield row


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_bench("lists", pd.DataFrame(costs([1_000, 10_000, 100_000, 1_000_000])))
