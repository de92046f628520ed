"""Leases: a thing is held by one worker at a time, and what a dead worker held is taken over.

A lease is a small file, `.00007.lease`, that says who holds it and that its holder writes again every quarter of
`seconds`. Nobody compares clocks: one whose bytes have not changed for `seconds` of the observer's own clock is dead,
and is replaced on the condition that it is still the one that was seen. Beside it the holder has the kernel's lock of
the same thing (flock on `.00007.lock`): among the processes of one machine that says at once who is there and who died.
Not every file system of a cluster carries it to other machines, and no object store does, so a lease that says its
holder has such a lock is dead at once only for who shares the kernel.

Two holders at once do no harm: what they compute is the same and a commit is atomic. A lease only saves work.
`lost` says that others took a stalled holder for dead; it then had better leave the thing to them.
"""

import json
import os
import re
import secrets
import socket
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from threading import Event, Lock, Thread

from pipeline.errors import PipelineError
from pipeline.files import is_locked
from pipeline.storage.contract import Storage

LEASE_SECONDS = 60.0
BEATS = 4
"""Renewals in a lease's `seconds`: three may fail before a living holder is taken for dead."""
STORE = "store"
"""The whole storage, among the things that can be held; all others are numbers of shards."""

_CLEANING = 10.0
"""How many times its `seconds` a lease of another machine may be silent before its files are cleaned away.

Longer than for a takeover: who only looks on goes by the file's age, and clocks of two machines differ.
"""
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_LOCK = re.compile(r"\.(?:store|gc|\d{5,})\.lock")
_LEASE = re.compile(r"\.(store|\d{5,})(?:\.\d+)?\.lease")
"""With a number before the ending where an earlier version wrote it."""

Thing = int | str
"""What is held: a shard, by its index, or STORE."""


# ---- who holds, and what a lease says --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Holder:
    """One process, or one part of a process, that writes: a name that no other ever has, and its machine's kernel."""

    host: str
    """The machine's name, for people."""
    pid: int
    """Process id."""
    kernel: str
    """The running kernel: those of one kernel see each other's locks and deaths at once, containers included."""
    token: str
    """Random, because hosts and ids come again."""

    @property
    def name(self) -> str:
        """Return the one name, which can be a file's: host, process id, token."""
        host = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in self.host)
        return f"{host[:40]}-{self.pid}-{self.token}"


def this_process() -> Holder:
    """Return a new holder for this process."""
    return Holder(host=socket.gethostname(), pid=os.getpid(), kernel=_kernel(), token=secrets.token_hex(4))


@cache
def _kernel() -> str:
    try:
        return _BOOT.read_text().strip().replace("-", "")[:12]
    except OSError:  # not Linux
        return socket.gethostname()


@dataclass(frozen=True, kw_only=True)
class LeaseRecord:
    """What a lease says."""

    holder: Holder
    """Who holds it."""
    since: str
    """When it was taken, UTC by the holder's clock."""
    seconds: float
    """The holder is dead if it does not renew for so long."""
    locked: bool
    """The holder has the kernel's lock of the same thing, where others of its kernel look for it."""
    beat: int
    """How often it was renewed."""

    def to_bytes(self) -> bytes:
        """Return a line of JSON."""
        data = asdict(self)
        return (json.dumps({**data.pop("holder"), **data}) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "LeaseRecord | None":
        """Return what the bytes say; None where they are no lease."""
        try:
            found = json.loads(data)
            return cls(
                holder=Holder(**{name: found[name] for name in ("host", "pid", "kernel", "token")}),
                since=found["since"],
                seconds=float(found["seconds"]),
                locked=found["locked"],
                beat=int(found["beat"]),
            )
        except (ValueError, KeyError, TypeError):
            return None


def lock_name(thing: Thing) -> str:
    """Return the name of the lock file of a thing."""
    return f".{thing:05d}.lock" if isinstance(thing, int) else f".{thing}.lock"


def is_lock(name: str) -> bool:
    """Say whether a name is a lock file's."""
    return _LOCK.fullmatch(name) is not None


def lease_name(thing: Thing) -> str:
    """Return the name of the lease of a thing."""
    return lock_name(thing).replace(".lock", ".lease")


def leased_thing(name: str) -> Thing | None:
    """Return what a lease's name is of; None for any other name."""
    match = _LEASE.fullmatch(name)
    return None if match is None else int(match[1]) if match[1].isdigit() else match[1]


# ---- taking, holding, letting go -------------------------------------------------------------------------------------


class Leases:
    """Hands out what one worker at a time should hold; one for each writer, which may use it from several threads.

    Args:
        storage: Where the leases are kept. The whole of an object store has none: what the last step of a store
            writes, it writes on conditions itself.
        seconds: A holder that does not renew for so long is dead; the longer of the holder's and the observer's counts.
        holder: Who takes them; this process if unsaid.
        kernel: Take the kernel's locks too. False where they reach nobody: then the leases alone decide.
    """

    def __init__(
        self, storage: Storage, seconds: float = LEASE_SECONDS, *, holder: Holder | None = None, kernel: bool = True
    ) -> None:
        self.storage, self.seconds, self.kernel = storage, seconds, kernel
        self.holder = holder or this_process()
        self.heartbeat = Heartbeat(seconds)
        self._clock = time.monotonic
        self._seen: dict[Thing, tuple[bytes | None, float]] = {}

    def take(self, thing: Thing) -> "Lease | None":
        """Take what nobody holds, or what a dead holder left; None if it is held. Does not wait.

        Raises:
            OSError: The folder cannot be written.
            PipelineError: The object store cannot be asked.
        """
        with ExitStack() as stack:
            if self.kernel and not stack.enter_context(self.storage.lock(lock_name(thing), block=False)):
                return None
            record = LeaseRecord(
                holder=self.holder,
                since=datetime.now(UTC).isoformat(timespec="seconds"),
                seconds=self.seconds,
                locked=self.kernel and self.storage.shares_locks,
                beat=0,
            )
            kept = self.storage.shares_locks or thing != STORE
            if kept and not self._claim(thing, record):
                return None
            self._seen.pop(thing, None)
            lease = Lease(self, lease_name(thing) if kept else "", record, stack.pop_all())
        if kept:
            self.heartbeat.hold(lease)
        return lease

    def _claim(self, thing: Thing, record: LeaseRecord) -> bool:
        left = _look(self.storage, lease_name(thing))
        if left is None:
            return self.storage.put_new(lease_name(thing), record.to_bytes())
        data, token = left
        return self._is_dead(thing, data) and self.storage.put_if(lease_name(thing), record.to_bytes(), token)

    def _is_dead(self, thing: Thing, data: bytes) -> bool:
        record = LeaseRecord.from_bytes(data)
        if record and self.kernel and _shares_kernel(self.storage, record, self.holder.kernel):
            return True  # its lock is ours now
        seen, first = self._seen.get(thing, (None, 0.0))
        if seen != data:
            self._seen[thing] = (data, self._clock())
            return False
        return self._clock() - first >= max(self.seconds, record.seconds if record else 0.0)


class Lease:
    """A lease that is held; made by `Leases.take`."""

    def __init__(self, leases: Leases, name: str, record: LeaseRecord, kernel: ExitStack) -> None:
        self.name, self.record = name, record
        self._leases, self._storage, self._kernel = leases, leases.storage, kernel
        self._lost = False
        self._guard = Lock()

    @property
    def lost(self) -> bool:
        """Say whether somebody else has taken it over; looks."""
        with self._guard, suppress(OSError):
            if self.name and not self._lost:
                self._lost = self._token() is None
        return self._lost

    def renew(self) -> None:
        """Show that the holder lives; where the disk or the network fails now, the next time may do."""
        with self._guard, suppress(OSError, PipelineError):
            if not self._lost:
                later, token = replace(self.record, beat=self.record.beat + 1), self._token()
                self._lost = token is None or not self._storage.put_if(self.name, later.to_bytes(), token)
                self.record = later

    def release(self) -> None:
        """Let it go; nothing happens where it is lost."""
        self._leases.heartbeat.drop(self)
        try:
            if self.name and not self.lost:
                with suppress(OSError):  # what cannot be removed now is dead soon
                    self._storage.delete([self.name])
        finally:
            self._lost = True
            self._kernel.close()

    def _token(self) -> str | None:
        """Return the token of what is stored if that is still this holder's."""
        data, token = _look(self._storage, self.name) or (b"", "")
        record = LeaseRecord.from_bytes(data)
        ours = record is not None and (record.holder, record.since) == (self.record.holder, self.record.since)
        return token if ours else None


class Heartbeat:
    """One thread that renews all the leases of a writer, and ends with the last of them; for several threads.

    Args:
        seconds: What is not renewed for so long is dead.
    """

    def __init__(self, seconds: float) -> None:
        self._pause = seconds / BEATS
        self._held: set[Lease] = set()
        self._guard = Lock()
        self._idle = Event()

    def hold(self, lease: Lease) -> None:
        """Renew it from now on."""
        with self._guard:
            self._held.add(lease)
            if len(self._held) == 1:
                self._idle = Event()
                Thread(target=self._renew, args=(self._idle,), name="leases", daemon=True).start()

    def drop(self, lease: Lease) -> None:
        """Renew it no more."""
        with self._guard:
            self._held.discard(lease)
            if not self._held:
                self._idle.set()

    def _renew(self, idle: Event) -> None:
        while not idle.wait(self._pause):
            with self._guard:
                held = list(self._held)
            for lease in held:
                lease.renew()


# ---- looking on and cleaning -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A lease as an onlooker sees it."""

    thing: Thing
    name: str
    record: LeaseRecord | None
    silent: float
    """Seconds since it was renewed, by the clocks of two machines; 0 where its holder is known to live."""
    dead: bool
    """Its holder was of this machine and is gone, or has been silent for very long."""
    elsewhere: bool
    """Its holder's locks may not be seen from this machine."""


def sightings(storage: Storage) -> list[Sighting]:
    """Return all the leases that are there."""
    kernel = this_process().kernel
    return [seen for name in storage.list(".") if (seen := _sight(storage, name, kernel)) is not None]


def _sight(storage: Storage, name: str, kernel: str) -> Sighting | None:
    thing = leased_thing(name)
    if thing is None or (left := _look(storage, name)) is None:
        return None
    record, silent = LeaseRecord.from_bytes(left[0]), storage.age(name)
    near = record is not None and _shares_kernel(storage, record, kernel)
    if near:
        dead = not is_locked(storage.here / lock_name(thing))
        silent = silent if dead else 0.0
    else:
        dead = silent > _CLEANING * (record.seconds if record else LEASE_SECONDS)
    return Sighting(thing=thing, name=name, record=record, silent=silent, dead=dead, elsewhere=not near)


def leased_elsewhere(storage: Storage) -> set[Thing]:
    """Return what holders seem to be at whose locks this machine may not see."""
    return {seen.thing for seen in sightings(storage) if seen.elsewhere and not seen.dead}


def sweep_leases(storage: Storage) -> None:
    """Remove the leases of this machine's dead processes, and those of others that have long been silent."""
    for seen in sightings(storage):
        if seen.dead:
            with storage.lock(lock_name(seen.thing), block=False) as free:
                if free:
                    storage.delete([seen.name])


def _shares_kernel(storage: Storage, record: LeaseRecord, kernel: str) -> bool:
    """Say whether a holder has a lock that can be seen by who runs on this kernel."""
    return record.locked and storage.shares_locks and record.holder.kernel == kernel


def _look(storage: Storage, name: str) -> tuple[bytes, str] | None:
    """Return what a lease says and its token, taken first: bytes that change after it make a condition fail."""
    there = storage.stat(name)
    try:
        return None if there is None else (storage.get(name), there.token)
    except FileNotFoundError:
        return None
