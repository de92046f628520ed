"""What happens to a store while it is made, and how far it is.

Events are JSON lines, one file a run in `.events`, so that no two ever mix.

Every line has `time` (UTC), `event`, `worker` (a name that no other run has), `host` and `pid`; a shard's have `shard`.
started: index, of, shards, rows, layers, lease_seconds, kernel. claimed. committed: items, rows, seconds since it was
claimed, layers, rejected (reason → count). lost: others took the shard over. failed: reason. finished: content_digest.

Nothing depends on them: they are no part of a store, a disk that does not take one stops nothing, and a line that a
kill tore is left out by whoever reads.
"""

import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.errors import PipelineError, UserError
from pipeline.files import is_locked, open_locked
from pipeline.storage.contract import Place, Storage
from pipeline.storage.leases import Holder, Sighting, lock_name, sightings, this_process
from pipeline.storage.local import open_storage
from pipeline.store.commit import committed, missing_layers
from pipeline.store.manifest import HEADER, MANIFEST, ShardFile, read_header
from pipeline.store.shards import first_files

EVENTS = ".events"

_WINDOW = 300.0
"""Seconds that the rate is taken over, or three shards where they take longer."""
_SILENT = 2.0
"""How many times its `lease_seconds` a worker of another machine shows nothing before it counts as silent."""
_NAME = re.compile(r"[\w-]+\.jsonl")
_log = logging.getLogger(__name__)


class EventLog:
    """One run's log of one store. Nothing is written before "started"; a failure inside of `with` is an event.

    Args:
        root: The store.
        holder: Whose run it is.
    """

    def __init__(self, root: Storage, holder: Holder) -> None:
        self.path = root.here / EVENTS / f"{holder.name}.jsonl"
        self._common = {"worker": holder.name, "host": holder.host, "pid": holder.pid}
        self._file: int | None = None
        self._torn = False
        self._last = datetime.fromtimestamp(0, UTC)

    def __enter__(self) -> "EventLog":
        """Return itself."""
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        """Write what failed, and close."""
        if error is not None:
            self.write("failed", reason=reason_of(error))
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def start(self, **fields: Any) -> None:
        """Begin the log; its lock says that its writer lives."""
        try:
            self.path.parent.mkdir(exist_ok=True)
            self._file = open_locked(self.path, block=False)
        except OSError as error:
            _log.warning("%s: %s; this run leaves no events", self.path, error.strerror)
        self.write("started", **fields)

    def write(self, event: str, **fields: Any) -> None:
        """Append one line."""
        if self._file is None:
            return
        self._last = max(self._last, datetime.now(UTC))  # a clock that is set back reorders no run
        moment = self._last.isoformat(timespec="microseconds")
        text = json.dumps({"time": moment, "event": event, **self._common, **fields}, ensure_ascii=False)
        data = f"{chr(10) * self._torn}{text}\n".encode()
        try:
            self._torn = os.write(self._file, data) < len(data)
        except OSError as error:
            self._torn = True
            _log.warning("%s: %s; the event %s is not in it", self.path, error.strerror, event)

    def touch(self) -> None:
        """Show that the writer lives although nothing happens, to who sees no lock of it."""
        if self._file is not None:
            try:
                os.utime(self._file)
            except OSError as error:
                _log.debug("%s: %s", self.path, error.strerror)


def reason_of(error: BaseException) -> str:
    """Return why a run failed, in one line."""
    text = error.sentence() if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:500].rstrip(": ")


def event_files(root: Storage) -> list[Path]:
    """Return the event logs of the runs on this machine, sorted; they are no part of what a store holds."""
    folder = root.here / EVENTS
    if not folder.is_dir() or folder.is_symlink():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and not path.is_symlink())


def read_log(path: Path) -> list[Mapping[str, Any]]:
    """Return the events of one log, torn lines left out."""
    found: list[Mapping[str, Any]] = []
    for line in path.read_bytes().split(b"\n"):
        try:
            event = json.loads(line)
        except ValueError:  # torn, or empty
            continue
        if isinstance(event, dict) and {"time", "event", "worker"} <= event.keys() and _moment(event):
            found.append(event)
    return found


def read_events(place: Place) -> list[Mapping[str, Any]]:
    """Return the events of all runs on a store, sorted by their writers' clocks."""
    return sorted((event for path in event_files(open_storage(place)) for event in read_log(path)), key=seconds_of)


def seconds_of(event: Mapping[str, Any]) -> float:
    """Return when something happened, in seconds since 1970."""
    return datetime.fromisoformat(event["time"]).timestamp()


def _moment(event: Mapping[str, Any]) -> bool:
    try:
        return seconds_of(event) > 0
    except (TypeError, ValueError):
        return False


# ---- how far a store is ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardStatus:
    """How far one shard is: items [start, stop), state "done", "leased" or "missing", layers that are committed.

    For a leased one: who holds it and since when, where that is known.
    """

    index: int
    start: int
    stop: int
    state: str
    layers: tuple[str, ...]
    worker: str | None = None
    since: str | None = None


@dataclass(frozen=True, kw_only=True)
class WorkerStatus:
    """One run: "alive", "silent" (another machine's, no sign of life), "dead" (killed), "failed" or "finished"."""

    worker: str
    index: int
    of: int
    state: str
    since: str
    shards: int
    """Shards that it committed."""
    at: tuple[int, ...]
    """Shards that it holds."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A whole store while it is made."""

    shards: int
    done: int
    leased: int
    missing: int
    items: int
    done_items: int
    rate: float | None
    """Items a second of all workers together in the last minutes; None where nobody is at work or none is done yet."""
    eta: float | None
    """Seconds still to go at that rate."""
    finished: bool
    """The manifest is written."""
    rejected: Mapping[str, int]
    """Reason → items that were left out for it."""
    failures: Mapping[str, int]
    """Reason → runs that ended with it."""
    workers: Sequence[WorkerStatus]


def status(place: Place) -> list[ShardStatus]:
    """Return the state of every shard of a store, finished or not.

    A shard is done if it has every layer that any shard has or that a living worker was asked for; leased if a living
    process holds it, missing otherwise.

    Raises:
        UserError: The folder is no store.
    """
    return _look(open_storage(place))[2]


def summary(place: Place) -> Summary:
    """Return how far a store is, how fast it grows, who works on it, and what failed or was left out.

    Raises:
        UserError: The folder is no store.
    """
    root = open_storage(place)
    files, runs, shards = _look(root)
    counts = Counter(shard.state for shard in shards)
    done = sum(shard.stop - shard.start for shard in shards if shard.state == "done")
    rate, items = _rate(runs), shards[-1].stop
    return Summary(
        shards=len(shards),
        done=counts["done"],
        leased=counts["leased"],
        missing=counts["missing"],
        items=items,
        done_items=done,
        rate=rate,
        eta=(items - done) / rate if rate else None,
        finished=root.stat(MANIFEST) is not None and done == items,
        rejected=dict(Counter(reason for file in first_files(files) for _, reason in file.rejected).most_common()),
        failures=dict(Counter(run.failure for run in runs if run.failure).most_common()),
        workers=[run.status for run in runs],
    )


@dataclass(frozen=True)
class _Run:
    status: WorkerStatus
    events: Sequence[Mapping[str, Any]]

    @property
    def alive(self) -> bool:
        return self.status.state == "alive"

    @property
    def failure(self) -> str:
        last = self.events[-1]
        return str(last.get("reason", "")) if last["event"] == "failed" else ""


def _look(root: Storage) -> tuple[list[ShardFile], list[_Run], list[ShardStatus]]:
    """Return the committed files, the runs, and the shards of a store as they are now."""
    if HEADER not in root.list():
        raise UserError(expected="a feature store", found="no store.json", where=str(root))
    header = read_header(root)
    files, leases = committed(root, header), sightings(root)
    records, runs = [file for own in files.values() for file in own], _runs(root, leases)
    asked = [str(name) for run in runs if run.alive for name in run.events[0].get("layers", ())]
    names = tuple(dict.fromkeys([*(layer.name for file in records for layer in file.layers), *asked]))
    holders = {seen.thing: seen for seen in leases if not seen.dead}
    shards = []
    for index in range(header.shards):
        missing, seen = missing_layers(files.get(index, ()), names), holders.get(index)
        held = tuple(name for name in names if name not in missing)
        state, record = "done" if index in files and not missing else "missing", seen.record if seen else None
        alive = seen is not None and seen.silent <= _SILENT * (record.seconds if record else 0.0)
        if is_locked(root.here / lock_name(index)) or alive:
            holder = (record.holder.name, record.since) if record else ()
            shards.append(ShardStatus(index, *header.span(index), "leased", held, *holder))
        else:
            shards.append(ShardStatus(index, *header.span(index), state, held))
    return records, runs, shards


def _runs(root: Storage, leases: Sequence[Sighting]) -> list[_Run]:
    kernel = this_process().kernel
    found = []
    for path in event_files(root):
        events = read_log(path)
        if events and events[0]["event"] == "started":
            found.append(_Run(_worker(path, events, leases, kernel), events))
    return sorted(found, key=lambda run: seconds_of(run.events[0]))


def _worker(path: Path, events: Sequence[Mapping[str, Any]], leases: Sequence[Sighting], kernel: str) -> WorkerStatus:
    first, last = events[0], events[-1]
    held = [seen for seen in leases if seen.record and seen.record.holder.name == first["worker"] and not seen.dead]
    if last["event"] in ("failed", "finished"):
        state = str(last["event"])
    elif first.get("kernel") == kernel:
        state = "alive" if is_locked(path) else "dead"
    else:
        silent = min([time.time() - path.stat().st_mtime, *(seen.silent for seen in held)])
        state = "alive" if silent <= _SILENT * float(first.get("lease_seconds", 60.0)) else "silent"
    return WorkerStatus(
        worker=first["worker"],
        index=int(first.get("index", 0)),
        of=int(first.get("of", 1)),
        state=state,
        since=first["time"],
        shards=sum(event["event"] == "committed" for event in events),
        at=tuple(sorted(seen.thing for seen in held if isinstance(seen.thing, int))),
    )


def _rate(runs: Sequence[_Run]) -> float | None:
    if not any(run.alive for run in runs):
        return None
    now = time.time()
    commits = [event for run in runs for event in run.events if event["event"] == "committed"]
    window = max([_WINDOW, *(3 * float(event.get("seconds", 0)) for event in commits)])
    recent = [event for event in commits if seconds_of(event) > now - window]
    busy = [seconds_of(run.events[0]) for run in runs if run.alive or seconds_of(run.events[-1]) > now - window]
    items = sum(int(event.get("items", 0)) for event in recent)
    return items / max(now - max(min(busy), now - window), 1e-3) if items else None
