"""A dataset of labelled strings, such as names, which an encoder sees as hashed character n-grams."""

import hashlib
import textwrap
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from bonlib.core.checks import chosen_ids, needs_extra, real_number
from bonlib.core.permutation import compiled
from bonlib.datasets.labelled import LabelledSet

VOCABULARY = 2**17  # numbers that n-grams are hashed to; 0 stands for none
LONGEST = 62  # characters of a string that count
_ORDERS = 4  # n-grams of 1 to 4 characters
_WIDTH = _ORDERS * (LONGEST + 2)  # most n-grams of a string, with a mark at both ends
_EDGE = 0x10FFFF  # the mark, which is no character


@dataclass
class TextSet(LabelledSet):
    """Labelled strings, which a loop asks for by batches of indices, as :class:`~bonlib.datasets.images.ImageSet`.

    A string becomes the hashes of its n-grams of 1 to 4 characters, a mark at both ends, in ``1 .. VOCABULARY - 1``,
    filled up with zeros: what the encoder ``"ngrams"`` takes. Characters after the 62nd do not count.

    Attributes:
        strings: ``(num_samples,)`` of text.
        labels: ``(num_samples,)`` int64, ``0 .. num_classes - 1``.
        class_names: name of each class.
        attributes: what else is known of each sample, arrays of ``(num_samples,)`` by name.
        drop: share of the n-grams that are left out at random, for training.
        typos: share of the characters that are left out, doubled, swapped with the next or replaced by a character of
            another string at random, for training. Both draw from torch's global generator, as torchvision's
            transforms do.
        source: where the strings are from, plain values that go into the records of runs.
        ks: ranks of recall that are reported for this set.

    Source: hashed n-grams as in Bojanowski et al., "Enriching word vectors with subword information", 2017.

    Example:
        >>> names = TextSet(["Wien", "Vienna", "Praha", "Prague"], torch.tensor([0, 0, 1, 1]), ["Wien", "Praha"])
        >>> grams, labels = names.batch([0, 3])
        >>> (grams > 0).sum(dim=1).tolist(), labels.tolist()  # n-grams of "|Wien|" and "|Prague|"
        ([16, 24], [0, 1])
    """

    strings: list[str]
    labels: Tensor
    class_names: list[str]
    attributes: dict[str, NDArray[Any]] = field(default_factory=dict)
    drop: float = 0.0
    typos: float = 0.0
    source: dict[str, Any] = field(default_factory=dict)
    ks: tuple[int, ...] = (1, 2, 4, 8)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.drop = real_number("drop", self.drop, 0, 0.9)
        self.typos = real_number("typos", self.typos, 0, 0.9)
        if "" in self.strings:
            raise ValueError(f"strings[{self.strings.index('')}] is empty, and near to anything; leave it out.")

    def __len__(self) -> int:
        """Number of strings."""
        return len(self.strings)

    @property
    def channels(self) -> int:
        """1: a string is one row of n-grams."""
        return 1

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that stand for strings and labels, one by one, wherever they come from."""
        parts = ("\n".join(self.class_names), "\0".join(self.strings))
        digest = hashlib.sha256("\n".join(parts).encode(errors="surrogatepass"))
        digest.update(self.labels.cpu().numpy().astype("<i8").tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def _characters(self) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """All code points one after the other, and where each string begins, with the end of the last."""
        lengths = np.fromiter(map(len, self.strings), dtype=np.int64, count=len(self.strings))
        joined = "".join(self.strings).encode("utf-32-le", errors="surrogatepass")
        return np.frombuffer(joined, dtype="<u4"), np.concatenate([[0], np.cumsum(lengths)])

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Hashed n-grams ``(256,)`` int64 as the encoder gets them, and the label."""
        return self._grams(np.array([index]), _WIDTH)[0], int(self.labels[index])

    def batch(self, indices: ArrayLike) -> tuple[Tensor, Tensor]:
        """Hashed n-grams ``(batch, most of a string)`` int64 as the encoder gets them, and labels ``(batch,)``."""
        chosen = chosen_ids("indices", indices, len(self))
        return self._grams(chosen, None), self.labels[torch.from_numpy(chosen)]

    def _grams(self, chosen: NDArray[np.int64], width: int | None) -> Tensor:
        outside = (chosen < -len(self)) | (chosen >= len(self))
        if outside.any():
            raise IndexError(f"index {chosen[outside][0]} is out of range; there are {len(self)} strings.")
        chosen = chosen.astype(np.int64) % len(self)
        points, begins = self._characters
        grams = np.zeros((len(chosen), _WIDTH), dtype=np.int64)
        seed = int(torch.randint(2**62, ())) if self.drop or self.typos else 0
        most = _hash_ngrams(chosen, points, begins, (self.drop, self.typos), np.random.default_rng(seed), grams)
        return torch.from_numpy(grams[:, : most if width is None else width])

    def pixels(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """The strings in print, to look at: ``(batch, 1, 48, 96)`` uint8, ink high, in two lines at most."""
        with needs_extra("pixels"):
            from PIL import Image, ImageDraw
        pictures = []
        for i in chosen_ids("indices", indices, len(self)).tolist():
            canvas = Image.new("L", (96, 48))
            lines = textwrap.wrap(self.strings[i], 15, max_lines=3, placeholder="…") or [""]
            ImageDraw.Draw(canvas).multiline_text((48, 24), "\n".join(lines), 255, _font(), "mm", align="center")
            pictures.append(np.asarray(canvas)[None])
        return np.stack(pictures)

    @cached_property
    def plain(self) -> "TextSet":
        """The same set without typos, and with all n-grams; itself, where it has none of these changes."""
        return self.changed(drop=0.0, typos=0.0) if self.drop or self.typos else self

    def samples_at(self, chosen: Tensor) -> dict[str, Any]:
        """The strings at these indices."""
        return {"strings": [self.strings[i] for i in chosen.tolist()]}

    def of_class(self, name: str) -> list[str]:
        """All strings of the class of that name.

        Raises:
            ValueError: if there is no such class here; it may be in another split.
        """
        return [self.strings[i] for i in self.ids_of_class(name).tolist()]

    def __repr__(self) -> str:
        """Sizes in one line."""
        return f"{type(self).__name__}({len(self):,} strings of {self.num_classes:,} identities)"


@cache
def _font() -> Any:
    """The face that matplotlib ships for Latin, Greek, Cyrillic, Arabic; other scripts show as boxes."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 11)


@compiled
def _hash_ngrams(chosen, points, begins, rates, rng, grams):  # pragma: no cover
    """Write the hashes of each chosen string's n-grams into a row of ``grams``; returns the most that a row holds."""
    drop, typos = rates
    text = np.empty(2 * LONGEST + 2, dtype=np.uint64)
    most = 1
    for row in range(len(chosen)):
        first, last = begins[chosen[row]], begins[chosen[row] + 1]
        text[0], n, i = _EDGE, 1, first
        while i < last and n <= LONGEST:
            kind = rng.integers(0, 4) if typos > 0 and rng.random() < typos else -1
            if kind == 0:  # doubled
                text[n], text[n + 1] = points[i], points[i]
                n += 2
            elif kind == 1 and i + 1 < last:  # swapped with the next
                text[n], text[n + 1] = points[i + 1], points[i]
                n += 2
                i += 1
            elif kind == 2:  # replaced by a character as they come in this set
                text[n] = points[rng.integers(0, len(points))]
                n += 1
            elif kind != 3:  # else left out
                text[n] = points[i]
                n += 1
            i += 1
        n = min(n, LONGEST + 1)
        text[n] = _EDGE
        n += 1
        found = 0
        for begin in range(n):
            mixed = np.uint64(0)
            for order in range(min(_ORDERS, n - begin)):
                mixed = (mixed ^ text[begin + order]) * np.uint64(0x9E3779B97F4A7C15)
                mixed ^= mixed >> np.uint64(29)
                if order == 0 and text[begin] == _EDGE:
                    continue  # the mark alone says nothing
                if drop > 0 and rng.random() < drop:
                    continue
                grams[row, found] = 1 + np.int64(mixed % np.uint64(VOCABULARY - 1))
                found += 1
        most = max(most, found)
    return most
