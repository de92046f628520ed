"""A folder in an object store (`s3://`, `gs://`, whatever fsspec opens) as a storage, read through a checked cache.

Hidden names, which leases have, pass the cache by: they change all the time.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.storage.cache import Cache, cache_folder, cache_of, is_offline
from pipeline.storage.contract import Content, Storage, Stored, chosen
from pipeline.storage.requests import Requests, is_inside

THREADS = 16
"""Requests at a time: they wait, they do not compute."""


class ObjectStorage(Storage):
    """A folder in an object store. Use `pipeline.storage.local.open_storage`.

    Args:
        url: Its URL, checked.
        here: Its folder in the cache.
    """

    shares_locks = False

    def __init__(self, url: str, here: Path) -> None:
        super().__init__(url, here)
        self.requests = Requests(url)

    def __truediv__(self, name: str) -> Storage:
        """Return the folder inside it, which has a cache of its own."""
        return open_objects(f"{self.address}/{name}")

    def __reduce__(self) -> tuple[Callable[[str], Storage], tuple[str]]:
        """Pickle the address."""
        return open_objects, (self.address,)  # another process may have another cache

    def absent(self) -> str:
        """Nothing is to be made before an object can be put."""
        return ""

    def list(self, prefix: str = "", *, deep: bool = False) -> dict[str, Stored]:
        """List what is there now, below a prefix, and remember it."""
        known = self._cache
        known.listing = known.listing or {}
        found = known.stored(prefix) if is_offline() else self.requests.list(prefix)
        kept = {name: each for name, each in known.listing.items() if not name.startswith(prefix)}
        known.listing = kept | found
        known.whole = known.whole or not prefix
        return {name: found[name] for name in sorted(found) if deep or "/" not in name}

    def stat(self, name: str) -> Stored | None:
        """Ask for one object."""
        return self._cache.stored(name).get(name) if is_offline() else self.requests.stat(name)

    def file(self, name: str, content: Content | None = None) -> Path:
        """Return the file in the cache."""
        if not self._bring(name, content):
            raise FileNotFoundError(f"{self.address}/{name}")
        return self.here / name

    def get(self, name: str) -> bytes:
        """Return an object's bytes; those of a hidden name as they are now."""
        data = self.requests.read(name) if _is_hidden(name) else self.file(name).read_bytes()
        if data is None:
            raise FileNotFoundError(f"{self.address}/{name}")
        return data

    def fetch(self, wanted: Mapping[str, Content | None] | Iterable[str], *, again: bool = False) -> None:
        """Fetch several objects at a time."""
        contents = wanted if isinstance(wanted, Mapping) else dict.fromkeys(wanted)
        for name in contents if again else ():
            self._cache.doubt(name)
        together(lambda name: self._bring(name, contents[name]), list(contents))

    def make(self) -> None:
        """Refuse where nothing can be written."""
        self._require_online("")

    def put(self, name: str, data: bytes) -> None:
        """Write an object and, after it, the file in the cache."""
        self._require_online(name)
        self._cache.keep(name, data, self.requests.write(name, data))

    def put_new(self, name: str, data: bytes) -> bool:
        """Create an object."""
        self._require_online(name)
        return self._put(name, data, self.requests.create(name, data))

    def put_if(self, name: str, data: bytes, token: str) -> bool:
        """Replace an object."""
        self._require_online(name)
        return self._put(name, data, self.requests.replace(name, data, token))

    @contextmanager
    def temporary(self, name: str) -> Iterator[Path]:
        """Create a file beside the cache."""
        self._require_online(name)
        with self._cache.incoming() as path:
            path.touch()
            yield path

    def publish(self, temp: Path, name: str, content: Content) -> None:
        """Upload the file, see that all of it has come, and keep it in the cache."""
        self._cache.publish(name, temp, f"sha256:{content.sha256}", self._uploaded(temp, name))

    def delete(self, names: Iterable[str]) -> None:
        """Remove objects, each with its file in the cache."""
        for name in names:
            self._require_online(name)
            if _is_hidden(name) or self._seen(name) is not None:
                self.requests.remove([name])
            self._cache.forget(name)

    def pull(self, own: Sequence[str]) -> Path:
        """Make the cache's files what the objects are."""
        there = chosen(self.list(deep=True), own)
        for name in set(chosen(self._cache.names(), own)) - set(there):
            self._cache.forget(name)
        self.fetch(there)
        return self.here

    def push(self, own: Sequence[str], last: str) -> None:
        """Put the cache's files there."""
        here = chosen(self._cache.names(), own)
        gone = [name for name in chosen(self._known(), own) if name not in here]
        changed = [name for name in here if not self._cache.is_fresh(name, self._known().get(name))]
        if not changed and not gone:
            return
        self._require_online(last)
        self.requests.remove([last])
        together(self._upload, [name for name in changed if name != last])
        self.delete(gone)
        if last in here:
            self._upload(last)

    def _bring(self, name: str, content: Content | None) -> bool:
        """Make the file in the cache what the object is; False where there is none."""
        if content is not None:
            self._cache.bring_checked(name, content)
            return True
        return is_inside(name) and self._cache.bring(name, self._seen(name))

    def _put(self, name: str, data: bytes, done: bool) -> bool:
        if not _is_hidden(name):
            if done:
                self._cache.keep(name, data, "")
            self.list(name)
        return done

    def _upload(self, name: str) -> None:
        there = self._uploaded(self.here / name, name)
        self._cache.note(name, there.token, (self.here / name).stat().st_mtime_ns, there)

    def _uploaded(self, path: Path, name: str) -> Stored:
        there, size = self.requests.upload(name, path), path.stat().st_size
        if there is None or there.size != size:
            raise OSError(f"{size} bytes were sent and {there.size if there else 0} are there")
        return there

    def _seen(self, name: str) -> Stored | None:
        known = self._cache
        return known.listing.get(name) if known.whole and known.listing is not None else self.stat(name)

    def _known(self) -> Mapping[str, Stored]:
        if not self._cache.whole:
            self.list()
        return self._cache.listing or {}

    def _require_online(self, name: str) -> None:
        if is_offline():
            where = f"{self.address}/{name}".rstrip("/")
            raise UserError(
                expected="a network to write this to", found="FEWPAIRS_OFFLINE", where=where, remedy="unset it"
            )

    @property
    def _cache(self) -> "Cache":
        return cache_of(self.address, self.here, os.getpid())


def open_objects(url: str) -> ObjectStorage:
    """Return the storage at a checked URL; nothing is asked of the network.

    Raises:
        UserError: The cache is another user's.
    """
    return ObjectStorage(url, cache_folder(url))


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def together(action: Callable[[str], object], names: Sequence[str]) -> None:
    """Do something with each name, several at a time."""
    if len(names) < 2:
        for name in names:
            action(name)
        return
    with ThreadPoolExecutor(min(THREADS, len(names))) as pool:
        for _ in pool.map(action, names):
            pass
