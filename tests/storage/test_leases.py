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

from pipeline.storage import leases
from pipeline.storage.contract import Storage
from pipeline.storage.leases import Heartbeat, Lease, LeaseRecord, Leases, lease_name, sightings, this_process
from pipeline.storage.local import LocalStorage, open_storage
from tests.conftest import ROOT
from tests.storage.conftest import Machine
from tests.storage.objects_by_hand import delete, get
from tests.storage.objects_by_hand import names as objects


def here(root: Path, seconds: float = 60.0, *, kernel: bool = True) -> Leases:
    """Return leases of this machine."""
    return Leases(LocalStorage(root), seconds, kernel=kernel)


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


def test_held_until_it_is_released(tmp_path: Path) -> None:
    ours, theirs = here(tmp_path), here(tmp_path)
    lease = ours.take(3)
    assert lease is not None
    assert not lost(lease)
    assert names(tmp_path) == [".00003.lease", ".00003.lock"]
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
    os.utime(tmp_path / ".00000.lease", (0, 0))
    us = here(tmp_path, seconds=60)
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
    assert names(tmp_path) == [".00000.lease", ".00000.lock"]
    lease.release()
    assert names(tmp_path) == []


@pytest.mark.parametrize(("theirs", "ours"), [(600, 60), (60, 600)])
def test_the_longer_time_counts(tmp_path: Path, clock: Any, theirs: float, ours: float) -> None:
    assert elsewhere(tmp_path, theirs).take(0) is not None
    us = here(tmp_path, ours)
    assert us.take(0) is None
    clock.now += 599
    assert us.take(0) is None
    clock.now += 1
    assert us.take(0) is not None


def test_a_file_that_is_no_lease(tmp_path: Path, clock: Any) -> None:
    (tmp_path / lease_name(0)).touch()
    us = here(tmp_path)
    assert us.take(0) is None
    clock.now += 60
    assert us.take(0) is not None
    assert names(tmp_path) == [".00000.lease", ".00000.lock"]


@pytest.mark.parametrize("kernel", [True, False])
def test_a_killed_process(tmp_path: Path, clock: Any, kernel: bool) -> None:
    """Of this machine it is taken over at once; where its lock does not reach, after the lease's time.

    The process renews by its own clock; the observer's is the test's, and moves on at each sign of life.
    """
    code = f"""if True:
        import time
        from pathlib import Path
        from pipeline.storage.leases import Leases
        from pipeline.storage.local import LocalStorage
        lease = Leases(LocalStorage(Path({str(tmp_path)!r})), 0.4, kernel={kernel}).take(0)
        print("held", flush=True)
        time.sleep(600)"""
    us, file = here(tmp_path, 0.4, kernel=kernel), tmp_path / lease_name(0)
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
    us = here(tmp_path, 0.2)
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
    replaced, held = LocalStorage.put_if, list[Any]()

    def meanwhile(*args: Any) -> bool:
        monkeypatch.setattr(LocalStorage, "put_if", replaced)
        lease = quick.take(0)
        assert lease is not None
        lease.release()
        held.append(third.take(0))
        return replaced(*args)

    monkeypatch.setattr(LocalStorage, "put_if", meanwhile)
    assert late.take(0) is None
    assert names(tmp_path) == [".00000.lease"]
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
    living: list[Lease] = []
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
        for name in ("stat", "get", "put_new", "put_if", "delete"):
            patch.setattr(LocalStorage, name, stepping(turns, getattr(LocalStorage, name)))
        while turns.alive:
            turns.go(data.draw(st.sampled_from(sorted(turns.alive))))
            assert len(living) <= 1, "two hold it"
            assert not any(map(lost, living)), "a living holder was robbed"
            if data.draw(st.integers(0, 3)) == 0:
                clock.now += 60
                for lease in living:
                    lease.renew()


def lost(lease: Lease) -> bool:
    path = lease._storage.here / lease.name
    record = LeaseRecord.from_bytes(path.read_bytes()) if path.exists() else None
    return record is None or record.holder != lease.record.holder


def stepping(turns: Turns, function: Callable[..., Any]) -> Callable[..., Any]:
    def step(*args: Any) -> Any:
        turns.step()
        return function(*args)

    return step


RACE = """
import sys, time
from dataclasses import replace
from pathlib import Path
from pipeline.storage.leases import Leases, this_process
from pipeline.storage.local import LocalStorage
root, number = Path(sys.argv[1]), sys.argv[2]
us = Leases(LocalStorage(root), 60, holder=replace(this_process(), kernel=number), kernel=False)
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


# ---- the same in every storage ---------------------------------------------------------------------------------------


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request: pytest.FixtureRequest, machine: Machine, tmp_path: Path) -> Storage:
    if request.param == "local":
        (tmp_path / "store").mkdir()
        return open_storage(tmp_path / "store")
    url = request.getfixturevalue("bucket") if request.param == "s3" else f"memory:/{tmp_path}"
    return open_storage(f"{url}/store")


def other_machine(storage: Storage, name: str, clock: Any) -> Leases:
    """Return one worker's leases; its renewals are called by the test, not by a thread."""
    holder = replace(this_process(), kernel=name)
    found = Leases(storage, 3600, holder=holder, kernel=False)
    found._clock = lambda: float(clock.now)
    return found


def test_one_holds_it_at_a_time(storage: Storage, clock: Any) -> None:
    first, second = (other_machine(storage, name, clock) for name in ("a", "b"))
    held = first.take(7)
    assert held is not None
    assert second.take(7) is None
    other = second.take(8)
    assert other is not None
    held.release()
    again = second.take(7)
    assert again is not None
    assert held.lost
    assert not again.lost
    again.release()
    other.release()
    assert sightings(storage) == []


def test_what_does_not_change_for_long_is_taken_over(storage: Storage, clock: Any) -> None:
    theirs = SimpleNamespace(now=0.0)
    dead, thief = other_machine(storage, "a", clock), other_machine(storage, "b", theirs)
    held = dead.take(0)
    assert held is not None
    assert thief.take(0) is None
    theirs.now = 3599.0
    assert thief.take(0) is None
    held.renew()
    theirs.now = 3601.0
    assert thief.take(0) is None, "it changed"
    theirs.now = 3601.0 + 3599.0
    assert thief.take(0) is None
    theirs.now = 3601.0 + 3600.0
    stolen = thief.take(0)
    assert stolen is not None
    assert held.lost
    held.release()
    assert not stolen.lost
    held.renew()
    assert not stolen.lost
    stolen.release()


def test_of_many_thieves_one_wins(storage: Storage, clock: Any) -> None:
    assert other_machine(storage, "dead", clock).take(0) is not None
    thieves = [other_machine(storage, f"thief-{number}", clock) for number in range(6)]
    assert [thief.take(0) for thief in thieves] == [None] * 6
    clock.now += 3600.0
    won: list[object] = []
    threads = [threading.Thread(target=lambda thief=thief: won.append(thief.take(0))) for thief in thieves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(each is not None for each in won) == 1


def test_a_lease_is_an_object_beside_the_shards(bucket: str, s3: str, machine: Machine) -> None:
    held = Leases(open_storage(f"{bucket}/store"), 0.2).take(3)
    assert held is not None
    assert objects(s3, f"{bucket}/store") == [".00003.lease"] == [lease_name(3)]
    first = get(s3, f"{bucket}/store/.00003.lease")
    for _ in range(2400):
        if get(s3, f"{bucket}/store/.00003.lease") != first:
            break
        threading.Event().wait(0.05)
    assert get(s3, f"{bucket}/store/.00003.lease") != first, "its holder renews it"
    delete(s3, f"{bucket}/store/.00003.lease")
    assert held.lost
    held.release()
    assert objects(s3, f"{bucket}/store") == []


def test_the_whole_store_at_a_url_is_held_among_the_processes_of_a_machine(
    bucket: str, s3: str, machine: Machine
) -> None:
    storage = open_storage(f"{bucket}/store")
    held = Leases(storage).take("store")
    assert held is not None
    assert Leases(storage).take("store") is None
    assert objects(s3, f"{bucket}/store") == []
    held.release()
    assert Leases(storage).take("store") is not None
