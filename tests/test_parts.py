"""Parts in 3D: the readers of two libraries, the renderer, and the catalogue made of them."""

import hashlib
import io
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from bonlib import load_dataset
from bonlib.datasets.parts import catalogue
from bonlib.datasets.parts.ldraw import OWN, Library
from bonlib.datasets.parts.library import MissingPart
from bonlib.datasets.parts.render import DIRECTIONS, best_axis, centred, render, take_looks
from bonlib.datasets.parts.vrml import Models

UP = np.array([0.0, -1.0, 0.0])
CONFIG = """0 LDraw.org Configuration File
0 !COLOUR Black      CODE   0   VALUE #1B2A34   EDGE #808080
0 !COLOUR Red        CODE   4   VALUE #B40000   EDGE #333333
0 !COLOUR Yellow     CODE  14   VALUE #FAC80A   EDGE #333333
0 !COLOUR Trans_Red  CODE  36   VALUE #C91A09   EDGE #880000   ALPHA 128
0 !COLOUR Main       CODE  16   VALUE #FFFF80   EDGE #333333
"""
# A square that looks along z; a tile that is it, twice as wide and moved, with a black triangle; a bar; a twin of it.
FILES = {
    "LDConfig.ldr": CONFIG,
    "p/square.dat": "0 Square\n0 !LDRAW_ORG Primitive\n4 16 -1 -1 0 1 -1 0 1 1 0 -1 1 0\n",
    "parts/tile.dat": "0 Tile\n0 !LDRAW_ORG Part\n1 16 5 0 0 2 0 0 0 1 0 0 0 1 square.dat\n"
    "3 0 5 0 0.1 6 0 0.1 5 1 0.1\n",
    "parts/square1.dat": "0 Square plate\n0 !LDRAW_ORG Part\n1 16 0 0 0 1 0 0 0 1 0 0 0 1 SQUARE.DAT\n",
    "parts/square2.dat": "0 Square plate, the same\n0 !LDRAW_ORG Part\n1 16 9 9 9 3 0 0 0 3 0 0 0 3 square.dat\n",
    "parts/bar.dat": "0 Bar\n0 !LDRAW_ORG Part\n4 16 -9 -1 0 9 -1 0 9 1 0 -9 1 0\n4 16 -9 -1 0 9 -1 0 9 -1 2 -9 -1 2\n",
    "parts/moved.dat": "0 ~Moved to bar\n0 !LDRAW_ORG Part\n1 16 0 0 0 1 0 0 0 1 0 0 0 1 bar.dat\n",
    "parts/hose.dat": "0 Hose\n0 !LDRAW_ORG Part Flexible_Section\n3 16 0 0 0 1 0 0 0 1 0\n",
    "parts/broken.dat": "0 Broken\n0 !LDRAW_ORG Part\n1 16 0 0 0 1 0 0 0 1 0 0 0 1 s\\nowhere.dat\n",
    "parts/s/inner.dat": "0 ~Inner\n0 !LDRAW_ORG Subpart\n3 4 0 0 0 1 0 0 0 1 0\n",
}


@pytest.fixture
def library(tmp_path):
    root = tmp_path / "ldraw"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_part_is_read_with_what_it_refers_to(library):
    triangles, colours = Library(library).geometry("tile.dat")
    assert triangles.tolist() == [
        [[3, -1, 0], [7, -1, 0], [7, 1, 0]],  # the square, twice as wide, five to the right
        [[3, -1, 0], [7, 1, 0], [3, 1, 0]],
        [[5, 0, 0.1], [6, 0, 0.1], [5, 1, 0.1]],
    ]
    assert colours.tolist() == [OWN, OWN, 0x1B2A34]


def test_parts_are_what_one_can_hold_and_colours_are_opaque(library):
    opened = Library(library)
    assert set(opened.parts()) == {"tile.dat", "square1.dat", "square2.dat", "bar.dat", "broken.dat"}
    assert opened.colours() == [0x1B2A34, 0xB40000, 0xFAC80A]
    with pytest.raises(MissingPart, match=r"nowhere\.dat"):
        opened.geometry("broken.dat")


def packed_as_zip(root, file):
    with zipfile.ZipFile(file, "w") as archive:
        for name in FILES:
            archive.write(root / name, f"ldraw/{name}")


def packed_as_package(root, file):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:xz") as archive:
        for name in FILES:
            archive.add(root / name, f"./usr/share/ldraw/{name}")
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": inner.getvalue()}
    with file.open("wb") as opened:
        opened.write(b"!<arch>\n")
        for name, content in members.items():
            opened.write(f"{name:16}{0:<12}{0:<6}{0:<6}{'100644':8}{len(content):<10}`\n".encode())
            opened.write(content + b"\n" * (len(content) % 2))


@pytest.mark.parametrize(("pack", "name"), [(packed_as_zip, "complete.zip"), (packed_as_package, "ldraw.deb")])
def test_archives_hold_what_the_folder_holds(library, tmp_path, pack, name):
    pack(library, tmp_path / name)
    folder, archive = Library(library), Library(tmp_path / name)
    assert archive.parts() == folder.parts()
    for part in ("tile.dat", "bar.dat"):
        for ours, theirs in zip(archive.geometry(part), folder.geometry(part), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["parts", "components"])
def test_a_missing_library_is_an_error_that_says_where_to_get_it(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"apt-get install.*macOS.*Windows.*CC.BY"):
        load_dataset(name, "train", root=tmp_path / "nothing")
    (tmp_path / "odd.deb").write_bytes(b"!<arch>\nodd")
    with pytest.raises(FileNotFoundError, match="neither a zip nor a Debian package"):
        load_dataset(name, "train", root=tmp_path / "odd.deb")


def test_the_silhouette_is_as_computed_by_hand(library):
    """A square in the unit sphere has half a side of 1/√2; from six radii away, at 16 × 5.9 pixels, that is 11.1."""
    triangles, colours = Library(library).geometry("square1.dat")
    looks = take_looks(centred(triangles), np.full((len(colours), 3), -1, dtype=np.float32), UP)
    front = [i for i, d in enumerate(DIRECTIONS) if abs(d[2]) == 1]
    for direction in front:
        covered = np.zeros((32, 32), dtype=bool)
        covered[16 - 11 : 16 + 11, 16 - 11 : 16 + 11] = True  # pixel centres at 0.5 … 10.5 from the middle
        np.testing.assert_array_equal(looks.images[direction].any(axis=2), covered)
        assert looks.covered[direction] == looks.own[direction] == 22**2
    edge_on = [i for i, d in enumerate(DIRECTIONS) if d[2] == 0]
    assert not looks.covered[edge_on].any()


def test_the_nearer_surface_hides_the_farther():
    square = np.array([[[-1, -1, 0], [1, -1, 0], [1, 1, 0]], [[-1, -1, 0], [1, 1, 0], [-1, 1, 0]]], dtype=np.float64)
    both = centred(np.concatenate([square, square + np.array([0, 0, 1])]))  # (4, 3, 3)
    colours = np.array([[200, 0, 0]] * 2 + [[0, 200, 0]] * 2, dtype=np.float32)
    images = take_looks(both, colours, UP).images
    middle = {tuple(d): image[16, 16] for d, image in zip(DIRECTIONS.tolist(), images, strict=True)}
    assert middle[0, 0, 1][1] > 0 == middle[0, 0, 1][0]  # green lies above
    assert middle[0, 0, -1][0] > 0 == middle[0, 0, -1][1]


def test_the_axis_shows_the_pattern(library):
    triangles, colours = Library(library).geometry("tile.dat")
    rgb = np.where(colours[:, None] == OWN, -1, np.array([27, 42, 52])).astype(np.float32)
    axis = best_axis(take_looks(centred(triangles), rgb, UP), UP)
    assert DIRECTIONS[axis][2] > 0  # the black triangle is on that side


def test_an_image_is_the_same_on_any_machine():
    """Only operations that IEEE 754 rounds in one way: one digest, whatever the processor."""
    points = np.random.default_rng(3).uniform(-1, 1, (40, 3, 3))
    colours = np.random.default_rng(4).integers(0, 256, (40, 3)).astype(np.float32)
    image = render(centred(points), colours, DIRECTIONS[0], UP, 32, np.random.default_rng(5))
    assert image.shape == (3, 32, 32)
    assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == "2fdac3c9b4779567"


def test_the_catalogue(library, folders, monkeypatch):
    whole = load_dataset("parts", "all", root=library, size=16, views=3)
    # The twin is merged, the broken one left out.
    assert [name.split()[0] for name in whole.class_names] == ["bar.dat", "square1.dat", "tile.dat"]
    assert whole.images.shape == (9, 3, 16, 16)
    assert whole.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert whole.attributes["view"].tolist() == [0, 1, 2] * 3
    assert not torch.equal(whole.images[0], whole.images[1])
    # Two colours of each part that shows its own.
    two = load_dataset("parts", "all", root=library, size=16, views=3, colours=2)
    assert two.num_classes == 6
    assert (np.bincount(two.attributes["part"]) == 6).all()
    # A part of the library alone gives the same images, and so does a run that was stopped and went on.
    (library / "parts" / "tile.dat").unlink()
    fewer = load_dataset("parts", "all", root=library, size=16, views=3)
    assert torch.equal(fewer.images, whole.images[:6])


def test_drawing_goes_on_where_it_was_stopped(library, folders, monkeypatch):
    monkeypatch.setattr(catalogue, "_SHARD", 1)
    drawn = []

    def stopped(*arguments):
        drawn.append(arguments)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return render(*arguments)

    monkeypatch.setattr(catalogue, "render", stopped)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("parts", "all", root=library, size=16, views=2)
    finished = len(drawn)
    resumed = load_dataset("parts", "all", root=library, size=16, views=2)
    assert len(drawn) - finished < 6  # of six images, those of the first part are kept
    monkeypatch.setattr(catalogue, "render", render)
    for file in folders.rglob("*.npz"):
        file.unlink()
    assert torch.equal(load_dataset("parts", "all", root=library, size=16, views=2).images, resumed.images)
    assert not list((folders / "data" / "parts" / "unfinished").glob("*"))


def test_components_bring_their_colours(tmp_path, folders):
    folder = tmp_path / "models" / "Chips.3dshapes"
    folder.mkdir(parents=True)
    shape = "Shape {{ appearance Appearance {{material {} }} geometry IndexedFaceSet {{ coordIndex [{}] "
    shape += "coord Coordinate {{ point [{}] }} }} }}"
    square = "-1 -1 0, 1 -1 0, 1 1 0, -1 1 0"
    black = "DEF BODY Material { diffuseColor 0.2 0 1e-1 }"
    text = "#VRML V2.0 utf8\n" + shape.format(black, "0 1 2 3 -1", square)
    text += shape.format("USE BODY", "0,1,2,-1", "0 0 1, 1 0 1, 0 1 1")
    for name in ("a", "b"):
        (folder / f"{name}.wrl").write_text(text if name == "a" else text.replace("0.2 0 1e-1", "0.2 1 1e-1"))
    triangles, colours = Models(tmp_path / "models").geometry("Chips.3dshapes/a")
    assert triangles[:2].tolist() == [[[-1, -1, 0], [1, -1, 0], [1, 1, 0]], [[-1, -1, 0], [1, 1, 0], [-1, 1, 0]]]
    assert colours.tolist() == [0x33001A] * 3  # 51, 0, 25.5
    both = load_dataset("components", "all", root=tmp_path / "models", size=16, views=2)
    assert both.class_names == ["Chips.3dshapes/a", "Chips.3dshapes/b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 8}, "size is 8"), ({"views": 1}, "views is 1"), ({"colours": 31}, "colours is 31")],
)
def test_bad_options_of_parts_are_refused(library, options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset("parts", "all", root=library, **options)
