"""Files of pictures: known by their endings; those that a table names are found in or below a folder, nowhere else."""

import os
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePath

from pipeline.extract.datasets.layout import Fence
from pipeline.extract.datasets.records import Skipped

_READ = ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .avif .heic .heif .hif .jp2 .j2k"
IMAGE_SUFFIXES = frozenset(_READ.split())
"""File name endings that importers take for an image."""
_RAW = ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl .sr2 .srw .x3f"
_OTHER = ".ai .cur .dds .eps .exr .hdr .ico .jxl .pcx .psd .svg .svgz .tga .wmf .xcf"
_UNREAD = dict.fromkeys(_RAW.split(), "a camera's raw file: develop it to JPEG, PNG or TIFF") | {
    suffix: f"pictures of the kind {suffix} are not read: save it as JPEG, PNG or TIFF" for suffix in _OTHER.split()
}
PICTURE = re.compile(rf"(.*({'|'.join(map(re.escape, sorted(IMAGE_SUFFIXES)))}))(\.\d+)?(#\d+)?", re.IGNORECASE)
"""A picture's name, and Flickr's number of its caption."""
MAX_FILES = 1_000_000
"""Pictures below a folder that are looked through for one that does not lie where its table says."""


def files_below(root: Path) -> Iterator[str]:
    """Yield the files below a folder, in order; hidden ones are left out."""
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        inner = Path(folder).relative_to(root)
        yield from ((inner / name).as_posix() for name in sorted(files) if not name.startswith("."))


def is_image(name: str) -> bool:
    """Tell whether a file's name ends as an image's."""
    return PurePath(name).suffix.lower() in IMAGE_SUFFIXES


def unread(name: str) -> str:
    """Return why a picture is not read whose name ends like this; empty for any other file."""
    return _UNREAD.get(PurePath(name).suffix.lower(), "")


class ImageFiles:
    """Finds the image files that a table names, below a folder and nowhere else.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self._fence = Fence(root, remedy="say --root DIR, the folder that all image paths lie in")
        self._found: dict[Sequence[str], Path | str] = {}
        self._ids: dict[Path, str] = {}
        self._below: list[tuple[str, str]] | None = None
        """(path backwards, with and without its ending; path) of the pictures below the folder, sorted."""

    def relative(self, name: str) -> str:
        """Return a path as one relative to the folder, between slashes, without the number of a caption (`#0`)."""
        if "#" in name and (numbered := PICTURE.fullmatch(name)):
            name = name[: len(name) - len(numbered[4] or "")]
        if "\\" in name and not _is_file(self._fence.root / name):
            name = name.replace("\\", "/")
        if name.startswith("/") and Path(name).is_relative_to(self._fence.root.absolute()):
            return Path(name).relative_to(self._fence.root.absolute()).as_posix()
        return name.removeprefix("./")

    def find(self, names: Sequence[str], where: str) -> Path | str:
        """Return the first file that is there of some names, or why it is not known which.

        A file that does not lie where a name says is looked for below the folder: by the end of its path, with the
        ending of an image added, then without regard to case and form of letters. Where several fit, `images/` is
        preferred.

        Raises:
            UserError: A name leaves the folder.
        """
        if names not in self._found:
            paths = [self._fence.path(name, where) for name in names]
            there = next((path for path in paths if _is_file(path)), None)
            self._found[names] = there or self._elsewhere(names)
        return self._found[names]

    def image_id(self, path: Path, name: str) -> str:
        """Return the id of a found file: its first name in the table, its letters composed."""
        return self._ids.setdefault(path, name if name.isascii() else unicodedata.normalize("NFC", name))

    def named(self) -> set[Path]:
        """Return the files that were looked for, those that are not there too."""
        return {found for found in self._found.values() if isinstance(found, Path)}

    def _elsewhere(self, names: Sequence[str]) -> Path | str:
        if self._below is None:
            below = islice(filter(is_image, files_below(self._fence.root)), MAX_FILES)
            self._below = sorted((_backwards(each), name) for name in below for each in (name, _without_ending(name)))
        for name in names:
            number = name.removesuffix(".0")  # a number that a column with gaps made a fraction
            tail = _backwards(number if number.isdecimal() else name)
            fits = self._beginning(self._below, tail)
            exact = [inner for inner in fits if f"/{inner}".endswith(f"/{name}")]
            under_images = self._beginning(self._below, f"{tail}images/")
            usual = [inner for inner in under_images if inner.count("/") == tail.count("/")]
            one = next((some[0] for some in (fits, usual, exact) if len(some) == 1), None)
            if one is None and fits:
                return f"several files have this name: {', '.join(fits[:3])}"
            if one is not None:
                return self._fence.problem(one) or self._fence.root / one
        return self._fence.root / names[0]

    @staticmethod
    def _beginning(below: Sequence[tuple[str, str]], start: str) -> list[str]:
        """Return the first paths that, backwards, begin like this."""
        place = bisect_left(below, (start, ""))
        return list(dict.fromkeys(inner for key, inner in below[place : place + 100] if key.startswith(start)))


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - says no to a name that no file can have, where `Path.is_file` raises


def _backwards(name: str) -> str:
    """Return a path with its folders in the other order, in one form and case of its letters."""
    folded = name.casefold() if name.isascii() else unicodedata.normalize("NFC", name).casefold()
    return "/".join(reversed(folded.split("/"))) + "/"


def _without_ending(name: str) -> str:
    return name[: len(name) - len(PurePath(name).suffix)]


def unnamed(folder: Path, files: Iterable[ImageFiles]) -> Iterator[Skipped]:
    """List the pictures of a folder that no row of its tables names, and those that are of no kind that is read."""
    named = set().union(*(each.named() for each in files))
    for name in files_below(folder):
        if folder / name not in named and (is_image(name) or unread(name)):
            yield Skipped(name, unread(name) or "no row of the table names it")
