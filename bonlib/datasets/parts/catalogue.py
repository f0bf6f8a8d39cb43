"""Parts as in a maker's catalogue: an identity is a part in a colour, its samples are views of it."""

import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bonlib.core.checks import whole_number
from bonlib.datasets.cache import cache_file, cached_arrays
from bonlib.datasets.images import ImageSet
from bonlib.datasets.parts import ldraw, vrml
from bonlib.datasets.parts.library import MissingPart
from bonlib.datasets.parts.render import DIRECTIONS, LOOK, best_axis, centred, render, same_looks, take_looks
from bonlib.datasets.splits import Split, check_split, seed_of_split, split_identities

_VERSION = 1  # raise it when the same options would draw other images
_SHARD = 128  # parts that are drawn, and kept, at once
_PALETTE = 30  # well-separated colours that parts come in
_APART = 90  # levels, summed over red, green and blue, by which a part's colour differs from those of its pattern
_LEAST_COVERED = 0.05  # share of a look below which a part is too thin to be told apart
_LEAST_OWN = 0.05  # share of what is seen of a part below which its own colour does not tell it apart
_NEIGHBOURS = 12  # nearest looks that are compared pixel by pixel
_SAME_PIXELS, _SAME_LEVELS = 6, 32  # parts are one identity where no look differs in more pixels by more levels
_BESIDE = 0.64  # cosine, 50 degrees: directions about an axis from which parts must look the same


@dataclass(frozen=True)
class Source:
    """A library of models."""

    version: str
    names: list[str]  # of the parts, sorted
    up: tuple[float, float, float]
    geometry: Callable[[str], tuple[NDArray[np.float64], NDArray[np.int32]]]  # raises MissingPart
    palette: list[int]  # empty where parts have no colour of their own choice


def parts(
    split: Split = "train",
    *,
    root: str | Path | None = None,
    size: int = 32,
    views: int = 8,
    colours: int = 1,
    seed: int = 0,
    split_seed: int | None = None,
) -> ImageSet:
    """Toy-brick parts of the LDraw library, rendered in colour; an identity is a part in a colour.

    Parts that look the same from all sides near their axis are one. With ``colours=1`` some 14,000 identities, with 7
    some 100,000: siblings in shape and siblings in colour are look-alikes of two kinds. A part whose own colour is
    hardly seen, such as a printed tile, has one. The first use takes minutes on two cores, goes on where it was
    stopped, and is kept in a file.

    Args:
        split: ``"train"``, ``"validation"``, ``"test"`` or ``"all"``; parts are split 50, 10, 40 %, with all their
            colours.
        root: folder, zip or Debian package of the library, see :class:`~bonlib.datasets.parts.ldraw.Library`.
        size: side of the images, pixels, 16 to 256.
        views: images of each identity.
        colours: colours that each part comes in, 1 to 30.
        seed: of colours, views and split.
        split_seed: of the split alone; by default ``seed``.

    Returns:
        Colour images; ``attributes``: ``part`` (its number in this library), ``colour`` (0xRRGGBB), ``view``.

    Raises:
        FileNotFoundError: if there is no library; the message says where to get one.
        ValueError: if an argument is out of its range.

    Source: LDraw.org Parts Library, CC BY 4.0. LEGO is a trade mark of a company that does not sponsor this.
    """
    library = ldraw.Library(root)

    def source() -> Source:
        palette = _well_separated(library.colours(), _PALETTE)
        return Source(library.version, list(library.parts()), (0.0, -1.0, 0.0), library.geometry, palette)

    colours = whole_number("colours", colours, 1, _PALETTE)
    return _catalogue("parts", split, library.version, source, (size, views, colours, seed), split_seed)


def components(
    split: Split = "train",
    *,
    root: str | Path | None = None,
    size: int = 32,
    views: int = 8,
    seed: int = 0,
    split_seed: int | None = None,
) -> ImageSet:
    """Electronic components of KiCad's library of 3D models, rendered in their own colours.

    Args:
        split: as of :func:`parts`.
        root: folder ``packages3d`` or ``3dmodels``, or Debian's package, see
            :class:`~bonlib.datasets.parts.vrml.Models`.
        size: side of the images, pixels, 16 to 256.
        views: images of each identity.
        seed: of views and split.
        split_seed: of the split alone; by default ``seed``.

    Raises:
        FileNotFoundError: if there is no library; the message says where to get one.
        ValueError: if an argument is out of its range.

    Source: KiCad libraries, CC-BY-SA 4.0 with an exception for what is made with them.
    """
    models = vrml.Models(root)

    def source() -> Source:
        return Source(models.version, models.names, (0.0, 0.0, 1.0), models.geometry, [])

    return _catalogue("components", split, models.version, source, (size, views, 1, seed), split_seed)


def _catalogue(
    name: str,
    split: Split,
    version: str,
    source: Callable[[], Source],
    options: tuple[int, int, int, int],
    split_seed: int | None,
) -> ImageSet:
    """The set of a source, which is opened only where something has to be drawn."""
    check_split(split)
    size, views, colours, seed = options
    size, views = whole_number("size", size, 16, 256), whole_number("views", views, 2, 1000)
    seed = whole_number("seed", seed, 0)
    opened: list[Source] = []

    def once() -> Source:
        if not opened:
            opened.append(source())
        return opened[0]

    shards: list[Path] = []  # kept until all of them are in one file
    shapes = cached_arrays(name, [_VERSION, version, "shapes"], lambda: _find_shapes(name, once(), shards))
    drawn = cached_arrays(
        name, [_VERSION, version, size, views, colours, seed],
        lambda: _draw_all(name, once(), shapes, (size, views, colours, seed), shards),
    )  # fmt: skip
    for file in shards:
        file.unlink(missing_ok=True)
    part_of = drawn["part"]  # (identities,)
    chosen = split_identities(len(shapes["names"]), seed_of_split(seed, split_seed))[split]
    identities = np.flatnonzero(np.isin(part_of, chosen))
    images = drawn["images"][identities]  # (identities, views, 3, size, size)
    rgb = drawn["colour"][identities]
    names = [
        str(shapes["names"][part]) + (f" #{int(colour):06X}" if colour >= 0 else "")
        for part, colour in zip(part_of[identities], rgb, strict=True)
    ]
    return ImageSet(
        images=torch.from_numpy(images.reshape(-1, *images.shape[2:])),
        labels=torch.arange(len(identities)).repeat_interleave(views),
        class_names=names,
        attributes={
            "part": np.repeat(part_of[identities], views),
            "colour": np.repeat(rgb, views),
            "view": np.tile(np.arange(views), len(identities)),
        },
        source={"library": version},
    )


def _find_shapes(name: str, source: Source, files: list[Path]) -> dict[str, NDArray[Any]]:
    """The parts that can be told apart: names, axes, and whether their own colour is seen."""
    up = np.array(source.up)

    def look(names: Sequence[str]) -> dict[str, NDArray[Any]]:
        rows, packed = [], []
        for part in names:
            try:
                triangles, colours = source.geometry(part)
            except MissingPart:
                rows.append((-1, False))
                packed.append(b"")
                continue
            looks = take_looks(centred(triangles), _rgb(colours), up)
            axis = best_axis(looks, up)
            if looks.covered[axis] < _LEAST_COVERED * LOOK**2:
                axis = -1
            rows.append((axis, looks.own[axis] >= _LEAST_OWN * looks.covered[axis]))
            packed.append(zlib.compress(looks.images.tobytes(), 1) if axis >= 0 else b"")
        axes, own = np.array(rows, dtype=np.int64).T
        joined = np.frombuffer(b"".join(packed), dtype=np.uint8)
        return {"axis": axes, "own": own.astype(bool), "looks": joined, "lengths": np.array(list(map(len, packed)))}

    shards = _by_shards(name, "looking at parts", source, source.names, "looks", look, files)
    axis, own = (np.concatenate([shard[part] for shard in shards]) for part in ("axis", "own"))
    kept = np.flatnonzero(axis >= 0)
    looks = np.empty((len(kept), len(DIRECTIONS), LOOK, LOOK, 3), dtype=np.uint8)
    row = 0
    for shard in shards:
        ends = np.cumsum(shard["lengths"])
        for begin, end in zip(ends - shard["lengths"], ends, strict=True):
            if end > begin:
                whole = zlib.decompress(shard["looks"][begin:end].tobytes())
                looks[row] = np.frombuffer(whole, dtype=np.uint8).reshape(looks.shape[1:])
                row += 1
    first = _merged(looks, axis[kept])
    single = kept[first == np.arange(len(kept))]
    return {"names": np.array([source.names[i] for i in single]), "axis": axis[single], "own": own[single]}


def _merged(looks: NDArray[np.uint8], axis: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each part the first that looks the same, itself where there is none: ``(parts,)``."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs: list[tuple[int, int]] = []  # of parts that look the same
    near = DIRECTIONS @ DIRECTIONS.T >= _BESIDE
    for direction in np.unique(axis):
        # Sums of whole numbers, which float64 holds exactly: the same neighbours on any machine.
        small = (
            looks[:, direction].reshape(len(looks), LOOK // 4, 4, LOOK // 4, 4, 3).sum(axis=(2, 4), dtype=np.float64)
        )
        small = np.ascontiguousarray(small.reshape(len(looks), -1))  # (parts, 192)
        norms = (small * small).sum(axis=1)
        for part in np.array_split(np.flatnonzero(axis == direction), max(int((axis == direction).sum()) // 512, 1)):
            apart = norms - 2 * small[part] @ small.T  # (part, parts)
            found = np.argsort(apart, axis=1, kind="stable")[:, : _NEIGHBOURS + 1]
            for a, others in zip(part, found, strict=True):
                for b in others:
                    seen = np.flatnonzero(near[axis[a]] | near[axis[b]])
                    if a != b and same_looks(looks[a], looks[b], seen, _SAME_PIXELS, _SAME_LEVELS):
                        pairs.append((a, b))
    a, b = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(len(looks), len(looks)))
    group = connected_components(graph, directed=False)[1]  # (parts,)
    return np.unique(group, return_index=True)[1][group]


def _draw_all(
    name: str, source: Source, shapes: dict[str, NDArray[Any]], options: tuple[int, int, int, int], files: list[Path]
) -> dict[str, NDArray[Any]]:
    """All views of all identities: ``images`` ``(identities, views, 3, size, size)``, ``part``, ``colour``."""
    size, views, colours, seed = options
    up = np.array(source.up)
    place = {part: i for i, part in enumerate(shapes["names"].tolist())}

    def draw(names: Sequence[str]) -> dict[str, NDArray[Any]]:
        images, rows = [], []
        for part in names:
            triangles, own_colours = source.geometry(part)
            triangles, rgb = centred(triangles), _rgb(own_colours)
            i = place[part]
            for colour in _colours_of(part, own_colours, source.palette, colours if shapes["own"][i] else 1, seed):
                shown = np.where(rgb < 0, _rgb(np.array([colour])), rgb)
                rows.append((i, colour))
                for view in range(views):
                    # Of the names alone, so that any subset of parts gives the same images.
                    rng = np.random.default_rng([seed, zlib.crc32(part.encode()), colour + 1, view])
                    images.append(render(triangles, shown, DIRECTIONS[shapes["axis"][i]], up, size, rng))
        part_of, colour_of = np.array(rows, dtype=np.int64).T
        stacked = np.stack(images).reshape(len(rows), views, 3, size, size)
        return {"images": stacked, "part": part_of, "colour": colour_of}

    key = ["views", *options]
    shards = _by_shards(name, "rendering parts", source, shapes["names"].tolist(), key, draw, files)
    return {part: np.concatenate([shard[part] for shard in shards]) for part in ("images", "part", "colour")}


def _by_shards(
    name: str,
    what: str,
    source: Source,
    names: list[str],
    key: Any,
    make: Callable[[Sequence[str]], dict[str, NDArray[Any]]],
    files: list[Path],
) -> list[dict[str, NDArray[Any]]]:
    """What ``make`` gives for parts, so many at once, in order; each is kept in a file, which is added to ``files``."""
    from tqdm.auto import tqdm

    shards = [names[i : i + _SHARD] for i in range(0, len(names), _SHARD)]
    keys = [[_VERSION, source.version, key, shard] for shard in shards]
    done = []
    # Two threads: the compiled parts of the work let go of Python's lock.
    with ThreadPoolExecutor(2) as pool, tqdm(total=len(names), desc=what, unit="part", leave=False) as bar:
        waiting = [
            pool.submit(cached_arrays, f"{name}/unfinished", k, lambda shard=shard: make(shard))
            for k, shard in zip(keys, shards, strict=True)
        ]
        try:
            for shard, future in zip(shards, waiting, strict=True):
                done.append(future.result())
                bar.update(len(shard))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    files += [cache_file(f"{name}/unfinished", k) for k in keys]
    return done


def _colours_of(part: str, own_colours: NDArray[np.int32], palette: list[int], count: int, seed: int) -> list[int]:
    """Colours that a part comes in, drawn by its name among those far from its pattern's; -1 where it has none."""
    if not palette or not (own_colours == ldraw.OWN).any():
        return [-1]
    choice = np.array(palette)
    pattern = np.unique(own_colours[own_colours != ldraw.OWN])
    if len(pattern):
        apart = np.abs(_rgb(choice)[:, None] - _rgb(pattern)).sum(axis=2).min(axis=1)  # (palette,)
        far = choice[apart >= _APART]
        choice = far if len(far) >= count else choice[np.argsort(-apart, kind="stable")[:count]]
    rng = np.random.default_rng([seed, zlib.crc32(part.encode())])
    return np.sort(rng.permutation(choice)[:count]).tolist()


def _well_separated(colours: list[int], count: int) -> list[int]:
    """A choice of colours, each the farthest from those chosen before it."""
    rgb = _rgb(np.array(colours))
    chosen = [0]
    apart = np.full(len(colours), np.inf)
    while len(chosen) < min(count, len(colours)):
        apart = np.minimum(apart, np.abs(rgb - rgb[chosen[-1]]).sum(axis=1))
        chosen.append(int(apart.argmax()))
    return [colours[i] for i in chosen]


def _rgb(packed: NDArray[Any]) -> NDArray[np.float32]:
    """Red, green and blue ``(n, 3)`` of 0xRRGGBB; -1 of a part's own colour."""
    parts = np.stack([(packed >> 16) & 255, (packed >> 8) & 255, packed & 255], axis=1).astype(np.float32)
    return np.where((packed == ldraw.OWN)[:, None], np.float32(-1), parts)
