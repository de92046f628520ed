"""Who writes to a store: a name that no other process ever has, and the machine whose kernel's locks it sees."""

import os
import secrets
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True)
class Holder:
    """One process, or one part of a process, that writes to a store."""

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
