"""What of an object store is on this machine, checked, and where it lies.

A file in the cache counts only if its token is that of the object as it was last listed in this process, or if its
sha256 is the one that was asked for; fsspec's own caches check neither a digest nor what another process has noted.
With FEWPAIRS_OFFLINE=1 nothing is asked of the network and what is in the cache counts.
"""

import hashlib
import json
import os
import secrets
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from pipeline import files
from pipeline.errors import DamagedStoreError, UserError
from pipeline.storage.contract import Content, Stored
from pipeline.storage.requests import Requests

_CACHES = "fewpairs-remote"


def cache_folder(url: str) -> Path:
    """Return the folder that holds what is at a URL, made if need be.

    Raises:
        UserError: The cache is another user's.
    """
    folder = _private(cache_root() / _CACHES) / hashlib.sha256(url.encode()).hexdigest()[:32]
    folder.mkdir(mode=0o700, exist_ok=True)
    note = folder.with_name(f"{folder.name}.json")
    if not note.is_file():
        files.write_atomically(note, (json.dumps({"url": url}) + "\n").encode())
    return folder


def cache_root() -> Path:
    """Return the folder of the cache: FEWPAIRS_CACHE, else `fewpairs` in XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("FEWPAIRS_CACHE")
    if own:
        return Path(own).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "fewpairs"


def _private(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        remedy = "set FEWPAIRS_CACHE to a folder of your own"
        raise UserError(expected="a cache of this user", found="another user's", where=str(folder), remedy=remedy)
    return folder


def is_offline() -> bool:
    """Say whether the user wants nothing to be asked of the network."""
    return os.environ.get("FEWPAIRS_OFFLINE", "") not in ("", "0")


class Cache:
    """What one process knows of a folder in an object store, and what of it is on this machine.

    The journal beside the folder says which object each file is: name → token and the file's time of change when it was
    noted. It is only added to, one write a line, so that several processes share it; a line that was cut short is
    passed over, and what is not noted, or changed since, is brought again.
    """

    def __init__(self, requests: Requests, folder: Path) -> None:
        self.listing: dict[str, Stored] | None = None
        self.whole = False
        self._requests, self._folder = requests, folder
        self._path = folder.with_name(f"{folder.name}.journal")
        self._incoming = folder.with_name(f"{folder.name}.incoming")
        self._notes = dict(_lines(self._path))
        self._journal = threading.Lock()
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def names(self) -> list[str]:
        """Return the names of the files that are here, hidden ones left out."""
        found = (path.relative_to(self._folder) for path in self._folder.rglob("*") if path.is_file())
        return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))

    def stored(self, prefix: str) -> dict[str, Stored]:
        """Return what is known to be here, as a listing of the objects would say it."""
        found = ((name, self._folder / name) for name in self.names() if name.startswith(prefix))
        known = {name: Stored(path.stat().st_size, self._token(name)) for name, path in found}
        return {name: each for name, each in known.items() if each.token}

    def is_fresh(self, name: str, stored: Stored | None) -> bool:
        """Say whether the file here is this object."""
        try:
            size = (self._folder / name).stat().st_size
        except OSError:
            return False
        return stored is not None and size == stored.size and self._token(name) == stored.token

    def bring(self, name: str, stored: Stored | None) -> bool:
        """Make the file what the object is (or is not); False where there is none."""
        if stored is None:
            self.forget(name)
            return False
        with self._locks[name]:
            if not self.is_fresh(name, stored):
                try:
                    self._download(name, stored.token, None)
                except FileNotFoundError:  # removed since it was seen
                    self.forget(name)
                    return False
        return True

    def bring_checked(self, name: str, content: Content) -> None:
        """Make the file what it must be, unless it was brought or made as that.

        Raises:
            DamagedStoreError: The object is not there or has other bytes.
            UserError: It is not here, and nothing may be asked of the network.
        """
        token = f"sha256:{content.sha256}"
        with self._locks[name]:
            if self.is_fresh(name, Stored(content.size, token)):
                return
            where = self._requests.url
            if is_offline():
                found = "none, and FEWPAIRS_OFFLINE"
                raise UserError(expected=f"{name} in the cache", found=found, where=where, remedy="unset it")
            try:
                self._download(name, token, content)
            except FileNotFoundError as error:
                raise DamagedStoreError(name, f"{content.size} bytes", "no object", where) from error

    def keep(self, name: str, data: bytes, token: str) -> None:
        """Keep what was just written."""
        with self.incoming() as temp:
            temp.write_bytes(data)
            self.publish(name, temp, token, Stored(len(data), token))

    def publish(self, name: str, temp: Path, token: str, stored: Stored | None = None) -> None:
        """Keep a file that a token is known for, and remember the object that it has just become."""
        target, changed = self._folder / name, temp.stat().st_mtime_ns
        target.parent.mkdir(parents=True, exist_ok=True)
        temp.replace(target)
        self.note(name, token, changed, stored)

    def note(self, name: str, token: str, changed: int, stored: Stored | None) -> None:
        """Note what a file is that was changed at that time, and remember the object."""
        self._write(name, token, changed)
        if self.listing is not None and stored is not None:
            self.listing[name] = stored

    def doubt(self, name: str) -> None:
        """Let a file be brought again."""
        self._write(name, "", 0)

    def forget(self, name: str) -> None:
        """Remove a file that is no object (any more)."""
        (self._folder / name).unlink(missing_ok=True)
        if self.listing is not None:
            self.listing.pop(name, None)

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """Yield a path for bytes that have not arrived yet; what is left of it at the end goes."""
        self._incoming.mkdir(mode=0o700, exist_ok=True)
        temp = self._incoming / secrets.token_hex(8)
        try:
            yield temp
        finally:
            temp.unlink(missing_ok=True)

    def _download(self, name: str, token: str, content: Content | None) -> None:
        with self.incoming() as temp:
            self._requests.download(name, temp)
            if content is not None and (found := files.file_sha256(temp)) != content.sha256:
                raise DamagedStoreError(name, f"sha256 {content.sha256}", f"sha256 {found}", self._requests.url)
            self.publish(name, temp, token)

    def _token(self, name: str) -> str:
        token, changed = self._notes.get(name, ("", 0))
        try:
            return token if (self._folder / name).stat().st_mtime_ns == changed else ""
        except OSError:
            return ""

    def _write(self, name: str, token: str, changed: int) -> None:
        line = json.dumps([name, token, changed], separators=(",", ":")) + "\n"
        with self._journal:
            if self._notes.get(name, ("", 0)) == (token, changed):
                return
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
            self._notes[name] = (token, changed)


@lru_cache(maxsize=1024)
def cache_of(url: str, folder: Path, process: int) -> Cache:
    """One a process and folder: a fork gets its own."""
    return Cache(Requests(url), folder)


def _lines(path: Path) -> Iterator[tuple[str, tuple[str, int]]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        try:
            name, token, changed = json.loads(line)
        except (ValueError, TypeError):
            continue
        if isinstance(name, str) and isinstance(token, str) and isinstance(changed, int):
            yield name, (token, changed)
