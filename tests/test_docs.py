"""README and docs: what they show runs, what they say is what the records say, and they stay short."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from bonlib import BagOfNegatives, cli

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import tables  # noqa: E402

README = (ROOT / "README.md").read_text()
LABELS = np.repeat(np.arange(60), 8)
EMBEDDINGS = torch.randn(480, 64, generator=torch.Generator().manual_seed(0))


def test_the_readme_is_short_beside_code_and_tables():
    prose = re.sub(r"```.*?```|^\|.*?$|<!--.*?-->", "", README, flags=re.DOTALL | re.MULTILINE)
    words = re.findall(r"\w[\w'-]*", re.sub(r"\]\(.*?\)", "", prose))
    assert len(words) <= 900


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_every_number_of_a_table_comes_from_the_records(page):
    assert tables.filled(page.read_text()) == page.read_text(), "python docs/tables.py writes it anew"
    filled_in = {name for file in tables.PAGES for name in re.findall(r"<!-- (\w+) -->", file.read_text())} - {"end"}
    assert filled_in <= set(vars(tables))
    assert tables.scratch() in README


def test_the_diff_in_the_readme_is_cut_from_the_plain_loop():
    (diff,) = re.findall(r"```diff\n(.*?)```", README, re.DOTALL)
    lines = iter((ROOT / "examples" / "plain_loop.py").read_text().splitlines())
    for line in diff.splitlines():
        if line and not line.startswith("-"):
            assert line[1:] in lines, line  # in this order
    plain = [line[1:] for line in diff.splitlines() if line and not line.startswith("+")]
    assert plain[0] == "for indices in batches:"  # what is left without BoN is a loop
    compile("\n".join(plain), "the loop without BoN", "exec")


def test_the_plain_loop_fits_on_a_page_and_runs():
    file = ROOT / "examples" / "plain_loop.py"
    assert len(file.read_text().splitlines()) <= 60
    assert [line for line in file.read_text().splitlines() if "bonlib" in line and "import" in line] == [
        "from bonlib import BagOfNegatives"
    ]
    done = subprocess.run([sys.executable, str(file), "3"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 < float(done.stdout.split()[-1]) <= 1


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def test_a_hash_and_a_miner_of_ones_own_work_as_the_page_shows_them():
    scope: dict = {}
    for code in blocks("write_your_own.md"):
        (body,) = re.findall(r"^class .*", code, re.DOTALL | re.MULTILINE)
        assert len([line for line in body.splitlines() if line.strip()]) <= 15
        exec(code, scope)
    bag = BagOfNegatives(LABELS, 64, batch_size=64, hasher=scope["Differences"](64, bits=5))
    miner = scope["NearMeans"](LABELS, 64, batch_size=64)
    for sampler in (bag, miner):
        for indices in sampler:
            assert (np.unique(LABELS[indices], return_counts=True)[1] == 4).all()
            sampler.update(indices, EMBEDDINGS[indices])
        again = type(sampler)(LABELS, 64, batch_size=64) if sampler is miner else BagOfNegatives(
            LABELS, 64, batch_size=64, hasher=scope["Differences"](64, bits=5)
        )  # fmt: skip
        again.load_state_dict(sampler.state_dict())
        assert list(again) == list(sampler)
    assert bag.stats()["entropy_bits"] > 3


def test_what_the_page_of_loops_says_of_new_identities_wrong_labels_and_very_many_classes_runs():
    assert len(blocks("loop.md")) == 3
    for code in blocks("loop.md"):
        exec(code, {})


@pytest.mark.filterwarnings("ignore:.*identities:UserWarning")  # the example has few
def test_the_commands_of_the_pages_run_on_photos_and_on_names(example, folders, monkeypatch):
    monkeypatch.chdir(folders)
    (folders / "photos").symlink_to(example)
    letters = [chr(ord("a") + i) for i in range(20)]
    rows = [(f"{first}{second} {end}", first + second) for first in letters for second in letters[:4] for end in "xyz"]
    pd.DataFrame(rows, columns=["name", "identity"]).to_csv("names.csv", index=False)
    pages = README + (ROOT / "docs" / "choose.md").read_text()
    commands = re.findall(r"^(bonlib [^#\n]+)|`(bonlib [^`\n]+ [^`\n]+)`", pages, re.MULTILINE)
    commands = [shlex.split(re.sub(r"--steps \d+", "--steps 2", inside or block)) for block, inside in commands]
    assert len(commands) >= 9
    for dataset in ("folder", "table"):  # each page makes first.pt of both, after its first use in a table
        for command in sorted(commands, key=lambda command: "first.pt" not in command[-1:]):
            if dataset in command:
                assert cli.main(command[1:]) == 0, command


@pytest.mark.filterwarnings("ignore:.*(identities|classes have fewer):UserWarning")  # the example has few
def test_names_become_a_matcher_as_the_page_says(folders, monkeypatch, capsys):
    monkeypatch.chdir(folders)
    syllables = [first + second for first in "bdfgklmnprst" for second in "aeiou"]
    rows = [(f"{i:03}", f"{one}{two} {end}") for i, (one, two) in enumerate(zip(syllables, syllables[7:], strict=False))
            for end in ("Ltd", " LIMITED", "inc")]  # fmt: skip
    rows += [("001", "Shared Name"), ("002", "shared  name")]
    pd.DataFrame(rows, columns=["customer_id", "name"]).to_csv("names.csv", index=False)
    page = (ROOT / "docs" / "start.md").read_text().partition("## Names, the whole way")[2].partition("\n## ")[0]
    scope: dict = {}
    for language, block in re.findall(r"```(python)?\n(.*?)```", page, re.DOTALL):
        if language:
            exec(block, scope)
            continue
        for line in block.strip().splitlines():
            command = shlex.split(re.sub(r"--steps \d+", "--steps 30", line))
            assert cli.main([*command[1:], *(["--set", "batch_size=32"] if command[1] == "train" else [])]) == 0, line
    assert "one stranger in a hundred" in capsys.readouterr().out
    known = pd.read_parquet("known.parquet")
    assert (known["string"] == "shared name").sum() == 2  # under both identities
    assert len(known) == len(rows)
    aside, own = scope["aside"], scope["own"]
    assert 0 < len(aside) < len(known)
    strangers = scope["cosines"].masked_fill(own, -1).amax(dim=1)
    assert (strangers > scope["threshold"]).float().mean() <= 0.01 + 1 / len(aside)


def test_links_of_readme_and_docs_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            if target.startswith("notebooks/") and page.parent.name == "docs":
                target = f"../{target}"  # copied there as the docs are built
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize(
    "name", [page.stem for page in (ROOT / "docs").glob("*.md") if page.stem not in ("index", "changelog")]
)
def test_every_page_is_in_the_index(name):
    assert f"\n{name}\n" in (ROOT / "docs" / "index.md").read_text()
