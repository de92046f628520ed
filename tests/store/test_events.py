"""Event logs: one file a run, torn lines left out, no part of what a store holds; what is said of their writers."""

import errno
import json
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.storage.leases import Holder, Leases, this_process
from pipeline.storage.local import LocalStorage, open_storage
from pipeline.store.cleaning import gc, replace_store
from pipeline.store.events import EventLog, event_files, read_events, reason_of, status, summary
from pipeline.store.inspect import diff, du, verify
from pipeline.store.interop import convert
from pipeline.store.writer import StoreWriter
from tests.store.building import LAYERS, computed, fill, header


def begun(root: Path, holder: Holder | None = None, **fields: Any) -> EventLog:
    log = EventLog(open_storage(root), holder or this_process())
    log.start(**{"index": 0, "of": 1, "lease_seconds": 60.0, "kernel": this_process().kernel, **fields})
    return log


def elsewhere(token: str = "01234567") -> Holder:
    return replace(this_process(), host="node7", kernel="other", token=token)


def test_lines_are_whole_and_in_time(tmp_path: Path) -> None:
    with begun(tmp_path) as first, begun(tmp_path) as second:
        for shard in range(3):
            first.write("claimed", shard=shard)
            second.write("claimed", shard=10 + shard)
    lines = [json.loads(line) for path in event_files(open_storage(tmp_path)) for line in path.read_text().splitlines()]
    assert len(lines) == 8
    found = read_events(tmp_path)
    assert [event["time"] for event in found] == sorted(event["time"] for event in lines)
    assert len({event["worker"] for event in found}) == 2


def test_a_clock_that_is_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = iter([10, 9, 11])

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Clock":
            return cls(2026, 1, 1, next(hours), tzinfo=tz)

    monkeypatch.setattr("pipeline.store.events.datetime", Clock)
    with begun(tmp_path) as log:
        log.write("claimed", shard=1)
        log.write("committed", shard=1)
    found = read_events(tmp_path)
    assert [event["event"] for event in found] == ["started", "claimed", "committed"]
    assert [event["time"][11:13] for event in found] == ["10", "10", "11"]


@pytest.mark.parametrize("torn", [b'{"time": "2026-01-01T00:0', b"\xff\x00", b'{"event": 3}', b"[1]", b"{}\n\n3"])
def test_what_a_kill_tore_is_left_out(tmp_path: Path, torn: bytes) -> None:
    with begun(tmp_path) as log:
        log.write("claimed", shard=1)
    with log.path.open("ab") as file:
        file.write(torn)
    assert [event["event"] for event in read_events(tmp_path)] == ["started", "claimed"]


def test_a_full_disk_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Half a line goes in, then nothing; the line after it stands alone."""
    write, answers = os.write, iter([5, -1])

    def full(descriptor: int, data: bytes) -> int:
        count = next(answers, None)
        if count is None:
            return write(descriptor, data)
        if count < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:count])

    with begun(tmp_path) as log:
        monkeypatch.setattr("pipeline.store.events.os.write", full)
        for shard in range(3):
            log.write("claimed", shard=shard)
    assert [event.get("shard") for event in read_events(tmp_path)] == [None, 2]
    assert "No space left on device; the event claimed is not in it" in caplog.text


def test_no_log_where_the_folder_takes_none(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / ".events").write_text("a file")
    with begun(tmp_path) as log:
        log.write("claimed", shard=1)
    assert "this run leaves no events" in caplog.text
    assert read_events(tmp_path) == []


def test_nothing_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="early"), EventLog(open_storage(tmp_path), this_process()):
        raise ValueError("early")
    assert list(tmp_path.iterdir()) == []


def test_reasons() -> None:
    assert reason_of(ValueError("two\nlines")) == "ValueError: two lines"
    assert reason_of(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert reason_of(UserError(expected="a", found="b", where="c")) == "c: expected a, found b"


def test_events_are_no_part_of_a_store(tmp_path: Path) -> None:
    plain, logged = tmp_path / "plain", tmp_path / "logged"
    fill(plain, header())
    logged.mkdir()
    with begun(logged) as log:
        manifest = fill(logged, header())
        log.write("finished")
    assert manifest.content_digest == fill(plain, header()).content_digest
    assert diff(plain, logged) == []
    assert verify(logged, deep=True) == []
    assert gc(logged, delete=True) == []
    sizes = du(logged)
    assert sizes["events"] == log.path.stat().st_size
    assert sizes["total"] == du(plain)["total"] + sizes["events"]
    exported = convert(logged, tmp_path / "npy", "npy", layers=["output"])
    assert not [path for path in exported if "events" in path.name]
    log.path.write_bytes(b"\x00 damaged")
    assert verify(logged, deep=True) == []
    replace_store(logged)
    assert not logged.exists()


def test_what_is_not_ours_in_the_folder_stays(tmp_path: Path) -> None:
    fill(tmp_path, header())
    with begun(tmp_path):
        pass
    (tmp_path / ".events" / "notes.txt").write_text("mine")
    replace_store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".events"]
    assert [path.name for path in (tmp_path / ".events").iterdir()] == ["notes.txt"]


# ---- what is said of the writers -------------------------------------------------------------------------------------


def states(root: Path, *logs: EventLog) -> list[str]:
    """Return what is said of the writer of each log; two that began at once may be listed in either order."""
    found = {worker.worker: worker.state for worker in summary(root).workers}
    assert found.keys() == {log.path.stem for log in logs}
    return [found[log.path.stem] for log in logs]


def test_alive_dead_silent(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, header())
    writer.pending(LAYERS)
    ours = begun(tmp_path)
    assert states(tmp_path, ours) == ["alive"]
    os.close(ours._file or -1)  # as the kernel does with a dead process
    ours._file = None
    assert states(tmp_path, ours) == ["dead"]
    theirs = begun(tmp_path, elsewhere(), kernel="other")
    assert states(tmp_path, ours, theirs) == ["dead", "alive"]
    os.utime(theirs.path, (1000, 1000))
    assert states(tmp_path, ours, theirs) == ["dead", "silent"]
    theirs.touch()
    assert states(tmp_path, ours, theirs) == ["dead", "alive"]
    os.utime(theirs.path, (1000, 1000))
    lease = Leases(LocalStorage(tmp_path), holder=elsewhere(), kernel=False).take(1)
    assert lease is not None
    assert states(tmp_path, ours, theirs) == ["dead", "alive"], "its lease is renewed"
    found = summary(tmp_path)
    assert {worker.worker: worker.at for worker in found.workers} == {ours.path.stem: (), theirs.path.stem: (1,)}
    assert (found.leased, found.missing) == (1, 2)
    shard = status(tmp_path)[1]
    assert (shard.state, shard.worker) == ("leased", elsewhere().name)
    lease.release()
    theirs.write("failed", reason="out of memory")
    assert states(tmp_path, ours, theirs) == ["dead", "failed"]
    assert summary(tmp_path).failures == {"out of memory": 1}
    theirs.__exit__(None, None, None)


def test_rate_and_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, 10 items each, within 20 seconds since the first began: one a second, three items are left."""
    writer = StoreWriter(tmp_path, header())
    shards = writer.pending(LAYERS)
    assert summary(tmp_path).rate is None
    with begun(tmp_path) as first, begun(tmp_path) as second:
        assert summary(tmp_path).rate is None, "nothing is done yet"
        for log, shard in zip((first, second), shards, strict=False):
            writer.commit(shard, *computed(shard))
            log.write("committed", shard=shard.index, items=shard.stop - shard.start, seconds=1.0)
        logs = event_files(open_storage(tmp_path))
        started = min(json.loads(path.read_text().splitlines()[0])["time"] for path in logs)
        now = datetime.fromisoformat(started).timestamp() + 20
        monkeypatch.setattr("pipeline.store.events.time.time", lambda: now)
        found = summary(tmp_path)
        assert found.rate == pytest.approx(20 / 20)
        assert found.eta == pytest.approx(3.0)
        assert (found.items, found.done_items, found.done) == (23, 20, 2)
        now += 1000
        assert summary(tmp_path).rate is None, "nothing in the last minutes"
    assert summary(tmp_path).rejected == {"truncated image": 1}


def test_layers_that_a_living_worker_was_asked_for(tmp_path: Path) -> None:
    fill(tmp_path, header(), LAYERS[:1])
    assert {shard.state for shard in status(tmp_path)} == {"done"}
    with begun(tmp_path, layers=list(LAYERS)):
        assert {shard.state for shard in status(tmp_path)} == {"missing"}
        assert not summary(tmp_path).finished
    assert {shard.state for shard in status(tmp_path)} == {"done"}, "it is gone"
