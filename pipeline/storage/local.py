"""Where a path or a text becomes a storage (`open_storage`); and a folder of this machine, or of a shared file system.

A file gets its bytes whole or not at all: temp file beside it, fsync, rename, fsync the folder (`pipeline.files`). The
temp file is locked (flock) while its writer lives; `sweep` removes those whose writer died.
"""

import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline import files
from pipeline.errors import DamagedStoreError, PipelineError, UserError
from pipeline.files import is_endless, is_locked, lock, one_line, open_locked, same_file
from pipeline.runtime import free_disk
from pipeline.storage.contract import Content, Place, Storage, Stored
from pipeline.storage.leases import STORE, Thing, is_lock, leased_elsewhere, sweep_leases
from pipeline.words import size

_TEMP = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
_TEMP_OF_SHARD = re.compile(r"\.+(\d{5,})[-.]")


class LocalStorage(Storage):
    """A folder.

    Args:
        folder: Its path.
    """

    shares_locks = True

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), folder)

    def __truediv__(self, name: str) -> "LocalStorage":
        """Return the folder inside it."""
        return LocalStorage(self.here / name)

    def __reduce__(self) -> tuple[type["LocalStorage"], tuple[Path]]:
        """Pickle the path."""
        return LocalStorage, (self.here,)

    @property
    def name(self) -> str:
        """Return the folder's name, that of the working folder too."""
        return self.here.resolve().name

    def absent(self) -> str:
        """Return why there is no such folder."""
        return "" if self.here.is_dir() else "a file" if self.here.exists() else "no such folder"

    def list(self, prefix: str = "", *, deep: bool = False) -> dict[str, Stored]:
        """Return plain files; links are not followed."""
        try:
            found = {name: _stored(path) for name, path in _files(self.here, prefix, deep)}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return {name: stored for name, stored in sorted(found.items()) if stored is not None}

    def stat(self, name: str) -> Stored | None:
        """Return a file's size and token."""
        return _stored(self.here / name)

    def age(self, name: str) -> float:
        """Return the age of the file; 0 where it has gone."""
        try:
            return max(0.0, time.time() - (self.here / name).stat().st_mtime)
        except FileNotFoundError:
            return 0.0

    def file(self, name: str, content: Content | None = None) -> Path:
        """Return the file itself."""
        path = self.here / name
        if content is None and not path.is_file():
            raise FileNotFoundError(str(path))
        if is_endless(path):
            raise DamagedStoreError(name, "a regular file", "a pipe or a device", str(self))
        return path

    def fetch(self, wanted: Mapping[str, Content | None] | Iterable[str], *, again: bool = False) -> None:
        """Everything is here."""

    def make(self) -> None:
        """Make the folder and those above it."""
        self.here.mkdir(parents=True, exist_ok=True)

    def put(self, name: str, data: bytes) -> None:
        """Write a file."""
        files.write_atomically(self.here / name, data, temp=temp_file)

    def put_new(self, name: str, data: bytes) -> bool:
        """Link a written file to its name, which the file system lets one alone do."""
        target = self.here / name
        with temp_file(target) as temp:
            files.write_bytes(temp, data)
            if _lasts(name):
                files.sync_file(temp)
            if not link_new(temp, target):
                with suppress(FileNotFoundError):  # deleted since
                    return target.read_bytes() == data
                return False
            if _lasts(name):
                files.sync_folder(target.parent)
        return True

    def put_if(self, name: str, data: bytes, token: str) -> bool:
        """Rename over the file while its own lock is held, which excludes others that do the same."""
        target = self.here / name
        try:
            descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not same_file(descriptor, target) or _token(os.fstat(descriptor)) != token:
                return False
            self.put(name, data)
        finally:
            os.close(descriptor)
        return True

    @contextmanager
    def temporary(self, name: str) -> Iterator[Path]:
        """Create a locked temp file beside the name."""
        with temp_file(self.here / name) as path:
            yield path

    def publish(self, temp: Path, name: str, content: Content) -> None:
        """Give the temp file its name."""
        target = self.here / name
        files.publish(temp, target)
        files.sync_folder(target.parent)

    def delete(self, names: Iterable[str]) -> None:
        """Remove files, and wait until their names are gone from the disk."""
        for name in names:
            path = self.here / name
            if os.path.lexists(path):
                path.unlink(missing_ok=True)
                if _lasts(name):
                    files.sync_folder(path.parent)

    def pull(self, own: Sequence[str]) -> Path:
        """Return the folder itself."""
        return self.here

    def push(self, own: Sequence[str], last: str) -> None:
        """What is written into the folder is stored."""


def _files(folder: Path, prefix: str, deep: bool) -> Iterator[tuple[str, Path]]:
    """Yield (name, path) of plain files; only folders that can hold such names are read."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if deep and (prefix.startswith(f"{entry.name}/") or entry.name.startswith(prefix)):
                    inner = _files(
                        Path(entry.path), prefix.removeprefix(f"{entry.name}/") if "/" in prefix else "", True
                    )
                    yield from ((f"{entry.name}/{name}", path) for name, path in inner)
            elif entry.name.startswith(prefix) and entry.is_file(follow_symlinks=False):
                yield entry.name, Path(entry.path)


def _lasts(name: str) -> bool:
    """Say whether a file is to survive a crash of the machine; a lease, which has a hidden name, need not."""
    return not name.startswith(".")


def _stored(path: Path) -> Stored | None:
    try:
        about = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Stored(about.st_size, _token(about))


def _token(about: os.stat_result) -> str:
    return f"{about.st_ino}-{about.st_mtime_ns}-{about.st_size}"


def link_new(temp: Path, target: Path) -> bool:
    """Give a temp file a name that nothing has; False if something has it."""
    try:
        os.link(temp, target)
    except FileExistsError:
        return False
    except OSError:  # a file system without links: look, then write
        if target.exists():
            return False
        files.publish(temp, target)
    temp.unlink(missing_ok=True)
    return True


def is_temp(name: str) -> bool:
    """Say whether a name is a temp file's."""
    return _TEMP.fullmatch(name) is not None


@contextmanager
def temp_file(target: Path) -> Iterator[Path]:
    """Create a locked, empty temp file beside `target`; what is left of it at the end is removed."""
    path = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    descriptor = open_locked(path, block=True)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def writing(folder: Storage | Path, name: str) -> Iterator[None]:
    """Turn an OSError into one sentence that says what, where and how much space is free.

    Raises:
        UserError: In its place, where the folder is a file or may not be written.
        PipelineError: In its place, for any other failure of the disk.
    """
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise UserError(
            expected=f"a folder to write {name} into",
            found=os.strerror(error.errno) if error.errno else str(error),
            where=str(folder),
            remedy="choose another folder, or allow writing there",
        ) from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else one_line(error)
        raise PipelineError(
            expected=f"to write {name}",
            found=reason,
            where=str(folder),
            remedy=f"{_free(folder)}; make room or allow writing there and run again: what is committed stays",
        ) from error


def _free(folder: Storage | Path) -> str:
    try:
        return f"{size(free_disk(folder.here if isinstance(folder, Storage) else folder))} are free"
    except OSError:
        return "the free space is unknown"


# ---- what dead writers left ------------------------------------------------------------------------------------------


def stale_temp_files(root: Storage) -> list[Path]:
    """Return the temp files of dead writers; what another machine holds a lease of may be alive there."""
    temps = (path for path in root.here.iterdir() if is_temp(path.name))
    loose = sorted(path for path in temps if _is_linked(path) or not is_locked(path))
    elsewhere = leased_elsewhere(root) if loose else set()
    return [path for path in loose if _temp_thing(path.name) not in elsewhere]


def sweep(root: Storage) -> None:
    """Remove the temp, lease and lock files of dead writers on this machine."""
    for path in stale_temp_files(root):
        remove_unlocked(path)
    if root.shares_locks:
        sweep_leases(root)
    for path in [path for path in root.here.iterdir() if is_lock(path.name)]:
        remove_unlocked(path)


def remove_unlocked(path: Path) -> None:
    """Remove a file unless a live process has locked it, be it since somebody looked."""
    if is_temp(path.name) and _is_linked(path):
        path.unlink(missing_ok=True)
        return
    with lock(path, block=False):
        pass  # a lock takes its file with it


def _temp_thing(name: str) -> Thing:
    match = _TEMP_OF_SHARD.match(name)
    return int(match[1]) if match else STORE


def _is_linked(path: Path) -> bool:
    """Say whether a file has its real name too: its writer died between naming it and forgetting the temp file's."""
    try:
        return path.stat().st_nlink > 1
    except FileNotFoundError:
        return False


# ---- a path or a text becomes a storage ------------------------------------------------------------------------------

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_LOCAL = ("file", "local")
_RECORDED = ("s3", "s3a", "gs", "gcs", "memory")


def open_storage(place: Place) -> Storage:
    """Return the storage at a folder or URL, and one as it is; nothing is asked of the disk or the network.

    `file:///folder` is that folder.

    Raises:
        UserError: It is no URL of a folder, or it carries a password.
    """
    if isinstance(place, Storage):
        return place
    if isinstance(place, Path) or not is_url(place):
        return LocalStorage(Path(place))
    url = _checked(place)
    protocol, _, rest = url.partition("://")
    if protocol in _LOCAL:
        return LocalStorage(Path(rest))
    from pipeline.storage.objects import open_objects

    return open_objects(url)


def open_recorded(url: str) -> Storage | None:
    """Return the storage at a URL that a record names, such as the data set of a store; None for no object store.

    A record may come from anybody: it is not to make this machine ask whatever server it names.
    """
    return open_storage(url) if url.partition("://")[0] in _RECORDED else None


def is_url(text: str) -> bool:
    """Say whether a text is meant as a URL and not as a path."""
    return "://" in text


def _checked(url: str) -> str:
    protocol, _, rest = url.partition("://")
    clean = f"{protocol}://{rest.rstrip('/')}"
    host = rest.partition("/")[0]
    if ":" in host.rpartition("@")[0]:
        remedy = "give the password by the environment or a profile: an address is written into records"
        raise UserError(expected="a URL without a password", found="one", where=f"{protocol}://", remedy=remedy)
    parts = rest.rstrip("/").split("/")
    wrong = not _SCHEME.fullmatch(protocol) or (not host and protocol not in (*_LOCAL, "memory"))
    if wrong or "::" in url or "\0" in url or any(part in (".", "..") for part in parts) or "" in parts[1:]:
        raise UserError(
            expected="the URL of a folder, such as s3://bucket/features/flickr8k/vit", found=repr(url), where="URL"
        )
    return clean
