"""Leases of an object store: one holder, takeover of what does not change, no clock compared."""

import threading
from pathlib import Path

import pytest

from pipeline.remote.binding import bind
from pipeline.remote.lease import ObjectLeases, lease_object
from tests.remote.conftest import Machine
from tests.remote.objects_by_hand import delete, get, names


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["memory", "s3"])
def root(request: pytest.FixtureRequest, machine: Machine, tmp_path: Path) -> Path:
    url = request.getfixturevalue("bucket") if request.param == "s3" else f"memory:/{tmp_path}"
    return bind(f"{url}/store")


def leases(root: Path, clock: Clock) -> ObjectLeases:
    """Return one worker's leases; its renewals are called by the test, not by a thread."""
    return ObjectLeases(root, seconds=3600, clock=clock)


def test_one_holds_it_at_a_time(root: Path) -> None:
    first, second = leases(root, Clock()), leases(root, Clock())
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


def test_what_does_not_change_for_long_is_taken_over(root: Path) -> None:
    mine, theirs = Clock(), Clock()
    dead, thief = leases(root, mine), leases(root, theirs)
    held = dead.take("store")
    assert held is not None
    assert thief.take("store") is None
    theirs.now = 3599.0
    assert thief.take("store") is None
    held.renew()
    theirs.now = 3601.0
    assert thief.take("store") is None, "it changed"
    theirs.now = 3601.0 + 3599.0
    assert thief.take("store") is None
    theirs.now = 3601.0 + 3600.0
    stolen = thief.take("store")
    assert stolen is not None
    assert held.lost
    held.release()
    assert not stolen.lost
    held.renew()
    assert not stolen.lost
    stolen.release()


def test_of_two_thieves_one_wins(bucket: str, s3: str, machine: Machine) -> None:
    root = bind(f"{bucket}/store")
    dead = leases(root, Clock()).take(0)
    assert dead is not None
    clocks = [Clock() for _ in range(6)]
    thieves = [leases(root, clock) for clock in clocks]
    assert [thief.take(0) for thief in thieves] == [None] * 6
    for clock in clocks:
        clock.now = 3600.0
    won: list[object] = []
    threads = [threading.Thread(target=lambda thief=thief: won.append(thief.take(0))) for thief in thieves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(each is not None for each in won) == 1


def test_a_lease_is_an_object_beside_the_shards(bucket: str, s3: str, machine: Machine) -> None:
    held = ObjectLeases(bind(f"{bucket}/store"), seconds=0.2).take(3)
    assert held is not None
    assert names(s3, f"{bucket}/store") == [".00003.lease"] == [lease_object(3)]
    first = get(s3, f"{bucket}/store/.00003.lease")
    for _ in range(2400):
        if get(s3, f"{bucket}/store/.00003.lease") != first:
            break
        threading.Event().wait(0.05)
    assert get(s3, f"{bucket}/store/.00003.lease") != first, "its holder renews it"
    delete(s3, f"{bucket}/store/.00003.lease")
    held.release()
    assert names(s3, f"{bucket}/store") == []
