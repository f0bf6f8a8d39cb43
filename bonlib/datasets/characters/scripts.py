"""Scripts with thousands of characters, drawn in the installed font faces: Hangul syllables, CJK ideographs."""

from collections import defaultdict
from collections.abc import Collection
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from bonlib.core.checks import whole_number
from bonlib.datasets.characters.glyphs import Glyphs
from bonlib.datasets.splits import Split

HANGUL = range(0xAC00, 0xD7A4)  # the 11,172 precomposed syllables
IDEOGRAPHS = range(0x4E00, 0xA000)  # the block of CJK unified ideographs
_CURES = {
    "hangul": "Debian and Ubuntu: apt-get install fonts-nanum fonts-nanum-extra fonts-unfonts-core fonts-baekmuk; "
    "macOS: brew install --cask font-nanum-gothic font-nanum-myeongjo font-noto-sans-kr font-noto-serif-kr; "
    "Windows: Settings > Apps > Optional features > Korean Supplemental Fonts, or the Nanum fonts",
    "cjk": "Debian and Ubuntu: apt-get install fonts-wqy-zenhei fonts-wqy-microhei fonts-arphic-uming "
    "fonts-arphic-ukai fonts-arphic-gbsn00lp fonts-arphic-gkai00mp fonts-arphic-bsmi00lp fonts-arphic-bkai00mp "
    "fonts-ipafont fonts-vlgothic; "
    "macOS: brew install --cask font-noto-sans-cjk font-noto-serif-cjk font-wenquanyi-zen-hei; "
    "Windows: Settings > Apps > Optional features > Chinese (Simplified, Traditional) and Japanese fonts",
}


class FontsMissing(FileNotFoundError):
    """Too few installed font faces cover a script."""


def hangul(
    split: Split = "train", *, faces: int = 16, draws: int = 1, seed: int = 0, split_seed: int | None = None
) -> Glyphs:
    """The 11,172 Hangul syllables in installed faces that cover them all.

    Some faces list syllables that they leave blank; those images are left out.

    Args:
        split: ``"train"``, ``"validation"``, ``"test"`` or ``"all"``.
        faces: how many faces to take, spread over as many families as there are.
        draws: images of each syllable in each face.
        seed: seed of distortions and split.
        split_seed: of the split alone; by default ``seed``.

    Raises:
        FontsMissing: if fewer such faces are installed; the message names packages that bring them.
    """
    faces = whole_number("faces", faces, 1)
    paths = _enough("hangul", find_faces(HANGUL, least=len(HANGUL)), faces, "cover all Hangul syllables")
    return Glyphs(split, fonts=paths, characters=HANGUL, draws=draws, seed=seed, split_seed=split_seed)


def cjk(
    split: Split = "train",
    *,
    faces: int = 16,
    min_faces: int = 6,
    draws: int = 1,
    seed: int = 0,
    split_seed: int | None = None,
) -> Glyphs:
    """The ideographs U+4E00 to U+9FFF that at least ``min_faces`` of the installed faces cover.

    Args:
        split: ``"train"``, ``"validation"``, ``"test"`` or ``"all"``.
        faces: how many faces to take at most, spread over as many families as there are.
        min_faces: faces that an ideograph must be in.
        draws: images of each ideograph in each face.
        seed: seed of distortions and split.
        split_seed: of the split alone; by default ``seed``.

    Raises:
        FontsMissing: if fewer than ``min_faces`` faces with at least 5,000 ideographs are installed; the message names
            packages that bring them.
    """
    faces, min_faces = whole_number("faces", faces, 1), whole_number("min_faces", min_faces, 1)
    paths = find_faces(IDEOGRAPHS, least=5000)
    paths = _enough("cjk", paths, min(faces, max(len(paths), min_faces)), "cover 5,000 ideographs")
    return Glyphs(
        split, fonts=paths, characters=IDEOGRAPHS, draws=draws, min_faces=min_faces, seed=seed, split_seed=split_seed
    )


def find_faces(characters: Collection[int], *, least: int) -> list[Path]:
    """Installed fonts that cover at least ``least`` of the characters, one file a face, a family's first faces first.

    The order depends on the names of the faces alone, so that two machines with the same fonts take the same ones.
    """
    families: dict[str, dict[str, Path]] = defaultdict(dict)
    for path, (family, style, covered) in _installed().items():
        if len(covered.intersection(characters)) >= least:
            families[family].setdefault(style, path)  # the same face may be installed twice
    by_family = [
        [faces[style] for style in sorted(faces, key=lambda style: (style != "Regular", style))]
        for _, faces in sorted(families.items())
    ]
    return [path for round_ in zip_longest(*by_family) for path in round_ if path is not None]


def _enough(name: str, paths: list[Path], wanted: int, what: str) -> list[Path]:
    if len(paths) < wanted:
        raise FontsMissing(f"{name} needs {wanted} font faces that {what}; {len(paths)} are installed. {_CURES[name]}.")
    return paths[:wanted]


@cache
def _installed() -> dict[Path, tuple[str, str, set[int]]]:
    """Path → family, style and covered characters of every installed font that can be read."""
    from fontTools.ttLib import TTFont, TTLibError
    from matplotlib.font_manager import findSystemFonts

    fonts: dict[Path, tuple[str, str, set[int]]] = {}
    for path in sorted(map(Path, findSystemFonts()), key=lambda path: (path.name, str(path))):
        try:
            with path.open("rb") as opened, TTFont(opened, lazy=True, fontNumber=0) as font:
                names: Any = font["name"]
                family, style = names.getBestFamilyName() or path.stem, names.getBestSubFamilyName() or ""
                fonts[path] = (family, style, set(font.getBestCmap() or ()))
        except (TTLibError, OSError, KeyError, ValueError, AssertionError):
            continue  # a damaged or bitmap font of the system is none of our business
    return fonts
