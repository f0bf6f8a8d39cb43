"""The loops of other libraries: each run as a user would, and all come to the same bag."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
STEPS = 12


def run(name: str, *launcher: str, arguments: tuple[str, ...] = (str(STEPS),)) -> str:
    command = [*(launcher or (sys.executable,)), str(EXAMPLES / f"{name}.py"), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def stats(output: str) -> dict[str, float]:
    return ast.literal_eval(output.strip().splitlines()[-1].replace("nan", "None"))


def test_lightning_accelerate_and_pytorch_metric_learning_come_to_the_same_bag():
    for library in ("lightning", "accelerate"):
        pytest.importorskip(library)
    theirs = [stats(run(name)) for name in ("lightning_loop", "accelerate_loop", "trainer_loop")]
    assert theirs[0]["batches_missed"] == 0
    assert 0.3 < theirs[0]["filled"] < 0.5  # 12 batches of some 50 identities
    # Where no seed is set the encoders begin with other weights; what was drawn, corrected and counted is the same.
    for name in ("filled", "age_max", "batches_missed"):
        assert len({result[name] for result in theirs}) == 1


def test_accelerate_on_two_processes_corrects_the_table_with_the_whole_batch():
    pytest.importorskip("accelerate")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29533")
    result = stats(run("accelerate_loop", *launcher))
    assert result["filled"] > 0.02
    assert result["batches_missed"] == 0


def test_sentence_transformers_on_two_processes_come_to_the_same_bag():
    pytest.importorskip("sentence_transformers")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29534")
    tables = re.findall(r"\{'bits'[^}]*\}", run("sentence_transformers_loop", *launcher))  # both may be on one line
    assert len(tables) == 2
    assert tables[0] == tables[1]
    assert stats(tables[0])["filled"] > 0.5


def test_the_trainer_of_transformers_tells_the_bag_each_batch_and_keeps_its_state():
    pytest.importorskip("transformers")
    file = EXAMPLES.parent / "build" / "transformers" / f"checkpoint-{STEPS}" / "bag.pt"
    file.unlink(missing_ok=True)
    result = stats(run("transformers_loop"))
    assert result["batches_missed"] == 0
    assert result["filled"] > 0.1
    saved = torch.load(file, weights_only=True)
    assert (saved["updates"], saved["batches"]) == (STEPS, STEPS)
    more = stats(run("transformers_loop", arguments=(str(2 * STEPS), str(file.parent))))
    again = torch.load(file.parent.parent / f"checkpoint-{2 * STEPS}" / "bag.pt", weights_only=True)
    assert (again["updates"], again["batches"]) == (2 * STEPS, 2 * STEPS)
    assert more["filled"] > result["filled"]


def test_a_batch_of_images_and_captions_holds_one_caption_of_an_image():
    *_, batch = re.findall(r"images in the last batch: (\d+) of (\d+)", output := run("image_text_loop"))
    assert batch[0] == batch[1] == "64"
    assert stats(output)["batches_missed"] == 0


def test_a_stateful_loader_resumes_in_the_middle_of_a_pass():
    pytest.importorskip("torchdata")
    assert "the same batches after a stop: True" in run("stateful_loader")
