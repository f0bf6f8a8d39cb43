"""Cost of one step of BoN (draw, hash, correct the table) against the number of samples, as ratios in one run.

Beside it what it replaces: the exact nearest negatives of one batch over the whole set (faiss, flat), and
pytorch-metric-learning's MPerClassSampler, which shuffles all classes for each batch.

    python benchmarks/scaling.py [largest number of samples, default 10_000_000]
"""

import sys
import time

import faiss
import numpy as np
import torch
from pytorch_metric_learning.samplers import MPerClassSampler

from bonlib import BagOfNegatives

DIM, BATCH, STEPS, PER_CLASS = 64, 128, 200, 10


def milliseconds(action, repeats: int) -> float:
    """Median time of an action."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return 1000 * float(np.median(times))


def main(largest: int) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    batch = torch.nn.functional.normalize(torch.randn(BATCH, DIM, generator=generator), dim=1)
    first = None
    print("     samples    classes   BoN ms  ratio  bytes/sample  exact/BoN  MPerClass/BoN")
    for count in [10**k for k in range(4, 9) if 10**k <= largest]:
        labels = np.arange(count) // PER_CLASS
        bag = BagOfNegatives(labels, DIM, batch_size=BATCH, steps=10**9, seed=0)
        rng = np.random.default_rng(0)
        for ids in np.array_split(rng.permutation(count), max(count // 1_000_000, 1)):  # a filled table
            bag.table.move(ids, rng.integers(0, 2**bag.bits, len(ids)))
        batches = iter(bag)

        def step(bag=bag, batches=batches):
            bag.update(next(batches), batch)

        milliseconds(step, 20)
        ours = milliseconds(step, STEPS)
        first = first or ours
        exact = sampler = float("nan")
        if count <= 1_000_000:  # beyond, one search takes seconds
            index = faiss.IndexFlatL2(DIM)
            index.add(rng.standard_normal((count, DIM), dtype=np.float32))
            faiss.omp_set_num_threads(1)
            exact = milliseconds(lambda index=index: index.search(batch.numpy(), 50), 3)
            other = MPerClassSampler(labels.tolist(), m=4, batch_size=BATCH, length_before_new_iter=BATCH * 8)
            sampler = milliseconds(lambda other=other: list(other), 3) / 8  # it lays out 8 batches at once
        arrays = bag.table.nbytes + sum(v.nbytes for v in vars(bag).values() if isinstance(v, np.ndarray))
        print(
            f"{count:12,} {count // PER_CLASS:10,} {ours:8.2f} {ours / first:6.2f} {arrays / count:13.1f} "
            f"{exact / ours:10.1f} {sampler / ours:14.1f}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000)
