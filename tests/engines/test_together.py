"""Updates of several workers add up to one count."""

from pipeline.engines.together import Together
from pipeline.progress import Update


def count(done: int, rate: float = 0.0, total: int = 100, others: int = 0) -> Update:
    return Update(what="images", done=done, total=total, rate=rate, others=others)


def test_rows_of_workers_add_up_from_where_the_first_began() -> None:
    heard: list[Update] = []
    together = Together(heard.append)
    for worker, done, rate in ((1, 20, 0), (1, 24, 4), (2, 24, 0), (2, 30, 6), (1, 30, 2)):
        together.tell(worker, count(done, rate))
    assert [update.done for update in heard] == [20, 24, 24, 30, 36]
    assert heard[-1].rate == 8
    assert heard[-1].eta == (100 - 36) / 8


def test_what_workers_see_of_each_other_counts_once() -> None:
    heard: list[Update] = []
    together = Together(heard.append)
    for worker, done, others in ((1, 0, 0), (2, 0, 0), (1, 8, 0), (2, 12, 8), (1, 12, 4)):
        together.tell(worker, count(done, others=others))
    assert [update.done for update in heard] == [0, 0, 8, 12, 12]
    assert not any(update.others for update in heard)


def test_a_lost_worker_keeps_its_rows_and_loses_its_speed() -> None:
    heard: list[Update] = []
    together = Together(heard.append)
    together.tell(1, count(0))
    together.tell(1, count(40, 4))
    together.forget(1)
    together.tell(2, count(30))
    together.tell(2, count(40, 5))
    assert (heard[-1].done, heard[-1].rate) == (50, 5)
    together.tell(2, count(100, 5))
    assert (heard[-1].done, heard[-1].eta) == (100, 0)


def test_one_worker_speaks_for_all() -> None:
    heard: list[str] = []
    together = Together(lambda update: heard.append(update.message))
    for worker, message in ((2, "cost"), (1, "cost"), (2, "note")):
        together.tell(worker, Update(what="images", message=message))
    together.forget(2)
    together.tell(1, Update(what="images", message="another"))
    assert heard == ["cost", "note", "another"]


def test_where_nobody_knows_the_total() -> None:
    heard: list[Update] = []
    Together(heard.append).tell(1, count(7, 2, total=0))
    assert (heard[0].done, heard[0].eta) == (7, None)
