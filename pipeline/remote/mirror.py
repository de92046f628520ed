"""A folder at a URL and its copy in the cache: what is there, what of it is here, bringing and taking.

    mirror = mirror_of(root)              # None for a folder that is not bound
    mirror.look(); mirror.pull(["manifest.json", "samples.parquet"])

The cache cannot lie: a file counts only if its token is that of the object as it was listed in this process, or if its
sha256 is the one that was asked for. With FEWPAIRS_OFFLINE=1 nothing is asked and what is in the cache counts.
"""

import os
import secrets
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from pipeline.errors import DamagedStoreError, UserError
from pipeline.files import file_sha256
from pipeline.remote.binding import address, bound
from pipeline.remote.journal import Journal
from pipeline.remote.objects import Objects, Stored, is_inside

THREADS = 16
"""Requests at a time: they wait, they do not compute."""


class Mirror:
    """A bound folder, or a folder inside one. Use `mirror_of`. Several threads may use it.

    Args:
        base: The bound folder.
        inner: The folder inside it, "" for itself.
    """

    def __init__(self, base: Path, inner: str) -> None:
        self.folder = base / inner if inner else base
        self.objects = Objects(address(self.folder))
        self.listing: dict[str, Stored] | None = None
        self._prefix = f"{inner}/" if inner else ""
        self._journal = _journal(base)
        self._incoming = base.with_name(f"{base.name}.incoming")
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def look(self, prefix: str = "") -> dict[str, Stored]:
        """List what is there now (below a prefix), remember it, and return all that is known."""
        prefix = "" if self.listing is None else prefix
        kept = {name: each for name, each in (self.listing or {}).items() if not name.startswith(prefix)}
        self.listing = kept | (self._here(prefix) if is_offline() else self.objects.list(prefix))
        return self.listing

    def seen(self) -> dict[str, Stored]:
        """Return what the last look found; looks if there was none."""
        return self.look() if self.listing is None else self.listing

    def size(self, name: str) -> int | None:
        """Return an object's size as it was last seen, None where there is none."""
        found = self.seen().get(name)
        return found.size if found else None

    def pull(self, names: Iterable[str]) -> None:
        """Make local files what the objects are that were last seen; those that are not there go here too."""
        seen = self.seen()
        for name in (wanted := list(dict.fromkeys(names))):
            if name not in seen:
                self._forget(name)
        stale = [name for name in wanted if name in seen and not self._is_fresh(name, seen[name])]
        together(self._bring, stale)

    def bring(self, name: str) -> None:
        """Bring one object if the file is not here or another; nothing where there is none (look at the file)."""
        if not is_inside(name):
            return
        found = self.objects.stat(name) if self.listing is None and not is_offline() else self.seen().get(name)
        if found is not None and not self._is_fresh(name, found):
            with self._locks[name]:
                if not self._is_fresh(name, found):
                    self._download(name, found.token)

    def bring_checked(self, name: str, sha256: str, size: int) -> None:
        """Bring an object whose sha256 is known, unless the file here was brought or made with it.

        Raises:
            DamagedStoreError: The object is not there or has other bytes.
        """
        with self._locks[name]:
            if self._is_fresh(name, Stored(size, f"sha256:{sha256}")):
                return
            if is_offline():
                raise _not_here(self.folder / name)
            try:
                self._download(name, f"sha256:{sha256}", sha256)
            except FileNotFoundError as error:
                raise DamagedStoreError(name, f"{size} bytes", "no object", self.objects.url) from error

    def refetch(self, name: str) -> None:
        """Forget what is here of an object, so that it is brought again."""
        self._journal.note(self._prefix + name, "", 0)

    def put(self, name: str, data: bytes) -> None:
        """Write a small object and, after it, the file."""
        require_online(self.folder / name)
        self._keep(name, data, self.objects.write(name, data))

    def put_first(self, name: str, data: bytes) -> bool:
        """Write a small object if there is none, else bring the one that is there; say whether it is ours."""
        require_online(self.folder / name)
        mine = self.objects.create(name, data)
        self.look(name)
        self.pull([name])
        return mine

    def put_over(self, name: str, data: bytes) -> bool:
        """Write a small object in the place of the one last seen (or of none); False if there is another by now."""
        require_online(self.folder / name)
        old = self.seen().get(name)
        done = self.objects.create(name, data) if old is None else self.objects.replace(name, data, old.token)
        if done:
            self._keep(name, data, "")
            self.look(name)
        return done

    def upload(self, name: str, sha256: str = "") -> None:
        """Put a local file there and see that all of it has come.

        Raises:
            OSError: It has not.
        """
        path = self.folder / name
        require_online(path)
        size = path.stat().st_size
        there = self.objects.upload(name, path)
        if there is None or there.size != size:
            raise OSError(f"{size} bytes were sent and {there.size if there else 0} are there")
        self._note(name, f"sha256:{sha256}" if sha256 else there.token)
        self.seen()[name] = there

    def changed(self, name: str) -> bool:
        """Say whether a file here is not what the object was at the last look."""
        found = self.seen().get(name)
        return found is None or not self._is_fresh(name, found)

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects in this order, each with its file."""
        seen = self.seen()
        for name in names:
            require_online(self.folder / name)
            if name in seen:
                self.objects.remove([name])
                del seen[name]
            self._forget(name)

    def _here(self, prefix: str) -> dict[str, Stored]:
        files = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*") if path.is_file()}
        known = {name: self._token(name) for name in files if name.startswith(prefix)}
        return {name: Stored(files[name].stat().st_size, token) for name, token in known.items() if token}

    def _is_fresh(self, name: str, found: Stored) -> bool:
        try:
            about = (self.folder / name).stat()
        except OSError:
            return False
        noted = self._journal.token(self._prefix + name, about.st_mtime_ns)
        return about.st_size == found.size and noted == found.token

    def _token(self, name: str) -> str:
        return self._journal.token(self._prefix + name, (self.folder / name).stat().st_mtime_ns)

    def _note(self, name: str, token: str) -> None:
        self._journal.note(self._prefix + name, token, (self.folder / name).stat().st_mtime_ns)

    def _bring(self, name: str) -> None:
        try:
            self._download(name, self.seen()[name].token)
        except FileNotFoundError:  # removed since the look
            self._forget(name)

    def _download(self, name: str, token: str, sha256: str = "") -> None:
        self._incoming.mkdir(mode=0o700, exist_ok=True)
        temp = self._incoming / secrets.token_hex(8)
        try:
            self.objects.download(name, temp)
            if sha256:
                _require_sha256(name, temp, sha256, self.objects.url)
            self._publish(name, temp, token)
        finally:
            temp.unlink(missing_ok=True)

    def _keep(self, name: str, data: bytes, token: str) -> None:
        self._incoming.mkdir(mode=0o700, exist_ok=True)
        temp = self._incoming / secrets.token_hex(8)
        try:
            temp.write_bytes(data)
            self._publish(name, temp, token)
        finally:
            temp.unlink(missing_ok=True)
        self.seen()[name] = Stored(len(data), token)

    def _publish(self, name: str, temp: Path, token: str) -> None:
        target, changed = self.folder / name, temp.stat().st_mtime_ns
        target.parent.mkdir(parents=True, exist_ok=True)
        temp.replace(target)
        self._journal.note(self._prefix + name, token, changed)

    def _forget(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)


def mirror_of(path: Path) -> Mirror | None:
    """Return the mirror of a folder, None where it is not bound."""
    place = bound(path)
    return None if place is None else _mirror(place.base, place.inner, os.getpid())


def is_offline() -> bool:
    """Say whether the user wants nothing to be asked of the network."""
    return os.environ.get("FEWPAIRS_OFFLINE", "") not in ("", "0")


def require_online(path: Path) -> None:
    """Refuse to write where nothing may be asked of the network.

    Raises:
        UserError: It may not.
    """
    if is_offline():
        expected = "a network to write this to"
        raise UserError(expected=expected, found="FEWPAIRS_OFFLINE", where=address(path), remedy="unset it")


def together(action: Callable[[str], None], names: Sequence[str]) -> None:
    """Do something with each name, several at a time."""
    if len(names) < 2:
        for name in names:
            action(name)
        return
    with ThreadPoolExecutor(min(THREADS, len(names))) as pool:
        for _ in pool.map(action, names):
            pass


def _require_sha256(name: str, path: Path, sha256: str, url: str) -> None:
    found = file_sha256(path)
    if found != sha256:
        raise DamagedStoreError(name, f"sha256 {sha256}", f"sha256 {found}", url)


def _not_here(path: Path) -> UserError:
    return UserError(
        expected=f"{path.name} in the cache",
        found="none, and FEWPAIRS_OFFLINE",
        where=address(path.parent),
        remedy="unset it",
    )


@lru_cache(maxsize=256)
def _mirror(base: Path, inner: str, process: int) -> Mirror:
    """One mirror a process: a fork gets its own."""
    return Mirror(base, inner)


@lru_cache(maxsize=256)
def _journal(base: Path) -> Journal:
    return Journal(base.with_name(f"{base.name}.journal"))
