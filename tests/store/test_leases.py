"""Leases in a store: a stalled writer knows that it lost a shard; what others hold is left alone."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.storage import leases
from pipeline.storage.leases import Heartbeat, Leases, this_process
from pipeline.storage.local import LocalStorage, temp_file
from pipeline.store.cleaning import gc, replace_store
from pipeline.store.inspect import verify
from pipeline.store.writer import StoreWriter
from tests.store.building import LAYERS, computed, fill, header


def elsewhere(root: Path, seconds: float = 60.0, machine: str = "other") -> Leases:
    """Return leases of another machine, whose locks reach nobody here."""
    return Leases(
        LocalStorage(root), seconds, holder=replace(this_process(), kernel=machine, host=machine), kernel=False
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the observers' clock, which only moves when it is told to; nobody renews by itself."""
    found = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: found.now))
    monkeypatch.setattr(Heartbeat, "_renew", lambda self, idle: None)
    return found


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_writer_that_was_taken_for_dead_knows_it(tmp_path: Path, clock: Any) -> None:
    stalled, thief = (StoreWriter(tmp_path, header(), elsewhere(tmp_path, 60, name)) for name in ("a", "b"))
    stalled.pending(LAYERS)
    thief.pending(LAYERS)
    with stalled.claim(0) as mine:
        assert mine
        assert stalled.holds(0)
        with thief.claim(0) as theirs:
            assert not theirs
        clock.now += 61
        with thief.claim(0) as theirs:
            assert theirs
            assert thief.holds(0)
            assert not stalled.holds(0)
    assert not [name for name in names(tmp_path) if name.endswith(".lease")]


def test_two_holders_at_once_do_no_harm(tmp_path: Path) -> None:
    first, second = (StoreWriter(tmp_path, header(), elsewhere(tmp_path, 60, name)) for name in ("a", "b"))
    for writer in (first, second):
        writer._leases = elsewhere(tmp_path / "nowhere", 60)  # each sees its own leases alone
    (tmp_path / "nowhere").mkdir()
    shards = first.pending(LAYERS)
    for shard in shards:
        first.commit(shard, *computed(shard))
        second.commit(shard, *computed(shard))
    (tmp_path / "nowhere").rmdir()
    assert fill(tmp_path, header()).content_digest == fill(tmp_path / "alone", header()).content_digest
    assert verify(tmp_path, deep=True) == []


def test_what_another_machine_is_at_is_left_alone(tmp_path: Path) -> None:
    """Nobody sweeps its temp files, collects its shards or replaces its store, though no lock of it is seen here."""
    fill(tmp_path, header(), LAYERS[:1])
    there = elsewhere(tmp_path)
    there_lease = there.take(1)
    assert there_lease is not None
    temp, loose = (tmp_path / f".{n:05d}-00000000.h5.0123456789abcdef.tmp" for n in (1, 2))
    extra = StoreWriter(tmp_path, header())
    (shard, *_) = extra.pending(LAYERS)
    extra.commit(shard, *computed(shard))
    del extra
    for path in (temp, loose):
        path.touch()
    assert [each.name for each in gc(tmp_path)] == [loose.name]
    StoreWriter(tmp_path, header())
    assert temp.exists()
    assert not loose.exists()
    with pytest.raises(Exception, match=r"expected a store that nobody writes, found \.00001\.lease held by a live"):
        replace_store(tmp_path)
    old = 1000.0
    os.utime(tmp_path / ".00001.lease", (old, old))  # silent for far more than ten times its seconds
    found = {each.name: each.reason for each in gc(tmp_path, delete=True)}
    assert found[".00001.lease"] == "lease of a dead process"
    assert found[temp.name] == "temp file of a dead process"
    assert sum(reason == "not in the manifest" for reason in found.values()) == 2
    assert verify(tmp_path, deep=True) == []
    there_lease.release()


def test_leases_of_this_machines_dead_go_when_the_next_writer_comes(tmp_path: Path) -> None:
    fill(tmp_path, header())
    lease = Leases(LocalStorage(tmp_path)).take(2)
    assert lease is not None
    with temp_file(tmp_path / "samples.parquet") as living:
        StoreWriter(tmp_path, header())
        assert {".00002.lease", living.name} <= set(names(tmp_path))
        lease._kernel.close()  # as the kernel does with a dead process
        StoreWriter(tmp_path, header())
        assert ".00002.lease" not in names(tmp_path)
