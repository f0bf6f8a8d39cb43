"""Scripts drawn in installed faces; the faces that matplotlib ships stand for those of a system."""

import numpy as np
import pytest
from fontTools.ttLib import TTFont

from bonlib import load_dataset
from bonlib.datasets.characters import scripts
from bonlib.datasets.characters.glyphs import default_fonts

GREEK = range(0x3B1, 0x3C9)


def characters_of(path):
    with TTFont(path, lazy=True) as font:
        return set(font.getBestCmap())


@pytest.fixture
def installed(monkeypatch, folders):
    """Only matplotlib's faces are installed; Greek stands for Hangul and Chinese."""
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [str(path) for path in default_fonts()])
    monkeypatch.setattr(scripts, "HANGUL", GREEK)
    monkeypatch.setattr(scripts, "IDEOGRAPHS", range(0x250, 0x2B0))
    scripts._installed.cache_clear()
    yield
    scripts._installed.cache_clear()


def test_faces_that_cover_enough_are_found_spread_over_families(installed):
    wanted = range(0x10D0, 0x10F0)  # Georgian
    found = scripts.find_faces(wanted, least=30)
    expected = {path for path in default_fonts() if len(characters_of(path) & set(wanted)) >= 30}
    assert set(found) == expected
    assert 4 < len(expected) < 16
    families = [path.name.split("-")[0].split(".")[0] for path in found]
    count = len(set(families))
    assert len(set(families[:count])) == count  # one of each family first
    assert scripts.find_faces(wanted, least=len(wanted) + 1) == []


def test_hangul_draws_all_syllables_in_the_faces_asked_for(installed):
    data = load_dataset("hangul", "all", faces=5)
    assert data.class_names == [chr(c) for c in GREEK]
    assert len(data.faces) == 5
    assert len(data) == 5 * len(GREEK)
    assert [line.split(":")[0].removesuffix(".ttf") for line in data.source["faces"]] == data.faces
    assert all("ersion" in line for line in data.source["faces"])
    train, test = load_dataset("hangul", "train", faces=5), load_dataset("hangul", "test", faces=5)
    assert not set(train.class_names) & set(test.class_names)
    assert (train.num_classes, test.num_classes) == (12, 10)


def test_too_few_faces_name_the_packages(installed):
    with pytest.raises(
        scripts.FontsMissing, match=r"hangul needs 40 font faces .*; 1\d are installed. Debian.*fonts-nanum.*"
    ):
        load_dataset("hangul", "train", faces=40)
    with pytest.raises(FileNotFoundError, match=r"cjk needs 6 font faces that cover 5,000.*macOS.*Windows"):
        load_dataset("cjk", "train")


def test_ideographs_are_those_of_enough_faces(installed, monkeypatch):
    find = scripts.find_faces
    monkeypatch.setattr(scripts, "find_faces", lambda characters, least: find(characters, least=20))
    data = load_dataset("cjk", "all", faces=12, min_faces=7)
    faces = {path.stem: characters_of(path) for path in default_fonts()}
    covered = {c: sum(c in faces[face] for face in data.faces) for c in scripts.IDEOGRAPHS}
    assert len(data.faces) == 12
    assert {ord(name) for name in data.class_names} <= {c for c, n in covered.items() if n >= 7}
    assert len(data.class_names) > 0.9 * sum(n >= 7 for n in covered.values())  # but for those that draw alike
    assert np.bincount(data.labels).min() >= 7


def test_a_damaged_font_is_passed_over(installed, monkeypatch, tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    paths = [str(tmp_path / "broken.ttf"), str(default_fonts()[0])]
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: paths)
    assert scripts.find_faces(GREEK, least=len(GREEK)) == [default_fonts()[0]]
