"""KiCad's library of electronic components: triangles and colours from its VRML files."""

import os
import re
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bonlib.core.paths import data_dir
from bonlib.datasets.parts.library import MissingPart, package_files, text_of, version_of

_CURE = (
    "Debian and Ubuntu: apt-get install kicad-packages3d, which goes to /usr/share/kicad/3dmodels; macOS and Windows: "
    "KiCad's installer brings them (folder 3dmodels). Give root, or set KICAD9_3DMODEL_DIR. Licence: CC-BY-SA 4.0 with "
    "an exception for what is made with them"
)
_VARIABLES = ("KICAD9_3DMODEL_DIR", "KICAD8_3DMODEL_DIR", "KICAD7_3DMODEL_DIR", "KICAD6_3DMODEL_DIR")
_NUMBER = r"-?[\d.]+(?:[eE][-+]?\d+)?"


class Models:
    """The models of a library, by their names without suffix.

    Args:
        root: folder of ``*.3dshapes/*.wrl``, or Debian's package; by default one of ``$KICAD9_3DMODEL_DIR`` (8, 7, 6),
            ``/usr/share/kicad/3dmodels``, or ``kicad/`` below :func:`~bonlib.core.paths.data_dir`.

    Raises:
        FileNotFoundError: if there is none; the message says where to get one.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        given = [os.environ[name] for name in _VARIABLES if os.environ.get(name)]
        usual = [*map(Path, given), Path("/usr/share/kicad/3dmodels"), data_dir() / "kicad"]
        tried = usual if root is None else [Path(root).expanduser()]
        inner = [path / part for path in tried for part in ("", "usr/share/kicad/3dmodels")]
        found = [path for path in inner if path.is_file() or (path.is_dir() and any(path.glob("*/*.wrl")))]
        if not found:
            raise FileNotFoundError(
                f"No library of KiCad's models was found (looked at {', '.join(map(str, tried))}). {_CURE}."
            )
        self.root = found[0]

    @cached_property
    def version(self) -> str:
        """Sixteen hexadecimal digits that stand for the library: names and sizes of its files, or its archive."""
        files = self._files.items() if self.root.is_dir() else ()
        sizes = (f"{name}.wrl {path.stat().st_size}" for name, path in files if isinstance(path, Path))
        return version_of(self.root, lambda: sorted(sizes))

    @cached_property
    def _files(self) -> dict[str, Path | bytes]:
        if self.root.is_dir():
            return {path.relative_to(self.root).with_suffix("").as_posix(): path for path in self.root.glob("*/*.wrl")}
        return dict(package_files(self.root, _named, _CURE))

    @property
    def names(self) -> list[str]:
        """Names of the models, sorted."""
        return sorted(self._files)

    def geometry(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        """Triangles ``(n, 3, 3)`` of a model, and their colours ``(n,)`` as 0xRRGGBB.

        Raises:
            MissingPart: if it has no surface.
        """
        text = re.sub(r"#.*", "", text_of(self._files[name]))
        materials: dict[str, int] = {}
        triangles, colours = [], []
        for shape in re.split(r"\bShape\s*\{", text)[1:]:
            colour = _colour(shape, materials)
            points = re.search(r"\bpoint\s*\[([^\]]*)\]", shape)
            faces = re.search(r"\bcoordIndex\s*\[([^\]]*)\]", shape)
            if points is None or faces is None:
                continue
            corners = np.fromstring(points[1].replace(",", " "), sep=" ").reshape(-1, 3)
            index = _triangulated(np.fromstring(faces[1].replace(",", " "), sep=" ", dtype=np.int64))
            index = index[(index < len(corners)).all(axis=1)]
            triangles.append(corners[index])
            colours.append(np.full(len(index), colour, dtype=np.int32))
        if not sum(map(len, triangles)):
            raise MissingPart(f"{name} has no surface.")
        return np.concatenate(triangles), np.concatenate(colours)


def _colour(shape: str, materials: dict[str, int]) -> int:
    """The diffuse colour of a shape, given here or by a name that was given one before."""
    if used := re.search(r"material\s+USE\s+(\S+?)[\s}]", shape):
        return materials.get(used[1], 0x7F7F7F)
    found = re.search(rf"diffuseColor\s+({_NUMBER})\s+({_NUMBER})\s+({_NUMBER})", shape)
    red, green, blue = (min(max(round(255 * float(found[k])), 0), 255) if found else 0x7F for k in (1, 2, 3))
    colour = red << 16 | green << 8 | blue
    if defined := re.search(r"material\s+DEF\s+(\S+)\s+Material", shape):
        materials[defined[1]] = colour
    return colour


def _triangulated(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Polygons, each ended by -1, as fans of triangles: ``(n, 3)``."""
    if len(index) % 4 == 0 and (index[3::4] == -1).all() and (np.delete(index, np.s_[3::4]) >= 0).all():
        return index.reshape(-1, 4)[:, :3]
    fans: list[tuple[int, int, int]] = []
    polygon: list[int] = []
    for i in [*index.tolist(), -1]:
        if i >= 0:
            polygon.append(i)
            continue
        fans += [(polygon[0], polygon[k], polygon[k + 1]) for k in range(1, len(polygon) - 1)]
        polygon = []
    return np.array(fans, dtype=np.int64).reshape(-1, 3)


def _named(path: str) -> str | None:
    match = re.search(r"3dmodels/([^/]+/[^/]+)\.wrl$", path)
    return match[1] if match else None
