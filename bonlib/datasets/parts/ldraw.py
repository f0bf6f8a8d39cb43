"""LDraw's library of parts: titles, triangles and colours, from a folder, a zip or a Debian package."""

import os
import re
import zipfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bonlib.core.paths import data_dir
from bonlib.datasets.parts.library import MissingPart, package_files, text_of, version_of

OWN = -1  # colour of what takes the part's own
_OWN_CODE, _EDGE_CODE = 16, 24
_LEFT_OUT = ("~", "=", "_", "|")  # at the beginning of a title: sub-assemblies and redirects, aliases, and the like
_CURE = (
    "Debian and Ubuntu: apt-get install ldraw-parts (non-free) or ldraw-parts-free, which go to /usr/share/ldraw; "
    "macOS and Windows: unpack complete.zip of library.ldraw.org, or give the zip itself. Give root, or set LDRAWDIR. "
    "Licence: LDraw.org Parts Library, CC BY 4.0"
)


class Library:
    """The files of a library by their names below its root, in lower case with slashes.

    Args:
        root: folder with ``parts/`` and ``p/``, a zip of it, or Debian's package; by default ``$LDRAWDIR``,
            ``/usr/share/ldraw``, or ``ldraw/`` below :func:`~bonlib.core.paths.data_dir`.

    Raises:
        FileNotFoundError: if there is none; the message says where to get one.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = _find(root)
        self._flat: dict[str, tuple[NDArray[np.float64], NDArray[np.int32]]] = {}

    @cached_property
    def version(self) -> str:
        """Sixteen hexadecimal digits that stand for the library: names and sizes of its files, or its archive."""

        def lines() -> list[str]:
            found = [f"{name} {path.stat().st_size}" for name, path in self._files.items() if isinstance(path, Path)]
            return [*sorted(found), self.read("ldconfig.ldr") if "ldconfig.ldr" in self._files else ""]

        return version_of(self.root, lines)

    @cached_property
    def _files(self) -> dict[str, Path | bytes]:
        if self.root.is_dir():
            return {
                path.relative_to(self.root).as_posix().lower(): path
                for path in self.root.rglob("*")
                if path.suffix.lower() in (".dat", ".ldr")
            }
        if zipfile.is_zipfile(self.root):
            return dict(_of_zip(self.root))
        return dict(package_files(self.root, _named, _CURE))

    def read(self, name: str) -> str:
        """The text of a file.

        Raises:
            MissingPart: if the library does not hold it.
        """
        if name not in self._files:
            raise MissingPart(f"{name} is not in {self.root}.")
        return text_of(self._files[name])

    def parts(self) -> dict[str, str]:
        """Titles of the parts that one can hold, by file name: no aliases, redirects, sub-assemblies, flexible ones."""
        found = {}
        for name in sorted(self._files):
            if not re.fullmatch(r"parts/[^/]+\.dat", name):
                continue
            title, kind = "", ""
            for line in self.read(name)[:1500].splitlines():
                title = title or line.removeprefix("0").strip()
                if line.startswith("0 !LDRAW_ORG"):
                    kind = line
                    break
            odd = title.startswith(_LEFT_OUT) or "(Obsolete)" in title
            if not odd and not re.search(r"Alias|Physical_Colour|Flexible_Section|Subpart|Primitive", kind):
                found[name.removeprefix("parts/")] = title
        return found

    def colours(self) -> list[int]:
        """The opaque plain colours, 0xRRGGBB, by name.

        Raises:
            MissingPart: if the library has no ``LDConfig.ldr``.
        """
        found = {}
        for line in self.read("ldconfig.ldr").splitlines():
            match = re.match(r"0 !COLOUR (\S+) +CODE +(\d+) +VALUE +#([0-9A-Fa-f]{6}) +EDGE +\S+ *(.*)", line)
            if match and not match[4].strip() and int(match[2]) not in (_OWN_CODE, _EDGE_CODE):
                found.setdefault(int(match[3], 16), match[1])
        return sorted(found, key=found.__getitem__)

    @cached_property
    def _palette(self) -> dict[int, int]:
        """Every colour code, the transparent ones too, as 0xRRGGBB."""
        text = self.read("ldconfig.ldr")
        pairs = re.findall(r"0 !COLOUR \S+ +CODE +(\d+) +VALUE +#([0-9A-Fa-f]{6})", text)
        return {int(code): int(value, 16) for code, value in pairs} | {_OWN_CODE: OWN}

    def geometry(self, part: str) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        """Triangles ``(n, 3, 3)`` of a part, and their colours ``(n,)`` as 0xRRGGBB, ``OWN`` for the part's own.

        Raises:
            MissingPart: if the part, or what it refers to, is not here, or it has no surface.
        """
        triangles, colours = self._flattened(f"parts/{part.lower()}", ())
        if not len(triangles):
            raise MissingPart(f"{part} has no surface.")
        return triangles, colours

    def _flattened(self, name: str, above: tuple[str, ...]) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        if name in self._flat:
            return self._flat[name]
        if name in above:
            raise MissingPart(f"{name} refers to itself.")
        corners: list[list[float]] = []
        own_colours: list[int] = []
        pieces, colours = [], []
        for line in self.read(name).splitlines():
            words = line.split()
            if len(words) < 11 or words[0] not in ("1", "3", "4"):
                continue
            colour = self._colour(words[1])
            if words[0] == "1":
                numbers = np.array(words[2:14], dtype=np.float64)
                other = " ".join(words[14:]).lower().replace("\\", "/")
                inner, inner_colours = self._flattened(self._place(other, name), (*above, name))
                if len(inner):
                    pieces.append(_moved(inner, numbers))
                    colours.append(np.where(inner_colours == OWN, colour, inner_colours).astype(np.int32))
                continue
            numbers = list(map(float, words[2:14]))
            corners.append(numbers[:9])
            own_colours.append(colour)
            if words[0] == "4":
                corners.append([*numbers[:3], *numbers[6:12]])
                own_colours.append(colour)
        pieces.append(np.array(corners, dtype=np.float64).reshape(-1, 3, 3))
        colours.append(np.array(own_colours, dtype=np.int32))
        whole = np.concatenate(pieces), np.concatenate(colours)
        if name.startswith("p/"):  # primitives, which many parts share
            self._flat[name] = whole
        return whole

    def _colour(self, word: str) -> int:
        if word.lower().startswith("0x"):
            return int(word, 16) & 0xFFFFFF
        return self._palette.get(int(word), 0x7F7F7F)

    def _place(self, other: str, name: str) -> str:
        for folder in ("parts/", "p/"):
            if folder + other in self._files:
                return folder + other
        raise MissingPart(f"{name} refers to {other}, which is not in {self.root}.")


def _moved(triangles: NDArray[np.float64], numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turned and shifted as a line of type 1 says; by plain sums, which are the same on any machine."""
    x, y, z = triangles[..., 0], triangles[..., 1], triangles[..., 2]
    shift, turn = numbers[:3], numbers[3:].reshape(3, 3)
    return np.stack([turn[k, 0] * x + turn[k, 1] * y + turn[k, 2] * z + shift[k] for k in range(3)], axis=2)


def _find(root: str | Path | None) -> Path:
    if root is not None:
        tried = [Path(root).expanduser()]
    else:
        given = os.environ.get("LDRAWDIR")
        tried = [*([Path(given).expanduser()] if given else []), Path("/usr/share/ldraw"), data_dir() / "ldraw"]
    for path in tried:
        for inner in (path, path / "ldraw", path / "usr" / "share" / "ldraw"):
            if (inner / "parts").is_dir() or inner.is_file():
                return inner
    where = ", ".join(map(str, tried))
    raise FileNotFoundError(f"No LDraw library was found (looked at {where}). {_CURE}.")


def _named(path: str) -> str | None:
    """The name below the root of a library, of a member of an archive; ``None`` for what is no part of it."""
    match = re.search(r"(?:^|/)((?:parts|p)/.*\.dat|ldconfig\.ldr)$", path.lower().replace("\\", "/"))
    return match[1] if match else None


def _of_zip(file: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if (name := _named(member.filename)) is not None:
                yield name, archive.read(member)
