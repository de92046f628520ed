"""Leases: one holder at a time, dead ones are taken over by one thief alone, living ones never."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pipeline.remote.heartbeat import Heartbeat
from pipeline.store import inspect, lease_files, leases
from pipeline.store.atomic import temp_file
from pipeline.store.holder import this_process
from pipeline.store.layout import lease_name
from pipeline.store.leases import FileLeases
from pipeline.store.writer import StoreWriter
from tests.conftest import ROOT
from tests.store.building import LAYERS, computed, fill, header


def elsewhere(root: Path, seconds: float = 60.0, machine: str = "other") -> FileLeases:
    """Return leases of another machine, whose locks reach nobody here."""
    return FileLeases(root, seconds, holder=replace(this_process(), kernel=machine, host=machine), kernel=False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the observers' clock, which only moves when it is told to; nobody renews by itself."""
    found = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: found.now))
    monkeypatch.setattr(Heartbeat, "_renew", lambda self, idle: None)
    return found


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_held_until_it_is_released(tmp_path: Path) -> None:
    ours, theirs = FileLeases(tmp_path), FileLeases(tmp_path)
    lease = ours.take(3)
    assert lease is not None
    assert not lost(lease)
    assert names(tmp_path) == [".00003.0.lease", ".00003.lock"]
    assert theirs.take(3) is None
    assert ours.take(3) is None, "not twice by one either"
    other = theirs.take(4)
    assert other is not None
    other.release()
    lease.release()
    assert lease.lost
    assert names(tmp_path) == []
    again = theirs.take(3)
    assert again is not None
    again.release()


def test_another_machine_is_watched_and_not_timed(tmp_path: Path, clock: Any) -> None:
    """Its file may be as old as it likes: what counts is that it does not change while we look."""
    held = elsewhere(tmp_path, seconds=60).take(0)
    assert held is not None
    os.utime(tmp_path / ".00000.0.lease", (0, 0))
    us = FileLeases(tmp_path, seconds=60)
    assert us.take(0) is None
    clock.now += 59
    assert us.take(0) is None
    held.renew()
    clock.now += 59
    assert us.take(0) is None, "it lives"
    clock.now += 60
    lease = us.take(0)
    assert lease is not None
    assert held.lost
    assert not lease.lost
    held.renew()
    held.release()
    assert not lease.lost, "a stalled holder that wakes up does not disturb the next one"
    assert names(tmp_path) == [".00000.1.lease", ".00000.lock"]
    lease.release()
    assert names(tmp_path) == []


@pytest.mark.parametrize(("theirs", "ours"), [(600, 60), (60, 600)])
def test_the_longer_time_counts(tmp_path: Path, clock: Any, theirs: float, ours: float) -> None:
    assert elsewhere(tmp_path, theirs).take(0) is not None
    us = FileLeases(tmp_path, ours)
    assert us.take(0) is None
    clock.now += 599
    assert us.take(0) is None
    clock.now += 1
    assert us.take(0) is not None


def test_a_file_that_a_dying_holder_left_empty(tmp_path: Path, clock: Any) -> None:
    (tmp_path / lease_name(0, 4)).touch()
    us = FileLeases(tmp_path)
    assert us.take(0) is None
    clock.now += 60
    assert us.take(0) is not None
    assert names(tmp_path) == [".00000.5.lease", ".00000.lock"]


@pytest.mark.parametrize("kernel", [True, False])
def test_a_killed_process(tmp_path: Path, clock: Any, kernel: bool) -> None:
    """Of this machine it is taken over at once; where its lock does not reach, after the lease's time.

    The process renews by its own clock; the observer's is the test's, and moves on at each sign of life.
    """
    code = f"""if True:
        import time
        from pathlib import Path
        from pipeline.store.leases import FileLeases
        lease = FileLeases(Path({str(tmp_path)!r}), 0.4, kernel={kernel}).take(0)
        print("held", flush=True)
        time.sleep(600)"""
    us, file = FileLeases(tmp_path, 0.4, kernel=kernel), tmp_path / lease_name(0, 0)
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        for _ in range(4):
            assert us.take(0) is None, "it is renewed, though its time has long passed"
            last = file.read_bytes()
            while file.read_bytes() == last:
                assert process.poll() is None
                threading.Event().wait(0.01)
            clock.now += 0.4
        process.send_signal(signal.SIGKILL)
    lease = us.take(0)
    assert (lease is not None) == kernel
    clock.now += 0.3
    lease = lease or us.take(0)
    assert (lease is not None) == kernel
    clock.now += 0.2
    lease = lease or us.take(0)
    assert lease is not None
    lease.release()
    assert names(tmp_path) == []


def test_nobody_is_left_to_renew_when_all_are_released(tmp_path: Path) -> None:
    before = threading.enumerate()
    us = FileLeases(tmp_path, 0.2)
    held = [lease for what in range(3) if (lease := us.take(what))]
    threads = [thread for thread in threading.enumerate() if thread.name == "leases" and thread not in before]
    assert len(threads) == 1
    for lease in held:
        lease.release()
    threads[0].join(120)
    assert not threads[0].is_alive()


def test_a_thief_that_comes_too_late(tmp_path: Path, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its look and its grip another took the dead lease over and let it go, and a third took what was free."""
    assert elsewhere(tmp_path, 60, "dead").take(0) is not None
    late, quick, third = (elsewhere(tmp_path, 60, name) for name in ("late", "quick", "third"))
    assert [late.take(0), quick.take(0)] == [None, None]
    clock.now += 60
    created, held = leases._created, list[Any]()

    def meanwhile(path: Path, data: bytes) -> bool:
        monkeypatch.setattr(leases, "_created", created)
        lease = quick.take(0)
        assert lease is not None
        lease.release()
        held.append(third.take(0))
        return created(path, data)

    monkeypatch.setattr(leases, "_created", meanwhile)
    assert late.take(0) is None
    assert names(tmp_path) == [".00000.0.lease"]
    assert not held[0].lost


class Turns:
    """Lets one of several threads at a time do its next step on the disk, in an order that the test chooses."""

    def __init__(self, works: Sequence[Callable[[], None]]) -> None:
        self.gates = [threading.Semaphore(0) for _ in works]
        self.back = threading.Semaphore(0)
        self.alive = set(range(len(works)))
        self.own = threading.local()
        for number, work in enumerate(works):
            threading.Thread(target=self._run, args=(number, work), daemon=True).start()

    def _run(self, number: int, work: Callable[[], None]) -> None:
        self.own.number = number
        self.gates[number].acquire()
        try:
            work()
        finally:
            self.alive.discard(number)
            self.back.release()

    def step(self) -> None:
        """Wait for the next turn of this thread."""
        if hasattr(self.own, "number"):
            self.back.release()
            self.gates[self.own.number].acquire()

    def go(self, number: int) -> None:
        """Give a thread its turn, and wait until it is done with it."""
        self.gates[number].release()
        assert self.back.acquire(timeout=120), "a step that does not end"


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(st.data())
def test_whatever_the_order_of_their_steps_one_thief_wins(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Three begin at a dead lease: one lets go of what it wins, one dies of it, one keeps it and renews."""
    root = tmp_path_factory.mktemp("race")
    thieves = [elsewhere(root, 60, f"machine-{number}") for number in range(3)]
    living: list[leases.FileLease] = []
    clock = SimpleNamespace(now=0.0)

    def steal(number: int) -> None:
        for _ in range(3):
            lease = thieves[number].take(0)
            if lease is not None and number != 1:
                living.append(lease)
                turns.step()
                if number == 0:
                    living.remove(lease)
                    lease.release()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: clock.now))
        patch.setattr(Heartbeat, "_renew", lambda self, idle: None)
        assert elsewhere(root, 60, "dead").take(0) is not None
        assert [thief.take(0) for thief in thieves] == [None] * 3
        turns = Turns([lambda number=number: steal(number) for number in range(3)])  # type: ignore[misc]
        for name in ("lease_files", "read_lease", "_created"):
            patch.setattr(leases, name, stepping(turns, getattr(leases, name)))
        while turns.alive:
            turns.go(data.draw(st.sampled_from(sorted(turns.alive))))
            assert len(living) <= 1, "two hold it"
            assert not any(map(lost, living)), "a living holder was robbed"
            if data.draw(st.integers(0, 3)) == 0:
                clock.now += 60
                for lease in living:
                    lease.renew()


def lost(lease: leases.FileLease) -> bool:
    left = lease_files.read_lease(lease._path)
    record = lease_files.LeaseRecord.from_bytes(left or b"")
    return record is None or record.holder != lease._record.holder


def stepping(turns: Turns, function: Callable[..., Any]) -> Callable[..., Any]:
    def step(*args: Any) -> Any:
        turns.step()
        return function(*args)

    return step


RACE = """
import sys, time
from dataclasses import replace
from pathlib import Path
from pipeline.store.holder import this_process
from pipeline.store.leases import FileLeases
root, number = Path(sys.argv[1]), sys.argv[2]
us = FileLeases(root, 60, holder=replace(this_process(), kernel=number), kernel=False)
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    lease = us.take(0)
    if lease is None:
        time.sleep(0.001)
        continue
    mark = root / f"in-{number}"
    mark.touch()
    alone = len(list(root.glob("in-*"))) == 1
    time.sleep(0.002)
    alone = alone and len(list(root.glob("in-*"))) == 1
    mark.unlink()
    lease.release()
    sys.stdout.write("1" if alone else "0")
"""


@pytest.mark.parametrize("seconds", [1.0, pytest.param(20.0, marks=pytest.mark.slow)])
def test_processes_take_turns(tmp_path: Path, seconds: float) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    runs = [
        subprocess.Popen([*command, f"m{number}", str(seconds)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for number in range(3)
    ]
    answers = [run.communicate(timeout=120)[0] for run in runs]
    assert all(run.returncode == 0 for run in runs)
    assert set("".join(answers)) == {"1"}, "never two at once"
    assert names(tmp_path) == []


# ---- leases in a store -----------------------------------------------------------------------------------------------


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
    assert inspect.verify(tmp_path, deep=True) == []


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
    assert [each.name for each in inspect.gc(tmp_path)] == [loose.name]
    StoreWriter(tmp_path, header())
    assert temp.exists()
    assert not loose.exists()
    with pytest.raises(Exception, match=r"expected a store that nobody writes, found \.00001\.0\.lease held by a live"):
        inspect.replace_store(tmp_path)
    old = 1000.0
    os.utime(tmp_path / ".00001.0.lease", (old, old))  # silent for far more than ten times its seconds
    found = {each.name: each.reason for each in inspect.gc(tmp_path, delete=True)}
    assert found[".00001.0.lease"] == "lease of a dead process"
    assert found[temp.name] == "temp file of a dead process"
    assert sum(reason == "not in the manifest" for reason in found.values()) == 2
    assert inspect.verify(tmp_path, deep=True) == []
    there_lease.release()


def test_leases_of_this_machines_dead_go_when_the_next_writer_comes(tmp_path: Path) -> None:
    fill(tmp_path, header())
    lease = FileLeases(tmp_path).take(2)
    assert lease is not None
    with temp_file(tmp_path / "samples.parquet") as living:
        StoreWriter(tmp_path, header())
        assert {".00002.0.lease", living.name} <= set(names(tmp_path))
        lease._kernel.close()  # as the kernel does with a dead process
        StoreWriter(tmp_path, header())
        assert ".00002.0.lease" not in names(tmp_path)
