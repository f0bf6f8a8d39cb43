"""Glyphs: the embedded data set. An identity is a character, its views are that character in many font faces.

The faces are those that matplotlib ships (DejaVu Sans, Sans Mono, Serif, and STIXGeneral, in all styles), so nothing is
downloaded, and the hard negatives are real: ö ő ó, Ш Щ, ﬀ ﬁ.
"""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import affine_grid, grid_sample

from bonlib.datasets.cache import cached_arrays
from bonlib.datasets.images import ImageSet
from bonlib.datasets.splits import Split, check_split, seed_of_split, split_identities

SIZE = 32  # side of an image, pixels
_CANVAS, _EM, _BASELINE = 48, 36, 36  # of the drawing that images are distorted from
_VERSION = 7  # raise it when the same options would draw other images
_MAX_ROTATION, _MAX_SHEAR, _SCALES, _MAX_SHIFT = np.deg2rad(35), 0.6, (0.9, 1.1), 0.04

_SLANTED = ("", "-Bold", "-Oblique", "-BoldOblique")
_DEJAVU = [f"DejaVu{family}{style}.ttf" for family in ("Sans", "SansMono") for style in _SLANTED]
_DEJAVU += [f"DejaVuSerif{style}.ttf" for style in ("", "-Bold", "-Italic", "-BoldItalic")]
_STIX = [f"STIXGeneral{style}.ttf" for style in ("", "Bol", "Italic", "BolIta")]


class Glyphs(ImageSet):
    """Characters as identities, drawn in many font faces under random rotation, shear, scale and shift.

    Characters that draw alike in every face they share are one identity; those that differ in one of them, as A and Α
    do, stay two, so that of the usual 3,198 identities some 300 share a drawing with another one. Blanks and the boxes
    that stand for missing glyphs are left out. By default 78,000 images; the first use draws them (seconds) and keeps
    them in a file below :func:`~bonlib.core.paths.data_dir`.

    Identities, not images, are split: 50 % train, 10 % validation, 40 % test, disjoint, by ``seed``.

    Args:
        split: ``"train"``, ``"validation"``, ``"test"`` or ``"all"``.
        fonts: font files to draw with; by default the 16 text faces in matplotlib.
        characters: code points or characters to take; by default all that the fonts cover.
        draws: images of each character in each face.
        min_faces: faces that a character must be in; by default 8, or all fonts where fewer are given.
        seed: seed of distortions and split.
        split_seed: of the split alone; by default ``seed``.

    Attributes:
        class_names: the character of each identity (of several that draw alike, the first).
        attributes: ``character`` (its code point), ``face`` (position in ``faces``) and ``draw`` of each image.
        faces: file names of the fonts, without suffix; ``source`` holds them with their versions.

    Raises:
        ValueError: if an argument is out of its range, or fewer than ten characters are left.
        FileNotFoundError: if a font is not there.

    Example:
        The Hangul syllables of two fonts:
        ``Glyphs(fonts=["NotoSansKR.otf", "NotoSerifKR.otf"], characters=range(0xAC00, 0xD7A4))``.
    """

    def __init__(
        self,
        split: Split = "train",
        *,
        fonts: Sequence[str | Path] | None = None,
        characters: Iterable[int | str] | None = None,
        draws: int = 2,
        min_faces: int | None = None,
        seed: int = 0,
        split_seed: int | None = None,
    ) -> None:
        check_split(split)
        if draws < 1:
            raise ValueError(f"draws is {draws}; give at least 1.")
        paths = [Path(font).expanduser() for font in fonts] if fonts is not None else default_fonts()
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(
                    f"fonts holds {str(path)!r}, which is no file; give paths of .ttf or .otf files."
                )
        if not 1 <= (least := min(8, len(paths)) if min_faces is None else min_faces) <= len(paths):
            raise ValueError(f"min_faces is {min_faces}; allowed are 1 to {len(paths)}, the number of fonts.")
        points = None if characters is None else sorted({ord(c) if isinstance(c, str) else int(c) for c in characters})
        arrays = _cached(paths, points, draws, least, seed)
        self.faces = [path.stem for path in paths]
        chosen = split_identities(len(arrays["names"]), seed_of_split(seed, split_seed))[split]
        here = np.isin(arrays["identity"], chosen)
        super().__init__(
            images=torch.from_numpy(arrays["images"][here]).unsqueeze(1),  # (num_samples, 1, 32, 32)
            labels=torch.from_numpy(np.searchsorted(chosen, arrays["identity"][here])),
            class_names=[chr(arrays["names"][i]) for i in chosen],
            attributes={name: arrays[name][here] for name in ("character", "face", "draw")},
            source={"faces": [_face_name(path) for path in paths]},
        )


def default_fonts() -> list[Path]:
    """The 16 text faces that matplotlib ships."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [folder / name for name in _DEJAVU + _STIX]


def _face_name(path: Path) -> str:
    """File name, and the version that the font states of itself."""
    from fontTools.ttLib import TTFont

    with TTFont(path, lazy=True, fontNumber=0) as font:
        names: Any = font["name"]
        return f"{path.name}: {names.getDebugName(5) or 'no version'}"


def _cached(paths: list[Path], points: list[int] | None, draws: int, min_faces: int, seed: int) -> dict[str, Any]:
    """The drawn set, from its cache file where that is whole."""
    from PIL import features

    fonts = [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in paths]
    options = [_VERSION, fonts, points, draws, min_faces, seed, features.version("freetype2")]
    return cached_arrays("glyphs", options, lambda: _draw_all(paths, points, draws, min_faces, seed))


def _draw_all(paths: list[Path], points: list[int] | None, draws: int, min_faces: int, seed: int) -> dict[str, Any]:
    drawings = _drawings(paths, points, min_faces)
    identities = [group for group in _alike(drawings) if len({f for c in group for f in drawings[c]}) >= min_faces]
    if len(identities) < 10:
        raise ValueError(
            f"Only {len(identities)} characters are in {min_faces} of the fonts; give other fonts or characters."
        )
    canvases, rows = [], []
    for identity, group in enumerate(identities):
        for face in range(len(paths)):
            if (character := next((c for c in group if face in drawings[c]), None)) is not None:
                canvases.append(np.frombuffer(drawings[character][face], dtype=np.uint8))
                rows.extend((identity, character, face, draw) for draw in range(draws))
    table = np.array(rows, dtype=np.int32)  # (num_samples, 4)
    images = _distort(np.stack(canvases).reshape(-1, _CANVAS, _CANVAS), draws, seed)
    columns = dict(zip(("identity", "character", "face", "draw"), table.T.copy(), strict=True))
    return {"images": images, "names": np.array([group[0] for group in identities]), **columns}


def _drawings(paths: list[Path], points: list[int] | None, min_faces: int) -> dict[int, dict[int, bytes]]:
    """Character → face → its drawing on the canvas, without blanks and without the box of a missing glyph."""
    from fontTools.ttLib import TTFont
    from PIL import ImageFont

    covers = []
    for path in paths:
        with TTFont(path, lazy=True, fontNumber=0) as font:
            covers.append(set(font.getBestCmap() or ()))
    wanted = set.union(*covers) if points is None else set(points)
    # Controls, surrogates, private and unassigned code points, and spaces are no characters that one could name.
    wanted = {c for c in wanted if unicodedata.category(chr(c))[0] not in "CZ"}
    wanted = sorted(c for c in wanted if sum(c in cover for cover in covers) >= min_faces)
    drawings: dict[int, dict[int, bytes]] = {c: {} for c in wanted}
    for face, (path, cover) in enumerate(zip(paths, covers, strict=True)):
        font = ImageFont.truetype(str(path), _EM, layout_engine=ImageFont.Layout.BASIC)
        useless = {_draw(font, "\uffff"), bytes(_CANVAS**2)}  # U+FFFF is no character: fonts draw their box for it
        for c in cover.intersection(wanted):
            if (drawing := _draw(font, chr(c))) not in useless:
                drawings[c][face] = drawing
    return drawings


def _draw(font: Any, character: str) -> bytes:
    """A glyph on the canvas: its ink centred across, on a common baseline, made smaller only where it would not fit."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = font.getbbox(character, anchor="ls")
    if (shrink := (_CANVAS - 2) / max(right - left, bottom - top, 1)) < 1:
        font = font.font_variant(size=int(_EM * shrink))
        left, top, right, bottom = font.getbbox(character, anchor="ls")
    baseline = min(max(_BASELINE, 1 - top), _CANVAS - 1 - bottom)
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    ImageDraw.Draw(canvas).text(((_CANVAS - left - right) // 2, baseline), character, fill=255, font=font, anchor="ls")
    return canvas.tobytes()


def _alike(drawings: dict[int, dict[int, bytes]]) -> list[list[int]]:
    """Characters grouped where they draw alike in every face that they share, each group sorted."""
    same: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for c, faces in drawings.items():
        for face, drawing in faces.items():
            same[face, drawing].append(c)
    group = {c: [c] for c in drawings}
    for twins in same.values():
        for a, b in combinations(twins, 2):
            shared = drawings[a].keys() & drawings[b].keys()
            if group[a] is not group[b] and all(drawings[a][face] == drawings[b][face] for face in shared):
                group[a].extend(group[b])
                for c in group[b]:
                    group[c] = group[a]
    return sorted(sorted(members) for members in {id(g): g for g in group.values()}.values())


def _distort(canvases: NDArray[np.uint8], draws: int, seed: int) -> NDArray[np.uint8]:
    """Each canvas ``draws`` times under a random affine map: ``(n, 48, 48)`` to ``(n * draws, 32, 32)``."""
    rng = np.random.default_rng([seed, 1])
    n = len(canvases) * draws
    angle, shear = rng.uniform(-_MAX_ROTATION, _MAX_ROTATION, n), rng.uniform(-_MAX_SHEAR, _MAX_SHEAR, n)
    scale, shift = 1 / rng.uniform(*_SCALES, n), rng.uniform(-_MAX_SHIFT, _MAX_SHIFT, (n, 2))
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    maps = np.stack([cos, shear * cos - sin, shift[:, 0], sin, shear * sin + cos, shift[:, 1]], axis=1)
    theta = torch.from_numpy(maps.reshape(n, 2, 3)).float()
    images = np.empty((n, SIZE, SIZE), dtype=np.uint8)
    for begin in range(0, n, 4096):
        part = slice(begin, min(begin + 4096, n))
        source = torch.from_numpy(canvases[np.arange(part.start, part.stop) // draws]).float().unsqueeze(1)
        grid = affine_grid(theta[part], [len(source), 1, SIZE, SIZE], align_corners=False)
        images[part] = grid_sample(source, grid, align_corners=False).squeeze(1).round().to(torch.uint8).numpy()
    return images
