"""What stands in a bag of parts, and in one of names.

``python benchmarks/bags.py``, some minutes once the encoders exist. From the trained encoders of
notebooks/sweeps/dial.yaml, seed 0: six anchors each, drawn with the seed and not chosen, and the eight identities that
two stages draw from around them. Notebook 03 shows the picture, figures/03_parts.png, and the names,
data/results/bench/bags.json.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from bonlib.study import figures
from bonlib.study.experiment import Experiment
from bonlib.study.figures import save_figure
from bonlib.study.records import write_bench
from bonlib.study.sweeps import read_sweep
from bonlib.training.embed import embed

SWEEP = Path(__file__).parents[1] / "notebooks" / "sweeps" / "dial.yaml"
ANCHORS = 6


def windows(dataset: str) -> tuple[Experiment, list[np.ndarray]]:
    """A run before its first step, and for each anchor itself and a sample of each identity in its window."""
    (config,) = (c for c in read_sweep(SWEEP) if (c.dataset, c.name, c.seed) == (dataset, "two stages", 0))
    run = Experiment(config)
    run.miner.fill(lambda ids: embed(run.encoder, run.train, indices=ids)[0], per_class=4)
    anchors = np.random.default_rng(0).choice(len(run.train), ANCHORS, replace=False)
    first, last = run.miner.window
    near = [run.miner.candidates(int(anchor))[first:last] for anchor in anchors]
    return run, [np.array([a, *map(run.miner.next_of, ids)]) for a, ids in zip(anchors, near, strict=True)]


def main() -> None:
    """Draw the picture and write the names."""
    torch.set_num_threads(2)
    run, rows = windows("parts")
    titles = [run.train.class_names[int(run.train.labels[row[0]])].split(" ")[0] for row in rows]
    figure = figures.image_grid([run.train.pixels(row) for row in rows], titles, "an anchor, then its window")
    picture = save_figure(figure, "03_parts")
    small = Image.open(picture).convert("RGB")
    small.thumbnail((700, 700))
    small.quantize(64, dither=Image.Dither.NONE).save(picture, optimize=True)  # notebook 03 holds it
    run, rows = windows("toponyms")
    named = [[run.train.strings[i] for i in row] for row in rows]
    columns = ["anchor", *(f"rank {i}" for i in range(1, max(map(len, named))))]
    print(write_bench("bags", pd.DataFrame(named, columns=columns)))


if __name__ == "__main__":
    main()
