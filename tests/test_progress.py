"""Counting rows, and the bar on standard error."""

import threading

import pytest

from pipeline.progress import Meter, Update, progress_bar, silent


def test_rate_and_time_left_count_this_run_alone() -> None:
    told: list[Update] = []
    meter = Meter(told.append, "images", total=100, done=60)
    meter.advance(40)
    assert (told[0].done, told[0].rate, told[0].eta) == (60, 0.0, None)
    assert (told[-1].done, told[-1].total, told[-1].eta) == (100, 100, 0)
    assert told[-1].rate > 0


def test_what_other_workers_do_counts_for_the_whole_and_not_for_the_rate() -> None:
    told: list[Update] = []
    meter = Meter(told.append, "images", total=100, done=60)
    meter.elsewhere(20)
    assert (told[-1].done, told[-1].others, told[-1].rate) == (80, 20, 0.0)
    assert told[-1].eta is not None
    meter.elsewhere(20)
    assert len(told) == 2, "nothing new"
    meter.advance(20)
    assert (told[-1].done, told[-1].eta) == (100, 0)
    meter.advance(5)
    assert told[-1].done == 100, "a shard that two computed counts once"


def test_updates_are_few() -> None:
    told: list[Update] = []
    meter = Meter(told.append, "images", total=10**6)
    for _ in range(1000):
        meter.advance()
    assert len(told) < 200


def test_the_bar_is_drawn_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as progress:
        progress(Update(what="images", message="it will cost this"))
        progress(Update(what="images", done=1, total=4))
        progress(Update(what="images", done=4, total=4))
        progress(Update(what="captions", done=2))
        progress(Update(what="captions", done=9, others=4, rate=2.5))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "it will cost this" in shown.err
    assert "4/4" in shown.err
    assert "2.5 rows/s here" in shown.err


def test_a_bar_of_nothing_is_not_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as progress:
        progress(Update(what="texts"))
    assert capsys.readouterr().err == ""


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(quiet=True) as progress:
        assert progress is silent
        progress(Update(what="images", done=1))
    assert capsys.readouterr().err == ""


def test_what_others_did_before_the_first_row_is_done_already() -> None:
    told: list[Update] = []
    meter = Meter(told.append, "images", 10, 2)
    meter.begin(8)
    assert len(told) == 1, "nothing has changed"
    meter.begin(5)
    meter.elsewhere(3)
    meter.advance(2)
    assert [update.done for update in told] == [2, 5, 8, 10]
    assert told[-1].others == 3


def test_of_two_threads_none_tells_of_less_than_the_other_did() -> None:
    told: list[int] = []

    def tell(update: Update) -> None:
        if update.done == 4:
            other.start()
            other.join(0.2)  # time to overtake
        told.append(update.done)

    meter = Meter(tell, "images", total=10)
    other = threading.Thread(target=meter.advance, args=(6,))
    meter.elsewhere(4)
    other.join(60)
    assert told == [0, 4, 10]
