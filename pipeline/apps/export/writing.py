"""Put an export's folder in place whole or not at all, and never over anything that is not an export.

The files are written into a hidden folder beside the target, which then takes its name. An older export is replaced as
long as nobody has put a file of their own into it.
"""

import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.apps.export.exported import MODEL, read_model, to_bytes
from pipeline.encoders.digest import file_sha256
from pipeline.errors import UserError
from pipeline.store.atomic import sync_file, sync_folder


def check_target(to: Path) -> None:
    """Refuse a target that holds something else than an export.

    Raises:
        UserError: It is a file, or a folder with other files in it.
    """
    if to.is_symlink() or (to.exists() and not to.is_dir()):
        raise _occupied(to, "a file or a link")
    if not to.exists() or not any(to.iterdir()):
        return
    if not (to / MODEL).is_file():
        raise _occupied(to, f"a folder without {MODEL} that holds {min(each.name for each in to.iterdir())}")
    try:
        listed = read_model(to / MODEL).get("files")
    except UserError as error:
        raise _occupied(to, f"another {MODEL}") from error
    known = {MODEL, *(listed if isinstance(listed, dict) else ())}
    other = sorted(name for name in _files(to) if name not in known)
    if other:
        raise _occupied(to, f"an export with {other[0]} added to it")


@contextmanager
def new_folder(to: Path) -> Iterator[Path]:
    """Give a hidden folder to write into; without an exception it becomes `to` at the end.

    Raises:
        UserError: The target holds something else than an export.
    """
    check_target(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = to.with_name(f".{to.name}.{secrets.token_hex(6)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for name in _files(temporary):
            sync_file(temporary / name)
        _take_place(temporary, to)
        sync_folder(to.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_model(folder: Path, model: Mapping[str, Any]) -> None:
    """Write `model.json` last, with the sha256 of every other file in the folder."""
    digests = {name: file_sha256(folder / name) for name in _files(folder)}
    (folder / MODEL).write_bytes(to_bytes({**model, "files": digests}))


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


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def _occupied(to: Path, found: str) -> UserError:
    return UserError(
        expected="a new folder, or one that `pipeline export` made",
        found=found,
        where=f"--to {to}",
        remedy="choose another folder",
    )
