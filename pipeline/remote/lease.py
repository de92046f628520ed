"""Leases in an object store: one worker at a time computes a shard, and what a dead worker held is taken over.

There is no lock there that a kernel would release, so a lease is a small object (`.00007.lease`) that is created on
the condition that there is none, and that its holder writes again every quarter of `seconds`, on the condition that it
is still its own. Nobody compares clocks: an object that has not changed for `seconds` of the observer's own clock is a
dead worker's, and is replaced on the condition that it is still that one; of two thieves one wins.

Where a store keeps no conditions a lease is best effort. Two holders do no harm: they write the same bytes, and a
record goes last. A lease saves work, nothing hangs on it.
"""

import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from pipeline.errors import PipelineError
from pipeline.remote.binding import address
from pipeline.remote.heartbeat import LEASE_SECONDS, Heartbeat
from pipeline.remote.objects import Objects


class ObjectLeases:
    """Hands out what one worker at a time should hold; one for each writer, which may use it from several threads.

    Args:
        root: The store's bound folder.
        seconds: A holder that does not renew for so long is dead; the longer of the holder's and the observer's counts.
        clock: A clock that only goes forward, in seconds.
    """

    def __init__(
        self, root: Path, seconds: float = LEASE_SECONDS, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.seconds = seconds
        self.objects = Objects(address(root))
        self._clock = clock
        self._seen: dict[int | str, tuple[str, float]] = {}
        self.heartbeat = Heartbeat(seconds)

    def take(self, what: int | str) -> "ObjectLease | None":
        """Take a shard (by its index), or the whole store ("store"); None if it is held. Does not wait.

        Raises:
            PipelineError: The store cannot be asked.
        """
        lease = ObjectLease(self, lease_object(what))
        if self.objects.create(lease.name, lease.data) or self._steal(what, lease):
            self._seen.pop(what, None)
            self.heartbeat.hold(lease)
            return lease
        return None

    def _steal(self, what: int | str, lease: "ObjectLease") -> bool:
        left = self.objects.stat(lease.name)
        if left is None:
            return False
        seen, first = self._seen.get(what, ("", 0.0))
        now = self._clock()
        if seen != left.token:
            self._seen[what] = (left.token, now)
            return False
        patience = max(self.seconds, _seconds(self.objects.read(lease.name)))
        return now - first >= patience and self.objects.replace(lease.name, lease.data, left.token)


class ObjectLease:
    """A lease that is held, or about to be; made by `ObjectLeases.take`."""

    def __init__(self, leases: ObjectLeases, name: str) -> None:
        self.name = name
        self._leases = leases
        self._about = {"host": socket.gethostname(), "pid": os.getpid(), "token": secrets.token_hex(16)}
        self._beat = 0
        self._lost = False
        self._guard = Lock()

    @property
    def data(self) -> bytes:
        """Return what the object says at this beat."""
        return (json.dumps({**self._about, "seconds": self._leases.seconds, "beat": self._beat}) + "\n").encode()

    @property
    def lost(self) -> bool:
        """Say whether somebody else has taken it over; looks at the object."""
        with self._guard:
            self._lost = self._lost or self._leases.objects.read(self.name) != self.data
            return self._lost

    def renew(self) -> None:
        """Show that the holder lives; where the network fails now, the next time may do."""
        with self._guard:
            try:
                self._write()
            except PipelineError:
                return

    def release(self) -> None:
        """Let it go; nothing happens where it is lost."""
        self._leases.heartbeat.drop(self)
        if not self.lost:
            self._leases.objects.remove([self.name])
        self._lost = True

    def _write(self) -> None:
        objects, now = self._leases.objects, self._leases.objects.stat(self.name)
        if self._lost or now is None or objects.read(self.name) != self.data:
            self._lost = True
            return
        self._beat += 1
        if not objects.replace(self.name, self.data, now.token):
            self._lost = True


def lease_object(what: int | str) -> str:
    """Return the name of the object that is the lease of a shard (its index) or of the whole store ("store")."""
    return f".{what:05d}.lease" if isinstance(what, int) else f".{what}.lease"


def is_lease(name: str) -> bool:
    """Say whether an object's name is a lease's."""
    return name.startswith(".") and name.endswith(".lease")


def _seconds(data: bytes | None) -> float:
    try:
        return float(json.loads(data or b"{}").get("seconds", 0.0))
    except (ValueError, TypeError, AttributeError):
        return 0.0
