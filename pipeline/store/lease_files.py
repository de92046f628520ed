"""The files of leases, as anybody may read them: what one says, which there are, which look dead to who cannot wait.

Whoever wants to take a lease over watches it (see `pipeline.store.leases`). Who only looks on, or cleans, goes by the
file's age; cleaning waits for ten times as long as a takeover, since clocks of two machines differ.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.store.holder import Holder, this_process
from pipeline.store.layout import lease_of, lock_name
from pipeline.store.locks import is_locked, lock

_CLEANING = 10.0
"""How many times its `seconds` a lease of another machine may be silent before its files are cleaned away."""


@dataclass(frozen=True, kw_only=True)
class LeaseRecord:
    """What a lease's file says."""

    holder: Holder
    """Who holds it."""
    since: str
    """When it was taken, UTC by the holder's clock."""
    seconds: float
    """The holder is dead if it does not renew for so long."""
    locked: bool
    """The holder holds the kernel's lock of the same thing too."""
    beat: int
    """How often it was renewed."""

    def to_bytes(self) -> bytes:
        """Return a line of JSON, as long at every beat, so that it can be written over in place."""
        data = {**asdict(self.holder), "since": self.since, "seconds": self.seconds, "locked": self.locked}
        return (json.dumps({**data, "beat": f"{self.beat:09d}"}) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "LeaseRecord | None":
        """Return what a file says; None where that is no lease (a holder died while it wrote the first)."""
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


def lease_files(root: Path, what: int | str | None = None) -> list[tuple[int, Path]]:
    """Return (generation, file) of the leases of one thing, or of all, sorted; the last generation counts."""
    with os.scandir(root) as entries:
        found = [(known, entry.path) for entry in entries if (known := lease_of(entry.name)) is not None]
    return sorted((generation, Path(path)) for (own, generation), path in found if what in (None, own))


def read_lease(path: Path) -> bytes | None:
    """Return what a lease's file holds, None if there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """A lease as an onlooker sees it."""

    what: int | str
    """A shard's index, or "store"."""
    path: Path
    record: LeaseRecord | None
    silent: float
    """Seconds since it was renewed, by the clocks of two machines; 0 where its holder is known to live."""
    dead: bool
    """Its holder was of this machine and is gone, or has been silent for very long."""


def sightings(root: Path) -> list[Sighting]:
    """Return all the leases of a store."""
    kernel = this_process().kernel
    return [seen for _, path in lease_files(root) if (seen := _sight(path, kernel)) is not None]


def _sight(path: Path, kernel: str) -> Sighting | None:
    known, left = lease_of(path.name), read_lease(path)
    if known is None or left is None:
        return None
    try:
        silent = max(0.0, time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return None
    record = LeaseRecord.from_bytes(left)
    if record and record.locked and record.holder.kernel == kernel:
        dead = not is_locked(path.with_name(lock_name(known[0])))
        return Sighting(what=known[0], path=path, record=record, silent=silent if dead else 0.0, dead=dead)
    dead = silent > _CLEANING * (record.seconds if record else 60.0)
    return Sighting(what=known[0], path=path, record=record, silent=silent, dead=dead)


def leased_elsewhere(root: Path) -> set[int | str]:
    """Return what holders seem to be at whose locks this machine may not see."""
    kernel = this_process().kernel
    return {
        seen.what
        for seen in sightings(root)
        if not seen.dead and not (seen.record and seen.record.locked and seen.record.holder.kernel == kernel)
    }


def sweep_leases(root: Path) -> None:
    """Remove the leases of this machine's dead processes, and those of others that have long been silent."""
    for seen in sightings(root):
        if seen.dead:
            with lock(root / lock_name(seen.what), block=False) as free:
                if free:
                    seen.path.unlink(missing_ok=True)
