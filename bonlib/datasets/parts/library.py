"""What libraries of models share: files by name, in a folder or an archive, and a version of them all."""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bonlib.datasets.files import file_digest


class MissingPart(ValueError):
    """A part has no surface, or refers to a file that the library does not hold."""


def text_of(found: Path | bytes) -> str:
    """The text of a file, on the disk or out of an archive."""
    return (found if isinstance(found, bytes) else found.read_bytes()).decode("utf-8", errors="replace")


def version_of(root: Path, lines: Callable[[], Iterable[str]]) -> str:
    """Sixteen hexadecimal digits that stand for a library: its archive, or lines about the files of a folder."""
    content = file_digest(str(root)) if root.is_file() else "\n".join(lines())
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def package_files(file: Path, named: Callable[[str], str | None], cure: str) -> Iterator[tuple[str, bytes]]:
    """The files of a Debian package, an ``ar`` archive whose member ``data.tar`` holds them.

    Args:
        file: the package.
        named: from a path in it to the name of the file in the library, ``None`` for what is no part of it.
        cure: how the message ends where the file is no package.

    Raises:
        FileNotFoundError: if the file is none.
    """
    with tarfile.open(fileobj=io.BytesIO(_data_of(file, cure)), mode="r:*") as archive:
        for member in archive:
            name = named(member.name) if member.isfile() else None
            if name is not None and (opened := archive.extractfile(member)) is not None:
                yield name, opened.read()


def _data_of(file: Path, cure: str) -> bytes:
    content = file.read_bytes()
    at = 8
    while content.startswith(b"!<arch>\n") and at + 60 <= len(content):
        name, size = content[at : at + 16].decode().strip(" /"), int(content[at + 48 : at + 58])
        if name.startswith("data.tar"):
            return content[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise FileNotFoundError(f"{file} is neither a zip nor a Debian package of a library. {cure}.")
