"""A worker without a cluster: what it takes over, what it tells, and how failures come back."""

import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pipeline
from pipeline.engines.worker import Done, Failed, News, Seat, Setup, Worker
from pipeline.errors import DamagedStoreError, KeyMismatchError, PipelineError, UnknownNameError, UserError
from pipeline.progress import Update


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """Return a worker whose working folder holds a module of the user's own."""
    monkeypatch.chdir(Path.cwd())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    library = tmp_path / "library"
    library.mkdir()
    (library / "own_module.py").write_text("VALUE = 7\n")
    yield Worker(
        Setup(folder=str(tmp_path), python_path=(str(library),), threads=3, environment={"OMP_NUM_THREADS": "2"})
    )
    sys.modules.pop("own_module", None)


def look(item: str, seat: Seat) -> tuple[str, str, int, int]:
    import own_module  # type: ignore[import-not-found]

    return item, os.environ["OMP_NUM_THREADS"], seat.threads, own_module.VALUE


def test_it_works_where_its_owner_does(worker: Worker, tmp_path: Path) -> None:
    assert worker.ready() == pipeline.__version__
    assert Path.cwd() == tmp_path
    assert worker.run(look, "x") == Done(("x", "2", 3, 7), [])


def tells(item: int, seat: Seat) -> int:
    for done in range(item):
        seat.tell(Update(what="images", done=done))
    seat.tell(Update(what="images", message="said"))
    return item


def test_what_was_not_asked_for_comes_with_the_result(worker: Worker) -> None:
    found = worker.run(tells, 50)
    assert found == Done(50, [Update(what="images", message="said"), Update(what="images", done=49)])
    assert worker.news() == []


def test_news_are_the_newest_counts_and_every_sentence() -> None:
    news = News()
    for number in range(1000):
        news.put(Update(what="images", done=number))
    news.put(Update(what="texts", done=1))
    news.put(Update(what="images", message="a"))
    news.put(Update(what="images", message="b"))
    assert [(update.what, update.done, update.message) for update in news.take()] == [
        ("images", 0, "a"),
        ("images", 0, "b"),
        ("images", 999, ""),
        ("texts", 1, ""),
    ]
    assert news.take() == []


def raises(error: Exception, seat: Seat) -> None:
    raise error


def test_failures_are_answers(worker: Worker) -> None:
    foreseen = UserError(expected="a", found="b")
    assert worker.run(raises, foreseen) == Failed(foreseen)
    disk = OSError(28, "No space left on device", "/x")
    assert worker.run(raises, disk) == Failed(disk)
    other = worker.run(raises, ZeroDivisionError("by\nzero"))
    assert isinstance(other, Failed)
    assert "expected work that ends, found ZeroDivisionError: by zero" in str(other.error)
    assert type(other.error) is PipelineError


@pytest.mark.parametrize(
    "error",
    [
        PipelineError(expected="a", found="b", where="c", remedy="d"),
        UserError(expected="a", found="b"),
        UnknownNameError("layer", "outputs", ["output", "block0"], "--layers"),
        KeyMismatchError([("pooling", "cls", "mean")], "store", "take another"),
        DamagedStoreError("000.h5", "2 rows", "1 row", "store"),
    ],
)
def test_errors_are_the_same_in_another_process(error: PipelineError) -> None:
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is type(error)
    assert vars(other) == vars(error)
    assert (str(other), other.sentence(), other.exit_code) == (str(error), error.sentence(), error.exit_code)
