"""Captions in text files beside their pictures, one a line."""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePath

from pipeline.extract.datasets.layout import Fence


def text_lines(text: bytes) -> list[str]:
    """Return the captions of a text file, one a line; an empty one where it has none."""
    found = re.split(r"\r\n|\n|\r", text.decode("utf-8-sig", "surrogateescape"))  # U+2028 is a letter of its caption
    return [line for line in found if line.strip()] or [""]


def is_text(name: str) -> bool:
    """Tell whether a file's name ends as a text's."""
    return name.lower().endswith(".txt")


class Texts:
    """The `.txt` files of a folder, found by the stem of their picture, however either writes its accents.

    Args:
        root: The folder.
        names: Files in it.
    """

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self._root = root
        self._fence = Fence(root)
        self._names = {name: False for name in names if is_text(name) and not self._fence.problem(name)}
        """Name → whether a picture has taken it."""
        self._exact: dict[str, list[str]] = {}
        self._plain: dict[str, list[str]] = {}
        for name in self._names:
            self._exact.setdefault(_stem(name), []).append(name)
            self._plain.setdefault(plain_stem(name), []).append(name)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def of(self, image: str) -> list[str]:
        """Return an image's captions."""
        names = self._exact.get(_stem(image)) or self._plain.get(plain_stem(image), [])
        self._names |= dict.fromkeys(names, True)
        return [line for name in names for line in text_lines((self._root / name).read_bytes())]

    def left(self) -> list[str]:
        """Return the texts that no picture has taken."""
        return [name for name, taken in self._names.items() if not taken]


def _stem(name: str) -> str:
    return name[: -len(PurePath(name).suffix)]


def plain_stem(name: str) -> str:
    """Return a file's name without its ending, its accents written in one way."""
    return unicodedata.normalize("NFC", _stem(name))
