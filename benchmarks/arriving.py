"""Identities that arrive while one trains: half of the places are there from the start, the rest after half the steps.

Names of places, InfoNCE, sets of 128, three seeds, each with its own split: ``python benchmarks/arriving.py``, some
half an hour. Five ways to take the newcomers: random sets of all; a bag that is extended, and keeps what it knows; one
that is extended, and looks at all the data once; batches from k-means clusters of the identities (100K identities),
and exact search, which look at all the data again when they come and every 500 steps. R@1 of validation places after
each 250 steps. The record is data/results/bench/arriving.json.
"""

import time
from typing import Any

import numpy as np
import pandas as pd
import torch

from bonlib import BagOfNegatives, fit, load_dataset, make_miner
from bonlib.core.miner import Miner
from bonlib.datasets.labelled import LabelledSet
from bonlib.study.records import write_bench
from bonlib.training.checkpoint import Progress
from bonlib.training.embed import embed
from bonlib.training.encoders import make_encoder
from bonlib.training.losses import make_loss

STEPS, EVERY, DIM, BATCH = 1000, 250, 128, 128  # in each half


METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # name and options of the miner
    "random sets": ("random", {}),
    "bag, extended": ("two-stage-bag", {}),
    "bag, extended, looks once": ("two-stage-bag", {}),
    "clusters, look again": ("subspaces", {"every": 500}),
    "exact search, looks again": ("exact", {"groups": 4, "every": 500, "ranks": (1, 8)}),
}


def miner_of(method: str, labels: torch.Tensor, seed: int) -> Miner:
    """The miner of a method, for sets of the samples with these labels."""
    name, options = METHODS[method]
    return make_miner(name, labels, DIM, batch_size=BATCH, steps=STEPS, seed=seed, **options)


def in_order_of_arrival(data: LabelledSet, seed: int) -> tuple[LabelledSet, int]:
    """The data with the identities of one half first, drawn with the seed, and how many samples these have."""
    labels = data.labels.numpy()
    late = np.isin(labels, np.random.default_rng(seed).permutation(data.num_classes)[data.num_classes // 2 :])
    return data.subset(np.argsort(late, kind="stable")), int((~late).sum())


def run(method: str, whole: LabelledSet, known: int, validation: LabelledSet, seed: int) -> list[dict[str, float]]:
    """Train on the first samples, then on all; the history of evaluations."""
    encoder, loss = make_encoder("ngrams", dim=DIM, seed=seed), make_loss("infonce", margin=0.1)
    miner, rows, spent = miner_of(method, whole.labels[:known], seed), [], 0.0
    for half, data in enumerate((whole.subset(np.arange(known)), whole)):
        began = time.perf_counter()
        if half and isinstance(miner, BagOfNegatives):
            miner.extend(whole.labels[known:])
            if method.endswith("looks once"):
                miner.fill(lambda indices, data=data: embed(encoder, data, indices=indices)[0])
        elif half:
            miner = miner_of(method, whole.labels, seed)
        spent += time.perf_counter() - began
        progress = Progress()
        torch.manual_seed(seed)
        for _ in fit(
            encoder, data, miner, loss, steps=STEPS, validation=validation, evaluate_every=EVERY,
            validation_queries=5000, progress=progress,
        ):  # fmt: skip
            pass
        rows += [
            {
                "seed": seed, "method": method, "step": half * STEPS + entry["step"], "identities": data.num_classes,
                "recall@1": entry["recall@1"], "seconds": spent + entry["training_seconds"],
            }
            for entry in progress.history
        ]  # fmt: skip
        spent += progress.history[-1]["training_seconds"]
    return rows


def main() -> None:
    """Measure and write the record."""
    torch.set_num_threads(1)
    rows = []
    for seed in range(3):
        validation = load_dataset("toponyms", "validation", split_seed=seed)
        whole, known = in_order_of_arrival(load_dataset("toponyms", "train", split_seed=seed), seed)
        for method in METHODS:
            rows += run(method, whole, known, validation, seed)
            print(rows[-1], flush=True)
    write_bench("arriving", pd.DataFrame(rows))


if __name__ == "__main__":
    main()
