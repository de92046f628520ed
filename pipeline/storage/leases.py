"""Leases: a thing is held by one worker at a time, and what a dead worker held is taken over.

A lease is a small file or object that says who holds it and that its holder writes again every quarter of `seconds`.
Nobody compares clocks: one whose bytes have not changed for `seconds` of the observer's own clock is dead. Beside it
the holder has the kernel's lock of the same thing (flock on `.00007.lock`): among the processes of one machine that
says at once who is there and who died. Not every file system of a cluster carries it to other machines, and no object
store does, so a lease that says its holder has such a lock is dead at once only for who shares the kernel.

Where the bytes lie, and how one thief alone gets the place of a dead lease, is the matter of its slots:

- `pipeline.storage.local.FileSlots`: creating a file that must not be there, which any file system does for one alone.
  A lease is taken over by creating the file of the next generation, `.00007.1.lease`; who creates it while the dead one
  is still as it was, wins, and removes it.
- `pipeline.storage.objects.ObjectSlots`: an object `.00007.lease`, put on conditions.

Two holders at once do no harm: what they compute is the same and a commit is atomic. A lease only saves work.
`lost` says that others took a stalled holder for dead; it then had better leave the thing to them.
"""

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Protocol

from pipeline.errors import PipelineError
from pipeline.storage.locks import is_locked, lock

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
_LEASE = re.compile(r"\.(store|\d{5,})(?:\.(\d+))?\.lease")

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
        """Return a line of JSON, as long at every beat, so that it can be written over in place."""
        data = {**asdict(self.holder), "since": self.since, "seconds": self.seconds, "locked": self.locked}
        return (json.dumps({**data, "beat": f"{self.beat:09d}"}) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes | None) -> "LeaseRecord | None":
        """Return what the bytes say; None where they are no lease (a holder died while it wrote the first)."""
        try:
            found = json.loads(data or b"")
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


def lease_name(thing: Thing, generation: int | None = None) -> str:
    """Return the name of the lease of a thing: of a generation for files, of none for objects."""
    return lock_name(thing).replace(".lock", ".lease" if generation is None else f".{generation}.lease")


def leased_thing(name: str) -> Thing | None:
    """Return what a lease's name is of; None for any other name."""
    match = _LEASE.fullmatch(name)
    return None if match is None else int(match[1]) if match[1].isdigit() else match[1]


# ---- where leases are kept -------------------------------------------------------------------------------------------

Left = Sequence[tuple[str, bytes | None]]
"""The leases of one thing that are there: (name, bytes) of each; None where it has just gone."""


class Slots(Protocol):
    """Where the leases of a storage are kept, and how one of several thieves gets the place of a dead one."""

    here: Path
    """The folder on this machine where the kernel's locks lie."""
    kernel_decides: bool
    """Whether everybody who shares the kernel finds these locks, so that one that can be had is a dead holder's."""

    def is_kept(self, thing: Thing) -> bool:
        """Say whether a thing has a lease at all; if not, the kernel's lock is all that is held."""

    def look(self, thing: Thing) -> Left:
        """Return the leases of a thing that are there."""

    def claim(self, thing: Thing, left: Left, data: bytes) -> str | None:
        """Put a lease in the place of what was left there and return its name; None where that is no longer so."""

    def read(self, name: str) -> bytes | None:
        """Return what a lease says, None if there is none."""

    def renew(self, name: str, data: bytes, is_ours: Callable[[bytes | None], bool]) -> bool:
        """Write a lease anew if what is there is still its holder's; False if not."""

    def remove(self, name: str) -> None:
        """Remove a lease."""

    def names(self) -> list[str]:
        """Return the names of all leases, sorted."""

    def age(self, name: str) -> float | None:
        """Return the seconds since a lease was written, by the clocks of two machines; None where it has gone."""


# ---- taking, holding, letting go -------------------------------------------------------------------------------------


class Leases:
    """Hands out what one worker at a time should hold; one for each writer, which may use it from several threads.

    Args:
        slots: Where the leases are kept.
        seconds: A holder that does not renew for so long is dead; the longer of the holder's and the observer's counts.
        holder: Who takes them; this process if unsaid.
        kernel: Take the kernel's locks too. False where they reach nobody: then the leases alone decide.
        clock: A clock that only goes forward, in seconds; the kernel's if unsaid.
    """

    def __init__(
        self,
        slots: Slots,
        seconds: float = LEASE_SECONDS,
        *,
        holder: Holder | None = None,
        kernel: bool = True,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.slots, self.seconds, self.kernel = slots, seconds, kernel
        self.holder = holder or this_process()
        self.heartbeat = Heartbeat(seconds)
        self._clock = clock or time.monotonic
        self._seen: dict[Thing, tuple[Left, float]] = {}

    def take(self, thing: Thing) -> "Lease | None":
        """Take what nobody holds, or what a dead holder left; None if it is held. Does not wait.

        Raises:
            OSError: The folder cannot be written.
            PipelineError: The object store cannot be asked.
        """
        with ExitStack() as stack:
            if self.kernel and not stack.enter_context(lock(self.slots.here / lock_name(thing), block=False)):
                return None
            record = LeaseRecord(
                holder=self.holder,
                since=datetime.now(UTC).isoformat(timespec="seconds"),
                seconds=self.seconds,
                locked=self.kernel and self.slots.kernel_decides,
                beat=0,
            )
            name = self._claimed(thing, record) if self.slots.is_kept(thing) else ""
            if name is None:
                return None
            self._seen.pop(thing, None)
            lease = Lease(self, name, record, stack.pop_all())
        if name:
            self.heartbeat.hold(lease)
        return lease

    def _claimed(self, thing: Thing, record: LeaseRecord) -> str | None:
        left = self.slots.look(thing)
        if left and not self._is_dead(thing, left):
            return None
        return self.slots.claim(thing, left, record.to_bytes())

    def _is_dead(self, thing: Thing, left: Left) -> bool:
        records = [LeaseRecord.from_bytes(data) for _, data in left]
        if all(record and record.locked and self._shares_kernel(record) for record in records):
            return True  # their lock is ours now
        seen, first = self._seen.get(thing, ((), 0.0))
        now = self._clock()
        if any(data is None for _, data in left) or seen != left:
            self._seen[thing] = (left, now)
            return False
        return now - first >= max([self.seconds, *(record.seconds for record in records if record)])

    def _shares_kernel(self, record: LeaseRecord) -> bool:
        return self.kernel and self.slots.kernel_decides and record.holder.kernel == self.holder.kernel


class Lease:
    """A lease that is held; made by `Leases.take`."""

    def __init__(self, leases: Leases, name: str, record: LeaseRecord, kernel: ExitStack) -> None:
        self.name, self.record = name, record
        self._leases, self._kernel = leases, kernel
        self._lost = False
        self._guard = Lock()

    @property
    def lost(self) -> bool:
        """Say whether somebody else has taken it over; looks."""
        with self._guard, suppress(OSError):
            if self.name and not self._lost:
                self._lost = not self._is_ours(self._leases.slots.read(self.name))
        return self._lost

    def renew(self) -> None:
        """Show that the holder lives; where the disk or the network fails now, the next time may do."""
        with self._guard, suppress(OSError, PipelineError):
            if not self._lost:
                later = replace(self.record, beat=self.record.beat + 1)
                self._lost = not self._leases.slots.renew(self.name, later.to_bytes(), self._is_ours)
                self.record = later

    def release(self) -> None:
        """Let it go; nothing happens where it is lost."""
        self._leases.heartbeat.drop(self)
        try:
            if self.name and not self.lost:
                with suppress(OSError):  # what cannot be removed now is dead soon
                    self._leases.slots.remove(self.name)
        finally:
            self._lost = True
            self._kernel.close()

    def _is_ours(self, data: bytes | None) -> bool:
        record = LeaseRecord.from_bytes(data)
        return record is not None and (record.holder, record.since) == (self.record.holder, self.record.since)


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


def sightings(slots: Slots) -> list[Sighting]:
    """Return all the leases that are there."""
    kernel = this_process().kernel
    return [seen for name in slots.names() if (seen := _sight(slots, name, kernel)) is not None]


def _sight(slots: Slots, name: str, kernel: str) -> Sighting | None:
    thing, data, silent = leased_thing(name), slots.read(name), slots.age(name)
    if thing is None or data is None or silent is None:
        return None
    record = LeaseRecord.from_bytes(data)
    near = bool(record and record.locked and slots.kernel_decides and record.holder.kernel == kernel)
    if near:
        dead = not is_locked(slots.here / lock_name(thing))
        silent = silent if dead else 0.0
    else:
        dead = silent > _CLEANING * (record.seconds if record else LEASE_SECONDS)
    return Sighting(thing=thing, name=name, record=record, silent=silent, dead=dead, elsewhere=not near)


def leased_elsewhere(slots: Slots) -> set[Thing]:
    """Return what holders seem to be at whose locks this machine may not see."""
    return {seen.thing for seen in sightings(slots) if seen.elsewhere and not seen.dead}


def sweep_leases(slots: Slots) -> None:
    """Remove the leases of this machine's dead processes, and those of others that have long been silent."""
    for seen in sightings(slots):
        if seen.dead:
            with lock(slots.here / lock_name(seen.thing), block=False) as free:
                if free:
                    slots.remove(seen.name)
