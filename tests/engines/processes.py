"""Processes below a process, found in /proc, so that a test kills the very ones that it means."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

WORKER = "ray::extract_store"


def below(parent: int) -> list[int]:
    """Return the ids of all processes below one."""
    children: dict[int, list[int]] = {}
    for process, above in _parents():
        children.setdefault(above, []).append(process)
    found, waiting = [], [parent]
    while waiting:
        new = children.get(waiting.pop(), [])
        found += new
        waiting += new
    return found


def named(parent: int, name: str) -> list[int]:
    """Return the ids of processes below one whose title begins with a name."""
    return [process for process in below(parent) if _title(process).startswith(name)]


def alive(process: int) -> bool:
    """Say whether a process is there and no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def kill_all(processes: list[int]) -> None:
    """Kill processes, in one go."""
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


def until(condition: Callable[[], object], what: str, seconds: float = 600) -> None:
    """Wait for something."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.02)


def committed(out: Path) -> int:
    """Return how many shards of a store are committed."""
    return len(list(out.glob("0*.json")))


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            yield int(entry.name), int(stat.rpartition(")")[2].split()[1])


def _title(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
