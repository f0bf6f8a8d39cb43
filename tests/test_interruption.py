"""kill -9 at any moment, also while a checkpoint is written, then resume: the numbers of a run not killed."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

RUN = """
import hashlib, sys, torch
from bonlib import BagOfNegatives, fit
from bonlib.datasets.images import ImageSet
from bonlib.training.losses import make_loss

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
labels = torch.arange(60).repeat_interleave(8)
patterns = torch.randint(0, 200, (60, 1, 4, 4), generator=generator)
images = patterns[labels] + torch.randint(0, 56, (480, 1, 4, 4), generator=generator)
data = ImageSet(images.to(torch.uint8), labels, [str(i) for i in range(60)])
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 64), torch.nn.Dropout(0.2), torch.nn.Linear(64, 8))
bag = BagOfNegatives(labels, 8, batch_size=24, bits=4, seed=1)
step = None
for step in fit(net, data, bag, make_loss("batch-hard", "set"), steps=int(sys.argv[2]), validation=data,
                evaluate_every=int(sys.argv[2]), checkpoint=sys.argv[1], checkpoint_every=2):
    print(step.step, flush=True)
state = torch.load(sys.argv[1], weights_only=True)
parts = [value.numpy().tobytes() for value in state["encoder"].values()]
parts += [bag.codes(torch.arange(480)).tobytes(), repr(sorted(step.metrics.items())).encode()]
print("digest", hashlib.sha256(b"".join(parts)).hexdigest(), flush=True)
"""


def start(folder, steps):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder / "run.pt"), str(steps)],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def digest(folder, steps):
    output, _ = start(folder, steps).communicate(timeout=300)
    (line,) = [line for line in output.splitlines() if line.startswith("digest")]
    return line


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_with_the_same_numbers(tmp_path, kills):
    rng, steps, reached = np.random.default_rng(kills), 200 * kills, 0
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    expected = digest(tmp_path / "whole", steps)
    for _ in range(kills):
        process = start(tmp_path / "killed", steps)
        reached = int(process.stdout.readline())  # it has begun, or gone on
        for _ in range(rng.integers(4, 60)):  # so far at least, however slow the machine is
            process.stdout.readline()
        time.sleep(rng.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL  # it was not done already
    assert 1 < reached < steps
    assert digest(tmp_path / "killed", steps) == expected
