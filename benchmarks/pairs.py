"""Pairs of texts in sentence-transformers' trainer: random batches against a bag: python benchmarks/pairs.py.

Two names of a place are a pair, without labels; 39,000 places, batches of 64, MultipleNegativesRankingLoss, a static
embedding of BPE tokens that is made here. Half-way a bag that is filled takes over from random batches, or an empty one
is there from the start; or batches are cut from k-means clusters of the embeddings of that moment, as people do
offline. MRR@10 of finding the second name among those of all validation places. Three seeds, each with its own split;
the record is data/results/bench/pairs.json.
"""

import tempfile
import time

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from sentence_transformers import (
    DefaultBatchSampler,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from sklearn.cluster import MiniBatchKMeans
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from bonlib import load_dataset
from bonlib.integrations.sentence_transformers import TextBag
from bonlib.study.records import write_bench

STEPS, BATCH = 3000, 64


def pairs_of(split: str, seed: int) -> Dataset:
    """Two names of each place, drawn with the seed."""
    places, rng = load_dataset("toponyms", split, split_seed=seed), np.random.default_rng(seed)
    labels, strings = places.labels.numpy(), np.asarray(places.strings, dtype=object)
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    first = np.unique(labels[order], return_index=True)[1]
    return Dataset.from_dict({"anchor": strings[order[first]].tolist(), "positive": strings[order[first + 1]].tolist()})


def new_model(texts: list[str], seed: int) -> SentenceTransformer:
    """A static embedding of tokens that are learned from the texts."""
    tokenizer = Tokenizer(models.BPE(unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=20_000, special_tokens=["?"], show_progress=False)
    )
    torch.manual_seed(seed)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=128), Normalize()], device="cpu")


def by_cluster(model: SentenceTransformer, data: Dataset, seed: int) -> list[int]:
    """Rows for some passes, those of a cluster one after the other; clusters and rows in a new order each pass."""
    rows = sum(model.encode(data[name][:], show_progress_bar=False) for name in ("anchor", "positive"))
    of = MiniBatchKMeans(len(rows) // BATCH, batch_size=4096, n_init=1, random_state=seed).fit_predict(rows)
    rng = np.random.default_rng(seed)
    passes = range(-(-STEPS * BATCH // len(rows)))
    return np.concatenate(
        [np.lexsort((rng.random(len(of)), rng.permutation(of.max() + 1)[of])) for _ in passes]
    ).tolist()


def train(
    model: SentenceTransformer, data: Dataset, steps: int, seed: int, batches: str, mined: TextBag | None
) -> None:
    """Some steps with batches of a bag, or where there is none at ``random`` or from ``clusters``."""
    more = {"batch_sampler": mined.sampler} if mined else {}
    if batches == "clusters":
        rows = by_cluster(model, data, seed)
        more = {
            "batch_sampler": lambda _, batch_size, drop_last, **__: DefaultBatchSampler(rows, batch_size, drop_last)
        }
    arguments = SentenceTransformerTrainingArguments(
        tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=0.01, use_cpu=True,
        lr_scheduler_type="constant", save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
        seed=seed, **more,
    )  # fmt: skip
    given = {"train_dataset": mined.dataset, "loss": mined.loss, "callbacks": [mined]} if mined else {
        "train_dataset": data, "loss": MultipleNegativesRankingLoss(model)}  # fmt: skip
    SentenceTransformerTrainer(model, arguments, **given).train()


def mrr(model: SentenceTransformer, data: Dataset) -> float:
    """Mean reciprocal rank, at most ten, of each anchor's positive among all positives; ties over all their orders."""
    anchors, positives = (
        torch.from_numpy(model.encode(data[name], show_progress_bar=False)) for name in ("anchor", "positive")
    )
    worth = torch.zeros(len(anchors) + 1, dtype=torch.float64)  # of the places up to each
    worth[1:11] = 1 / torch.arange(1, 11, dtype=torch.float64)[: len(anchors)]
    worth, found = worth.cumsum(0), []
    for part in torch.arange(len(anchors)).split(1024):
        similar = anchors[part] @ positives.T
        own = similar.gather(1, part[:, None])
        nearer, tied = (similar > own).sum(dim=1), (similar == own).sum(dim=1)
        found.append((worth[nearer + tied] - worth[nearer]) / tied)
    return float(torch.cat(found).mean())


def main() -> None:
    """Measure and write the record."""
    rows = []
    for seed in range(3):
        data, validation = pairs_of("train", seed), pairs_of("validation", seed)
        texts = data["anchor"][:] + data["positive"][:]
        for name in ("random", "bag", "random, then bag", "random, then clusters"):
            first, *then = name.split(", then ")
            model, began = new_model(texts, seed), time.perf_counter()
            mined = None
            for half, batches in enumerate((first, then[0] if then else first)):  # with other batches, not the first
                if batches == "bag" and not mined:
                    mined = TextBag(data, MultipleNegativesRankingLoss(model), batch_size=BATCH, seed=seed)
                    if half:  # the encoder has learned
                        mined.fill()
                train(model, data, STEPS // 2, seed + 100 * half, batches, mined)
            seconds = time.perf_counter() - began
            rows.append({"seed": seed, "method": name, "rows": len(data), "gallery": len(validation), "steps": STEPS,
                         "mrr@10": mrr(model, validation), "seconds": seconds})  # fmt: skip
            print(rows[-1], flush=True)
    write_bench("pairs", pd.DataFrame(rows))


if __name__ == "__main__":
    main()
