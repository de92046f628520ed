"""What happened to a store while it was made: JSON lines, one file a run in `.events`, so that no two ever mix.

Every line has `time` (UTC), `event`, `worker` (a name that no other run has), `host` and `pid`; a shard's have `shard`.
started: index, of, shards, rows, layers, lease_seconds, kernel. claimed. committed: items, rows, seconds since it was
claimed, layers, rejected (reason → count). lost: others took the shard over. failed: reason. finished: content_digest.

Nothing depends on them: they are no part of a store, a disk that does not take one stops nothing, and a line that a
kill tore is left out by whoever reads.
"""

import json
import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.errors import PipelineError
from pipeline.storage.contract import Place, Storage
from pipeline.storage.leases import Holder
from pipeline.storage.locks import open_locked
from pipeline.storage.open import open_storage
from pipeline.store.manifest import EVENTS, event_files

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
        time = self._last.isoformat(timespec="microseconds")
        text = json.dumps({"time": time, "event": event, **self._common, **fields}, ensure_ascii=False)
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
