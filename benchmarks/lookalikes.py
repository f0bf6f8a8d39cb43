"""How well a bag finds what is wrong with labels: python benchmarks/lookalikes.py, some ten minutes.

Of glyphs, 5 % of the identities get a second name for half of their images, and 5 % of the images a wrong label. An
encoder learns from that, as a user's would. Then three lists of the same embeddings are compared with what was planted:
the bag's, the same from exact search over all identities, and the label quality of cleanlab (pip install cleanlab) from
a softmax over the distances to the means. Three seeds; the record is data/results/bench/lookalikes.json.
"""

import time

import numpy as np
import pandas as pd
import torch
from cleanlab.rank import get_label_quality_scores

from bonlib import BagOfNegatives, fit, load_dataset
from bonlib.datasets.labelled import LabelledSet
from bonlib.lookalikes import lookalikes, misfits
from bonlib.study.records import write_bench
from bonlib.training.embed import embed
from bonlib.training.encoders import make_encoder
from bonlib.training.losses import make_loss

SHARE, STEPS, DIM = 0.05, 800, 64


def planted(data: LabelledSet, seed: int) -> tuple[LabelledSet, set[tuple[int, int]], set[int]]:
    """The data with split identities and wrong labels, the pairs that are one, and the samples that are wrong."""
    rng, labels = np.random.default_rng(seed), data.labels.numpy().copy()
    pairs = set()
    for new, c in enumerate(rng.permutation(data.num_classes)[: round(SHARE * data.num_classes)], data.num_classes):
        own = np.flatnonzero(labels == c)
        labels[rng.permutation(own)[: len(own) // 2]] = new
        pairs.add((int(c), new))
    wrong = rng.permutation(len(labels))[: round(SHARE * len(labels))]
    labels[wrong] = (labels[wrong] + rng.integers(1, labels.max() + 1, len(wrong))) % (labels.max() + 1)
    names = [f"{name}" for name in data.class_names] + [f"second name {i}" for i in range(len(pairs))]
    return data.changed(labels=torch.from_numpy(labels), class_names=tuple(names)), pairs, set(wrong.tolist())


def found_of(listed: list, true: set) -> dict[str, float]:
    """Precision of the first half and of as many as were planted, which is then the recall too."""
    hits = [item in true for item in listed[: len(true)]]
    return {"precision_first_half": float(np.mean(hits[: len(true) // 2])), "recall": float(np.sum(hits) / len(true))}


def main() -> None:
    """Measure and write the record."""
    rows = []
    for seed in range(3):
        data, pairs, wrong = planted(load_dataset("glyphs", "train"), seed)
        encoder, bag = make_encoder(dim=DIM, seed=seed), BagOfNegatives(data.labels, DIM, steps=STEPS, seed=seed)
        for _ in fit(encoder, data, bag, make_loss("batch-hard", margin=0.3), steps=STEPS):
            pass
        rows_of, _ = embed(encoder, data)
        for name, options in (("bag", {}), ("exact", {"bits": 1, "pool": 4096})):
            began = time.perf_counter()
            other = BagOfNegatives(data.labels, DIM, seed=seed, **options)
            other.fill(lambda ids, known=rows_of: known[ids])
            listed = lookalikes(other, rows_of, top=len(pairs))[["first", "second"]]
            rows.append({"seed": seed, "what": "split identities", "method": name}
                        | found_of([tuple(sorted(pair)) for pair in listed.to_numpy().tolist()], pairs))  # fmt: skip
            listed = misfits(other, rows_of, top=len(wrong))["sample"].tolist()
            rows.append({"seed": seed, "what": "wrong labels", "method": name} | found_of(listed, wrong))
            rows[-1]["seconds"] = rows[-2]["seconds"] = time.perf_counter() - began
        began = time.perf_counter()
        probabilities = torch.softmax(-16 * torch.cdist(rows_of, other.means) ** 2, dim=1).numpy()
        order = np.argsort(get_label_quality_scores(data.labels.numpy(), probabilities)).tolist()
        rows.append({"seed": seed, "what": "wrong labels", "method": "cleanlab"} | found_of(order, wrong))
        rows[-1]["seconds"] = time.perf_counter() - began
        print(pd.DataFrame(rows).round(3).to_string(), flush=True)
    write_bench("lookalikes", pd.DataFrame(rows))


if __name__ == "__main__":
    main()
