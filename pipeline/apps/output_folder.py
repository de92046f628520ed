"""Folders that this package makes as a whole: put in place by rename, and never over anything that is not their own.

A folder's record (`model.json`, `index.json`) lists its other files. An older folder of the same kind is replaced as
long as nobody has put a file of their own into it.
"""

import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, naming
from pipeline.files import sync_file, sync_folder


@dataclass(frozen=True)
class OutputFolder:
    """A kind of folder."""

    record: str
    """Name of the file that lists the others under `files`."""
    read: Callable[[Path], Mapping[str, Any]]
    """Reads that file; a `UserError` means that it is another one's."""
    what: str
    """What the folder is, with its article, such as "an export"."""
    made_by: str
    """The command that makes it."""
    option: str
    """The command's option that names it."""

    def check(self, to: Path) -> None:
        """Refuse a target that holds something else than a folder of this kind.

        Raises:
            UserError: It is a file or a link, or a folder with other files in it.
        """
        if found := self._foreign(to):
            raise UserError(
                expected=f"a new folder, or one that `{self.made_by}` made",
                found=found,
                where=f"{self.option} {to}",
                remedy="choose another folder",
            )

    def _foreign(self, to: Path) -> str:
        """Return what a target holds that is not this command's own; empty where it may be written."""
        if to.resolve() == Path.cwd():
            return "the working folder"
        if to.is_symlink() or (to.exists() and not to.is_dir()):
            return "a file or a link"
        inside = sorted(each.name for each in to.iterdir()) if to.exists() else []
        if not inside:
            return ""
        if not (to / self.record).is_file():
            return f"a folder without {self.record} that holds {inside[0]}"
        try:
            listed = self.read(to / self.record).get("files")
        except UserError:
            return f"another {self.record}"
        known = {self.record, *(listed if isinstance(listed, Mapping) else ())}
        other = [name for name in files_of(to) if name not in known]
        return f"{self.what} with {other[0]} added to it" if other else ""

    @contextmanager
    def new(self, to: Path, temporary: Path | None = None) -> Iterator[Path]:
        """Give a hidden folder beside the target to write into; without an exception it becomes the target.

        Args:
            to: The target.
            temporary: The folder to write into in its place, on the same file system; emptied first.

        Raises:
            UserError: The target holds something else.
        """
        self.check(to)
        with naming(to):
            yield from self._new(to.resolve(), temporary)

    def _new(self, to: Path, temporary: Path | None) -> Iterator[Path]:
        to.parent.mkdir(parents=True, exist_ok=True)
        if temporary is None:
            temporary = to.with_name(f".{to.name}.{secrets.token_hex(6)}.tmp")
        elif temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir()
        try:
            yield temporary
            for name in files_of(temporary):
                sync_file(temporary / name)
            _take_place(temporary, to)
            sync_folder(to.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def files_of(folder: Path) -> list[str]:
    """Return the files below a folder, relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def _take_place(new: Path, to: Path) -> None:
    if not to.exists():
        new.rename(to)
        return
    old = to.with_name(f".{to.name}.{secrets.token_hex(6)}.old")
    to.rename(old)
    try:
        new.rename(to)
    except OSError:
        old.rename(to)
        raise
    shutil.rmtree(old)
