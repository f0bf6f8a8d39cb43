"""Images and captions, as in open_clip: random batches against a bag.

``python benchmarks/captions.py``, some half an hour on one core. It goes on where it was stopped; the record is
data/results/bench/captions.json. Parts of LDraw and their titles, two towers, both from scratch, InfoNCE in both
directions, batches of one view each of 64 parts, random or from a bag. MRR@10 of finding the title of an image among
those of all validation parts, and the image of a title. Three seeds, each with its own split.
"""

import time
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from bonlib import load_dataset, make_miner
from bonlib.core.paths import results_dir
from bonlib.datasets.images import ImageSet
from bonlib.datasets.parts.ldraw import Library
from bonlib.datasets.strings import TextSet
from bonlib.study.records import load_bench, write_bench
from bonlib.training.encoders import make_encoder
from bonlib.training.optimizers import make_optimizer

STEPS, BATCH, DIM, SCALE = 2400, 64, 64, 20.0
METHODS = ("random batches", "bag")


def titles_of(images: ImageSet, titles: dict[str, str]) -> TextSet:
    """The title of each part, as a set of strings: one a part."""
    words = [" ".join(titles[name.split(" #")[0]].split()) for name in images.class_names]
    return TextSet(words, torch.arange(len(words)), images.class_names)


def found_among(towers: nn.ModuleDict, images: ImageSet, texts: TextSet) -> dict[str, float]:
    """MRR@10 from the first view of each part to its title, and back, among all of them."""
    towers.eval()
    first = torch.tensor([int(images.ids_of_class(name)[0]) for name in images.class_names])
    with torch.no_grad():
        seen = torch.cat([normalize(towers["image"](images.batch(ids)[0])) for ids in first.split(500)])
        read = torch.cat([
            normalize(towers["text"](texts.batch(ids)[0])) for ids in torch.arange(len(first)).split(500)
        ])  # fmt: skip
    towers.train()
    alike = seen @ read.T  # (parts, parts)
    named = {"title of an image": alike, "image of a title": alike.T}
    return {name: mean_reciprocal_rank(scores) for name, scores in named.items()}


def mean_reciprocal_rank(scores: Tensor) -> float:
    """MRR@10 of the diagonal: ``(n, n)`` similarities, of which the right one of row i is in column i."""
    ranks = (scores > scores.diagonal()[:, None]).sum(dim=1) + 1
    return float(torch.where(ranks <= 10, 1 / ranks, 0.0).mean())


def run(method: str, seed: int, titles: dict[str, str]) -> list[dict[str, Any]]:
    """Train two towers; what is measured six times on the way."""
    images, validation = (load_dataset("parts", split, split_seed=seed) for split in ("train", "validation"))
    texts, unseen = titles_of(images, titles), titles_of(validation, titles)
    towers = nn.ModuleDict({"image": make_encoder(dim=DIM, in_channels=3, seed=seed)})
    towers["text"] = make_encoder("ngrams", dim=DIM, seed=seed)
    optimizer = make_optimizer(towers, nn.Identity(), lr=1e-3, loss_lr=None)
    layout = {"batch_size": BATCH, "per_class": 1, "steps": STEPS, "seed": seed}
    rows, spent, right = [], 0.0, torch.arange(BATCH)
    miner = make_miner("two-stage-bag" if method == "bag" else "random", images.labels, DIM, **layout)
    batches = iter(miner)
    for step in range(1, STEPS + 1):
        began = time.perf_counter()
        ids = next(batches)
        pixels, labels = images.batch(ids)
        strings, _ = texts.batch(labels)
        seen, read = normalize(towers["image"](pixels)), normalize(towers["text"](strings))  # (batch, dim) each
        logits: Tensor = SCALE * seen @ read.T
        loss = (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        miner.update(ids, (seen + read) / 2)
        spent += time.perf_counter() - began
        if step % (STEPS // 6) == 0:
            found = found_among(towers, validation, unseen)
            rows.append({"seed": seed, "method": method, "step": step, "seconds": spent, **found})
    return [row | {"parts": images.num_classes, "unseen": validation.num_classes} for row in rows]


def main() -> None:
    """Measure what is not measured yet, and write the record after each run."""
    torch.set_num_threads(1)
    rows = load_bench("captions").to_dict("records") if (results_dir() / "bench" / "captions.json").exists() else []
    done, titles = {(row["seed"], row["method"]) for row in rows}, Library().parts()
    for seed in range(3):
        for method in METHODS:
            if (seed, method) not in done:
                rows += run(method, seed, titles)
                print(write_bench("captions", pd.DataFrame(rows)), rows[-1], flush=True)


if __name__ == "__main__":
    main()
