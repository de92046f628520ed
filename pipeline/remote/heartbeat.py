"""Show that a holder lives: one thread renews all the leases that a writer holds, and ends with the last of them."""

from threading import Event, Lock, Thread
from typing import Protocol

LEASE_SECONDS = 60.0
BEATS = 4
"""Renewals in a lease's `seconds`: three may fail before a living holder is taken for dead."""


class Renewed(Protocol):
    """Something that dies if it is not renewed."""

    def renew(self) -> None:
        """Show that its holder lives."""


class Heartbeat:
    """Renews what is held; may be used from several threads.

    Args:
        seconds: What is not renewed for so long is dead.
    """

    def __init__(self, seconds: float) -> None:
        self._pause = seconds / BEATS
        self._held: set[Renewed] = set()
        self._guard = Lock()
        self._idle = Event()

    def hold(self, lease: Renewed) -> None:
        """Renew it from now on."""
        with self._guard:
            self._held.add(lease)
            if len(self._held) == 1:
                self._idle = Event()
                Thread(target=self._renew, args=(self._idle,), name="leases", daemon=True).start()

    def drop(self, lease: Renewed) -> None:
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
