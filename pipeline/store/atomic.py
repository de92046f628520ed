"""Put a file into a store whole or not at all, as `pipeline.files` does it, by a temp file that says who writes.

The temp file is locked (flock) while its writer lives; `sweep` removes those whose writer died.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.files import write_atomically
from pipeline.store.layout import is_lock, is_temp, temp_of, temp_prefix
from pipeline.store.lease_files import leased_elsewhere, sweep_leases
from pipeline.store.locks import is_locked, lock, open_locked


@contextmanager
def temp_file(target: Path) -> Iterator[Path]:
    """Create a locked, empty temp file beside `target`; what is left of it at the end is removed."""
    path = target.with_name(f"{temp_prefix(target.name)}{secrets.token_hex(8)}.tmp")
    descriptor = open_locked(path, block=True)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)


def put(target: Path, data: bytes) -> None:
    """Write a small file atomically."""
    write_atomically(target, data, temp_file)


def stale_temp_files(root: Path) -> list[Path]:
    """Return the temp files of dead writers; what another machine holds a lease of may be alive there."""
    loose = sorted(path for path in root.iterdir() if is_temp(path.name) and not is_locked(path))
    elsewhere = leased_elsewhere(root) if loose else set()
    return [path for path in loose if temp_of(path.name) not in elsewhere]


def sweep(root: Path) -> None:
    """Remove the temp, lease and lock files of dead writers."""
    for path in stale_temp_files(root):
        remove_unlocked(path)
    sweep_leases(root)
    for path in [path for path in root.iterdir() if is_lock(path.name)]:
        remove_unlocked(path)


def remove_unlocked(path: Path) -> None:
    """Remove a file unless a live process has locked it, be it since somebody looked."""
    with lock(path, block=False):
        pass  # a lock takes its file with it
