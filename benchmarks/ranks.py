"""How near are the negatives that a set draws? Their rank against the number of identities, stale and fresh.

An encoder of names trains on random sets; every variant of the bag is told the same embeddings. After one and a half
passes each draws sets, and the hardest other identity of each anchor is ranked among all identities by the distance of
their means, exactly. Then every table is filled anew and asked again. ``python benchmarks/ranks.py``, some 15 minutes.
"""

import itertools

import numpy as np
import pandas as pd
import torch

from bonlib import BagOfNegatives, load_dataset, make_miner
from bonlib.core.means import class_means
from bonlib.training.embed import embed
from bonlib.training.encoders import make_encoder
from bonlib.training.loop import fit
from bonlib.training.losses import make_loss

SIZES = (1000, 3000, 10_000, 30_000, 100_000)
DIM, SETS, CLASSES = 128, 60, 32
VARIANTS = {
    "random": None,
    "as published, 4 bags": {"unit": "sample", "pool": 0, "bags": 4, "hasher": "autoencoder"},
    "the same, hyperplanes": {"unit": "sample", "pool": 0, "bags": 4},
    "two stages": {},
    "two stages, learned hash": {"hasher": "autoencoder"},
    "two stages, table of samples": {"unit": "sample"},
    "two stages, pool 256": {"pool": 256},
    "two stages, pool 1,024": {"pool": 1024},
}


def hardest_ranks(seeds: np.ndarray, class_of: np.ndarray, means: torch.Tensor) -> list[int]:
    """Rank of the nearest other identity of the data set for each of its identities, 1 for the nearest of all."""
    classes = torch.from_numpy(class_of[seeds].astype(np.int64))
    apart = torch.cdist(means[classes], means)  # (set, identities)
    apart[torch.arange(len(classes)), classes] = torch.inf
    nearest = apart[:, classes].min(dim=1).values
    return ((apart < nearest[:, None]).sum(dim=1) + 1).tolist()


def measure(identities: int, seed: int = 0) -> list[dict]:
    train = load_dataset("toponyms", "all", names=(2, 8)).with_identities(identities, seed=seed)
    encoder = make_encoder("ngrams", dim=DIM, seed=seed)
    steps = max(int(1.5 * len(train) / 128), 600)
    bags = {
        name: make_miner("random", train.labels, DIM, seed=seed)
        if options is None
        else BagOfNegatives(train.labels, DIM, seed=seed, **options)
        for name, options in VARIANTS.items()
    }
    random = make_miner("random", train.labels, DIM, seed=seed + 1)
    told = random.update

    def tell(indices, embeddings):
        told(indices, embeddings)
        for bag in bags.values():
            bag.update(indices, embeddings)

    random.update = tell
    torch.manual_seed(seed)
    for _ in fit(encoder, train, random, make_loss("batch-hard", margin=0.5), steps=steps):
        pass
    embeddings, labels = embed(encoder, train)
    means = class_means(embeddings, labels, train.num_classes)
    rows = []
    for (name, bag), table in itertools.product(bags.items(), ("stale", "fresh")):
        if table == "fresh" and isinstance(bag, BagOfNegatives):
            bag.fill(lambda ids: embeddings[torch.from_numpy(ids)])
        ranks = [r for _ in range(SETS) for r in hardest_ranks(bag.draw_seeds(CLASSES), bag.class_of, means)]
        low, middle, high = np.quantile(ranks, [0.1, 0.5, 0.9])
        rows.append({
            "variant": name, "table": table, "identities": identities, "samples": len(train), "rank": middle,
            "low": low, "high": high, "churn": bag.stats().get("churn", float("nan")), "steps": steps,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    from bonlib.study.records import write_bench

    torch.set_num_threads(1)
    print(write_bench("ranks", pd.DataFrame([row for size in SIZES for row in measure(size)])))
