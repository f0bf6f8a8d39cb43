"""What to remember of an identity, to put a pool in order: its mean in eight bits a dimension, or in more, or a code.

Two stages on parts in 3D from a trained encoder, as in notebooks/sweeps/ablation_stages.yaml, three seeds, each with
its own split. ``python benchmarks/sketches.py``, some half an hour on one core. It goes on where it was stopped. The
record is data/results/bench/sketches.json.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bonlib import BagOfNegatives
from bonlib.core.means import class_means
from bonlib.core.paths import results_dir
from bonlib.study.experiment import Experiment
from bonlib.study.records import load_bench, write_bench
from bonlib.study.sweeps import read_sweep

SWEEP = Path(__file__).parents[1] / "notebooks" / "sweeps" / "ablation_stages.yaml"


class OtherOrder(BagOfNegatives):
    """A bag that orders its pool by another sketch than the mean in eight bits; it cannot be saved."""

    def _correct(self, ids: np.ndarray, embeddings: Tensor) -> tuple[np.ndarray, np.ndarray]:
        told = super()._correct(ids, embeddings)
        self._remember(ids, embeddings)
        return told

    def draw_seeds(self, num_classes: int) -> np.ndarray:
        """As of the bag, by the other sketches."""
        usual = self._means.sketches
        self._means.sketches = usual._replace(rows=self.rows)
        try:
            return super().draw_seeds(num_classes)
        finally:
            self._means.sketches = usual

    def _remember(self, ids: np.ndarray, embeddings: Tensor) -> None:
        raise NotImplementedError


class ByBits(OtherOrder):
    """By a code of 64 bits: the signs of the running mean on 64 random hyperplanes, less the mean of all."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.rows = np.zeros((len(self.classes), 64), dtype=np.int8)  # the square of a distance is that of Hamming, × 4
        self.planes = torch.randn(self.dim, 64, generator=torch.Generator().manual_seed(self.seed))

    def _remember(self, ids: np.ndarray, embeddings: Tensor) -> None:
        classes = np.unique(self.class_of[ids])
        centred = self._means.values(classes) / self.hasher.scale - self.hasher.tensors["mean"]
        self.rows[classes] = np.where((centred @ self.planes).numpy() > 0, 1, -1)


class ByMoreBits(OtherOrder):
    """By a running mean in twelve bits a dimension, as exact as float16."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.rows = np.zeros((len(self.classes), self.dim), dtype=np.int16)
        self.floats, self.known = torch.zeros(len(self.classes), self.dim), np.zeros(len(self.classes), dtype=bool)

    def _remember(self, ids: np.ndarray, embeddings: Tensor) -> None:
        classes, of = np.unique(self.class_of[ids], return_inverse=True)
        old = torch.from_numpy(np.where(self.known[classes], self.momentum, 0.0)).float()[:, None]
        self.floats[classes] = old * self.floats[classes] + (1 - old) * class_means(embeddings, of, len(classes))
        self.known[classes] = True
        levels = (self.floats[classes] * 512 * self.dim**0.5).round().clamp(-2047, 2047)
        self.rows[classes] = levels.numpy().astype(np.int16)


SKETCHES: dict[str, type[BagOfNegatives]] = {
    "mean in 8 bits (default)": BagOfNegatives,
    "code of 64 bits": ByBits,
    "mean in 12 bits": ByMoreBits,
}


def main() -> None:
    """Measure what is not measured yet, and write the record after each run."""
    torch.set_num_threads(1)
    rows = load_bench("sketches").to_dict("records") if (results_dir() / "bench" / "sketches.json").exists() else []
    done = {(row["seed"], row["sketch"]) for row in rows}
    configs = [c for c in read_sweep(SWEEP) if (c.dataset, c.name) == ("parts", "two stages")]
    for config in sorted(configs, key=lambda config: config.seed)[:3]:
        for sketch, make in SKETCHES.items():
            if (config.seed, sketch) in done:
                continue
            run = Experiment(config)
            sizes = {"dim": config.dim, "batch_size": config.batch_size, "seed": config.seed}
            run.miner = make(run.train.labels, **sizes)
            for _ in run:
                pass
            last, spent = run.history[-1], run.seconds
            milliseconds = 1000 * (spent["draw"] + spent["hash"]) / config.steps
            rows.append({
                "seed": config.seed, "sketch": sketch, "recall@1": last["recall@1"], "map@r": last["map@r"],
                "active": last["active"], "milliseconds": milliseconds,
            })  # fmt: skip
            print(write_bench("sketches", pd.DataFrame(rows)), rows[-1], flush=True)


if __name__ == "__main__":
    main()
