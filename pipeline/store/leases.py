"""Claims: a shard is computed by one worker at a time, and what a dead worker held is taken over.

A claim is a lock and a lease. The lock is the kernel's (flock on `.00007.lock`): among the processes of one machine it
says at once who is there and who died. Not every file system of a cluster carries it to other machines, and no object
store does, so a claim is a lease as well: a small file `.00007.0.lease` that says who holds it and that its holder
writes again every quarter of `seconds`. Nobody compares clocks: a lease whose bytes have not changed for `seconds` of
the observer's own clock is dead. One of this machine's kernel is dead as soon as its lock can be had.

Both are taken by creating a file that must not be there, which any file system does for one alone (and an object store
by a conditional put). A lease is taken over by creating the file of the next generation, `.00007.1.lease`; who creates
it while the dead one is still as it was, wins, and removes it. Two thieves cannot both win.

Two holders at once do no harm: what they compute is the same and a commit is atomic. A lease only saves work.
`lost` says that others took a stalled holder for dead; it then had better leave the shard to them.
"""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Protocol

from pipeline.remote.heartbeat import LEASE_SECONDS, Heartbeat
from pipeline.store.holder import Holder, this_process
from pipeline.store.layout import lease_name, lock_name
from pipeline.store.lease_files import LeaseRecord, lease_files, read_lease
from pipeline.store.locks import lock


class Lease(Protocol):
    """Something held."""

    @property
    def lost(self) -> bool:
        """Say whether somebody else has taken it over."""

    def release(self) -> None:
        """Let it go; nothing happens where it is lost."""


class Leases(Protocol):
    """Hands out what one worker at a time should hold: shards by their index, the whole store as "store"."""

    def take(self, what: int | str) -> Lease | None:
        """Take something that nobody holds, or that a dead holder left; None if it is held. Does not wait."""


class FileLeases:
    """Leases in a store's folder; one for each writer, which may use it from several threads.

    Args:
        root: The store.
        seconds: A holder that does not renew for so long is dead; the longer of the holder's and the observer's counts.
        holder: Who takes them; this process if unsaid.
        kernel: Take the kernel's locks too. False where they reach nobody: then the leases alone decide.
    """

    def __init__(
        self, root: Path, seconds: float = LEASE_SECONDS, *, holder: Holder | None = None, kernel: bool = True
    ) -> None:
        self.root, self.seconds, self.kernel = root, seconds, kernel
        self.holder = holder or this_process()
        self._seen: dict[int | str, tuple[tuple[bytes | None, ...], float]] = {}
        self.heartbeat = Heartbeat(seconds)

    def take(self, what: int | str) -> "FileLease | None":
        """Take a shard, or the store, that nobody holds; None if somebody does.

        Raises:
            OSError: The folder cannot be written.
        """
        with ExitStack() as stack:
            if self.kernel and not stack.enter_context(lock(self.root / lock_name(what), block=False)):
                return None
            since = datetime.now(UTC).isoformat(timespec="seconds")
            record = LeaseRecord(holder=self.holder, since=since, seconds=self.seconds, locked=self.kernel, beat=0)
            path = self._won(what, record.to_bytes())
            if path is None:
                return None
            self._seen.pop(what, None)
            lease = FileLease(self, path, record, stack.pop_all())
        self.heartbeat.hold(lease)
        return lease

    def _won(self, what: int | str, data: bytes) -> Path | None:
        """Create the file of the next generation, and withdraw it where somebody came in between.

        Files may lie side by side: a slow one that will withdraw, and a living holder's with a lower number.
        """
        files = lease_files(self.root, what)
        left = [read_lease(path) for _, path in files]
        if files and not self._all_dead(what, left):
            return None
        generation = files[-1][0] + 1 if files else 0
        path = self.root / lease_name(what, generation)
        if not _created(path, data):
            return None
        now = lease_files(self.root, what)
        if now != [*files, (generation, path)] or [read_lease(each) for _, each in files] != left:
            path.unlink(missing_ok=True)
            return None
        for _, each in files:
            each.unlink(missing_ok=True)
        return path

    def _all_dead(self, what: int | str, left: Sequence[bytes | None]) -> bool:
        records = [LeaseRecord.from_bytes(each or b"") for each in left]
        if all(record and record.locked and self._is_ours(record) for record in records):
            return True  # their lock is ours now
        seen, first = self._seen.get(what, (None, 0.0))
        now = time.monotonic()
        if None in left or seen != tuple(left):
            self._seen[what] = (tuple(left), now)
            return False
        return now - first >= max([self.seconds, *(record.seconds for record in records if record)])

    def _is_ours(self, record: LeaseRecord) -> bool:
        return self.kernel and record.holder.kernel == self.holder.kernel


def _created(path: Path, data: bytes) -> bool:
    """Create a file that must not be there; the file system lets one alone do it."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, data)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return True


class FileLease:
    """A lease that is held; made by `FileLeases.take`."""

    def __init__(self, leases: FileLeases, path: Path, record: LeaseRecord, kernel: ExitStack) -> None:
        self._leases, self._path, self._record, self._kernel = leases, path, record, kernel
        self._lost = False
        self._guard = Lock()

    @property
    def lost(self) -> bool:
        """Say whether somebody else has taken it over; looks at the file."""
        with self._guard, suppress(OSError):
            self._look(read_lease(self._path))
        return self._lost

    def renew(self) -> None:
        """Show that the holder lives; where the disk fails now, the next time may do."""
        with self._guard, suppress(OSError):
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                self._lost = True
                return
            try:
                self._look(os.read(descriptor, 4096))
                if not self._lost:
                    self._record = replace(self._record, beat=self._record.beat + 1)
                    os.pwrite(descriptor, self._record.to_bytes(), 0)
            finally:
                os.close(descriptor)

    def release(self) -> None:
        """Let it go."""
        self._leases.heartbeat.drop(self)
        if not self.lost:
            with suppress(OSError):  # what cannot be removed now is dead soon
                self._path.unlink(missing_ok=True)
        self._lost = True
        self._kernel.close()

    def _look(self, left: bytes | None) -> None:
        record = LeaseRecord.from_bytes(left or b"")
        self._lost = self._lost or record is None or record.holder != self._record.holder
