"""What needs no Ray: updates of several workers add up to one count; another version of the package is refused."""

import itertools
import re
import time
from pathlib import Path

import pytest

import pipeline
from pipeline.engines.ray_engine import Total, run
from pipeline.errors import UserError
from pipeline.progress import Update

Told = tuple[int, str, Update]


@pytest.fixture(autouse=True)
def _a_second_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each look at the clock be a second after the last, so that no update is left out."""
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))


def count(worker: int, done: int, others: int = 0, total: int = 100, process: str = "") -> Told:
    update = Update(what="images", done=done, total=total, rate=9.0, others=others)
    return worker, process or f"process {worker}", update


def heard(*told: Told) -> list[Update]:
    updates: list[Update] = []
    total = Total(updates.append)
    for each in told:
        total.tell(*each)
    return updates


def dones(updates: list[Update]) -> list[int]:
    """Return the counts without repetitions: the first worker's first count is told twice."""
    return [done for done, _ in itertools.groupby(update.done for update in updates)]


def test_rows_of_workers_add_up_from_where_the_first_began() -> None:
    found = heard(count(1, 20), count(1, 24), count(2, 24), count(2, 30), count(1, 30))
    assert dones(found) == [20, 24, 30, 36]
    assert found[-1].rate * 3 > found[-1].eta / 64 > 0  # type: ignore[operator]


def test_the_rate_is_that_of_all() -> None:
    last = heard(count(1, 0), count(2, 0), count(1, 8), count(2, 12))[-1]
    assert last.rate == pytest.approx(20 / (20 / last.rate))
    assert last.eta == pytest.approx((100 - 20) / last.rate)


def test_what_workers_see_of_each_other_counts_once() -> None:
    found = heard(count(1, 0), count(2, 0), count(1, 8), count(2, 12, others=8), count(1, 12, others=4))
    assert dones(found) == [0, 8, 12]
    assert not any(update.others for update in found)


def test_a_lost_worker_keeps_its_rows_and_its_follower_begins_anew() -> None:
    again = "another process"
    found = heard(count(1, 0), count(1, 40), count(2, 0), count(1, 30, process=again), count(1, 40, process=again))
    assert found[-1].done == 50
    found = heard(count(1, 0), count(1, 40), count(1, 30, process=again), count(1, 100, process=again))
    assert (found[-1].done, found[-1].eta) == (100, 0)


def test_one_worker_speaks_for_all() -> None:
    messages = [(2, "cost"), (1, "cost"), (2, "note"), (1, "note")]
    found = heard(*((worker, "", Update(what="images", message=message)) for worker, message in messages))
    assert [update.message for update in found] == ["cost", "note"]


def test_where_nobody_knows_the_total() -> None:
    (first, *_) = heard(count(1, 7, total=0))
    assert (first.done, first.eta) == (7, None)


def test_work_is_done_as_its_owner_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    origin = str(tmp_path), {"PYTHONPATH": ""}
    assert run(origin, pipeline.__version__, Path.cwd) == tmp_path


def test_another_version_is_refused() -> None:
    message = rf"expected fewpairs 0\.0\.0 on every node, found {re.escape(pipeline.__version__)}; install the same"
    with pytest.raises(UserError, match=message):
        run(("/", {"PYTHONPATH": ""}), "0.0.0", Path.cwd)
