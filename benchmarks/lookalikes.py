"""How well a bag finds what is wrong with labels: python benchmarks/lookalikes.py, some ten minutes.

Of glyphs, 5 % of the identities get a second name for half of their images, and 5 % of the images a wrong label. Two
encoders: the committed one, on identities that it has never seen, and one that learns from the wrong labels themselves,
as a user's does. Three lists of the same embeddings are compared with what was planted: the bag's, the same with every
identity a candidate (exact), and the label quality of cleanlab (pip install cleanlab) from a softmax over the distances
to the means. Three seeds; the record is data/results/bench/lookalikes.json.
"""

import time
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from cleanlab.rank import get_label_quality_scores

from bonlib import BagOfNegatives, fit, load_dataset
from bonlib.core.paths import project_dir
from bonlib.datasets.labelled import LabelledSet
from bonlib.lookalikes import lookalikes, misfits
from bonlib.study.records import write_bench
from bonlib.training.embed import embed
from bonlib.training.encoders import load_encoder, make_encoder
from bonlib.training.losses import make_loss

SHARE, STEPS, DIM = 0.05, 400, 64


def planted(data: LabelledSet, seed: int) -> tuple[LabelledSet, set[tuple[int, int]], set[int]]:
    """The data with split identities and wrong labels, the pairs that are one, and the samples that are wrong."""
    data = data.with_split_identities(SHARE, seed=seed)
    names = {name: c for c, name in enumerate(data.class_names)}
    pairs = {(names[name.removesuffix(" (2)")], c) for name, c in names.items() if name.endswith(" (2)")}
    noisy = data.with_label_noise(SHARE, seed=seed)
    return noisy, pairs, set(np.flatnonzero(noisy.labels.numpy() != data.labels.numpy()).tolist())


def found_of(listed: list, true: set) -> dict[str, float]:
    """Precision of the first half and of as many as were planted, which is then the recall too."""
    hits = [item in true for item in listed[: len(true)]]
    return {"precision_first_half": float(np.mean(hits[: len(true) // 2])), "recall": float(np.sum(hits) / len(true))}


def listed(data: LabelledSet, rows_of: torch.Tensor, pairs: set, wrong: set, seed: int) -> Iterator[dict[str, object]]:
    """What each list finds, with its seconds."""
    for name, options in (("bag", {}), ("exact", {"bits": 1, "pool": 4096})):
        began = time.perf_counter()
        bag = BagOfNegatives(data.labels, DIM, seed=seed, **options)
        bag.fill(lambda ids: rows_of[ids])
        table = lookalikes(bag, rows_of, top=len(pairs))[["first", "second"]]
        found = found_of([tuple(sorted(pair)) for pair in table.to_numpy().tolist()], pairs)
        yield {"what": "split identities", "method": name} | found | {"seconds": time.perf_counter() - began}
        began = time.perf_counter()
        found = found_of(misfits(bag, rows_of, top=len(wrong))["sample"].tolist(), wrong)
        yield {"what": "wrong labels", "method": name} | found | {"seconds": time.perf_counter() - began}
    began = time.perf_counter()
    probabilities = torch.softmax(-16 * torch.cdist(rows_of, bag.means) ** 2, dim=1).numpy()
    order = np.argsort(get_label_quality_scores(data.labels.numpy(), probabilities)).tolist()
    yield (
        {"what": "wrong labels", "method": "cleanlab"}
        | found_of(order, wrong)
        | {"seconds": time.perf_counter() - began}
    )


def main() -> None:
    """Measure and write the record."""
    trained, _ = load_encoder(project_dir() / "data" / "encoders" / "glyphs.pt")
    rows = []
    for seed in range(3):
        for learned in ("from other identities", "from these labels"):
            whole = load_dataset("glyphs", "test" if learned == "from other identities" else "train")
            data, pairs, wrong = planted(whole, seed)
            encoder = trained
            if learned == "from these labels":
                encoder, bag = (
                    make_encoder(dim=DIM, seed=seed),
                    BagOfNegatives(data.labels, DIM, steps=STEPS, seed=seed),
                )
                for _ in fit(encoder, data, bag, make_loss("batch-hard", margin=0.3), steps=STEPS):
                    pass
            rows_of, _ = embed(encoder, data)
            common = {"seed": seed, "learned": learned, "identities": data.num_classes}
            rows += [common | row for row in listed(data, rows_of, pairs, wrong, seed)]
            print(pd.DataFrame(rows).round(3).to_string(), flush=True)
    write_bench("lookalikes", pd.DataFrame(rows))


if __name__ == "__main__":
    main()
