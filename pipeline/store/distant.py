"""A store at a URL: which of its files are brought when, and in which order they go there.

Tables and records are small and brought whole; a shard file is brought when a layer in it is first read, and checked
against the sha256 of its record. Going there: shard file, then its record; side tables, and the manifest last. A
process that dies in between leaves nothing that counts. For a folder that is not at a URL all of this does nothing.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from pipeline.errors import PipelineError, UserError
from pipeline.remote.heartbeat import LEASE_SECONDS
from pipeline.remote.lease import ObjectLeases, is_lease, lease_object
from pipeline.remote.mirror import mirror_of, together
from pipeline.store import atomic
from pipeline.store.holder import Holder
from pipeline.store.layout import CLASSES, HEADER, MANIFEST, REJECTED, SAMPLES, is_own, is_record
from pipeline.store.leases import FileLeases, Lease, Leases

T = TypeVar("T")

_TABLES = (MANIFEST, HEADER, SAMPLES, REJECTED)
_ROUNDS = 5


class OvertakenError(PipelineError):
    """Another machine wrote the manifest while this one was about to: look again and decide anew."""


def pull_tables(root: Path) -> None:
    """Bring what a store says about itself, and what the store of class prompts inside it says."""
    mirror = mirror_of(root)
    if mirror is not None:
        mirror.look()
        mirror.pull([*_TABLES, *(f"{CLASSES}/{name}" for name in _TABLES)])


def pull_records(root: Path, index: int | None = None) -> None:
    """Bring the commit records of a store, or of one shard of it."""
    mirror = mirror_of(root)
    if mirror is not None:
        prefix = "" if index is None else f"{index:05d}-"
        there = [name for name in mirror.look(prefix) if is_record(name) and name.startswith(prefix)]
        here = [path.name for path in mirror.folder.glob(f"{prefix}*.json") if is_record(path.name)]
        mirror.pull([*there, *here])


def size_of(path: Path) -> int | None:
    """Return the size of a store's file: of its object as last seen where the store is at a URL; None: no such file."""
    mirror = mirror_of(path.parent)
    if mirror is not None:
        return mirror.size(path.name)
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def sizes_of(root: Path, names: Iterable[Path]) -> dict[str, int]:
    """Return the sizes of a store's files: of these where it is a folder, of its objects where it is at a URL."""
    mirror = mirror_of(root)
    if mirror is None:
        return {path.name: path.stat().st_size for path in names}
    return {name: each.size for name, each in mirror.seen().items() if "/" not in name}


def bring_shards(root: Path, files: Iterable[tuple[str, str, int]], *, again: bool = False) -> None:
    """Bring shard files that are not here yet.

    Args:
        root: The store.
        files: (name, sha256, bytes) of each.
        again: Also those that are here, to read what is at the URL now.

    Raises:
        DamagedStoreError: An object is not what was committed, or it is gone.
    """
    mirror = mirror_of(root)
    if mirror is None:
        return
    wanted = {name: (sha256, size) for name, sha256, size in files}
    for name in wanted if again else ():
        mirror.refetch(name)
    together(lambda name: mirror.bring_checked(name, *wanted[name]), list(wanted))


def push_shard(path: Path, sha256: str) -> None:
    """Put a committed shard file there and see that it has come whole.

    Raises:
        OSError: It has not.
    """
    mirror = mirror_of(path.parent)
    if mirror is not None:
        mirror.upload(path.name, sha256)


def push_table(path: Path) -> None:
    """Put a table there that was written here, for people to look at."""
    mirror = mirror_of(path.parent)
    if mirror is not None:
        mirror.upload(path.name)


def publish(path: Path, data: bytes) -> None:
    """Write a small file of a store: its object first, where there is one."""
    mirror = mirror_of(path.parent)
    if mirror is None:
        atomic.put(path, data)
    else:
        mirror.put(path.name, data)


def publish_first(path: Path, data: bytes) -> None:
    """Write a file that the first of many writers decides: whoever comes later gets what the first one wrote."""
    mirror = mirror_of(path.parent)
    if mirror is None:
        atomic.put(path, data)
    else:
        mirror.put_first(path.name, data)


def publish_over(path: Path, data: bytes) -> None:
    """Write a file in the place of the one that was last brought.

    Raises:
        OvertakenError: Another machine has written it since.
    """
    mirror = mirror_of(path.parent)
    if mirror is None:
        atomic.put(path, data)
    elif not mirror.put_over(path.name, data):
        raise OvertakenError(
            expected=f"{path.name} as it was last read",
            found="another one, time and again",
            where=mirror.objects.url,
            remedy="run again when no other machine finishes this store",
        )


def agreed(root: Path, action: Callable[[], T]) -> T:
    """Do something that ends by writing over the manifest, again where another machine was faster."""
    for _ in range(_ROUNDS if mirror_of(root) is not None else 0):
        pull_tables(root)
        try:
            return action()
        except OvertakenError:
            continue
    return action()


def leases_of(root: Path, seconds: float = LEASE_SECONDS, holder: Holder | None = None) -> Leases:
    """Return what hands out the shards of a store, to workers of any machine where it is at a URL.

    Args:
        root: The store.
        seconds: A holder that does not renew for so long is dead.
        holder: Who takes them; this process if unsaid.
    """
    here = FileLeases(root, seconds, holder=holder)
    return here if mirror_of(root) is None else _EverywhereLeases(here, ObjectLeases(root, seconds))


class _EverywhereLeases:
    """Leases among the processes that share this cache, then among all machines.

    The whole store is taken here alone: what its last step writes, it writes on conditions (see `agreed`).
    """

    def __init__(self, here: FileLeases, there: ObjectLeases) -> None:
        self._here, self._there = here, there

    def take(self, what: int | str) -> Lease | None:
        here = self._here.take(what)
        if here is None or what == "store":
            return here
        try:
            there = self._there.take(what)
        except BaseException:
            here.release()
            raise
        if there is None:
            here.release()
            return None
        return _Both(here, there)


class _Both:
    """A lease that is held here and there."""

    def __init__(self, here: Lease, there: Lease) -> None:
        self._here, self._there = here, there

    @property
    def lost(self) -> bool:
        return self._here.lost or self._there.lost

    def release(self) -> None:
        try:
            self._there.release()
        finally:
            self._here.release()


def leased_there(root: Path, index: int) -> bool:
    """Say whether a worker of any machine held a shard of a store at a URL at the last look."""
    mirror = mirror_of(root)
    return mirror is not None and lease_object(index) in mirror.seen()


def withdraw_all(root: Path, order: Callable[[Path], int]) -> None:
    """Remove a store's objects, and nothing but the store's, in this order.

    Raises:
        UserError: A worker of some machine holds a shard.
    """
    mirror = mirror_of(root)
    if mirror is None:
        return
    there = [name for name in mirror.look() if "/" not in name]
    held = [name for name in there if is_lease(name)]
    if held:
        remedy = "wait for the other run; where it died, remove that object"
        where = mirror.objects.url
        raise UserError(expected="a store that nobody writes", found=f"the lease {held[0]}", where=where, remedy=remedy)
    mirror.remove(sorted((name for name in there if is_own(name)), key=lambda name: order(Path(name))))


def withdraw(path: Path) -> None:
    """Remove the object of a file that was there at the last look."""
    mirror = mirror_of(path.parent)
    if mirror is not None:
        mirror.remove([path.name])
