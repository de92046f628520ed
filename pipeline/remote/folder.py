"""Whole small folders (runs, reports) and single files (pictures) of a bound folder; nothing for any other path.

What a folder's own files are is said by patterns: other objects below the URL are neither brought nor removed.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline.remote.binding import bound
from pipeline.remote.mirror import Mirror, mirror_of, together


def pull_folder(folder: Path, own: Sequence[str]) -> None:
    """Make a bound folder's own files what the objects are.

    Args:
        folder: The folder.
        own: Patterns of its own files' names, such as `seed-*/*`.
    """
    mirror = mirror_of(folder)
    if mirror is not None:
        mirror.pull(_own([*mirror.look(), *_files(mirror)], own))


def push_folder(folder: Path, own: Sequence[str], last: str) -> None:
    """Put a bound folder's own files there and remove those that are not here any more.

    The file `last` goes first and comes last of all: where that one stands, everything stands.
    """
    mirror = mirror_of(folder)
    if mirror is None:
        return
    here = _own(_files(mirror), own)
    gone = [name for name in _own(mirror.look(), own) if name not in here]
    changed = [name for name in here if mirror.changed(name)]
    if changed or gone:
        mirror.objects.remove([last])
    together(mirror.upload, [name for name in changed if name != last])
    mirror.remove(gone)
    if last in here and (changed or gone):
        mirror.upload(last)


def bring(path: Path) -> Path:
    """Bring a file of a bound folder if there is one at the URL, and return the path: then look whether it is there."""
    place = bound(path)
    if place is not None and place.inner:
        mirror = mirror_of(place.base)
        if mirror is not None:
            mirror.bring(place.inner)
    return path


def pull_files(folder: Path, names: Iterable[str]) -> None:
    """Make some files of a bound folder what the objects are, and learn what else there is."""
    mirror = mirror_of(folder)
    if mirror is not None:
        mirror.look()
        mirror.pull(names)


def remove_file(path: Path) -> None:
    """Remove a file, and its object if it is in a bound folder."""
    mirror = mirror_of(path.parent)
    if mirror is not None:
        mirror.look(path.name)
        mirror.remove([path.name])
    path.unlink(missing_ok=True)


def _own(names: Iterable[str], own: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in own)]


def _files(mirror: Mirror) -> list[str]:
    found = (path for path in mirror.folder.rglob("*") if path.is_file())
    names = (path.relative_to(mirror.folder).as_posix() for path in found)
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))
