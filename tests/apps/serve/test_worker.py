"""The one thread: what waits together is worked on together, nothing is lost, and the queue has an end."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.apps.serve.worker import QueueFullError, Worker
from tests.drawing import draws


class Held:
    """Work that waits to be let go, and remembers its batches."""

    def __init__(self) -> None:
        self.go, self.began = threading.Event(), threading.Event()
        self.batches: list[list[Any]] = []

    def __call__(self, items: Sequence[Any]) -> list[Any]:
        self.batches.append(list(items))
        self.began.set()
        self.go.wait(120)
        if any(item == "bad" for item in items):
            raise ValueError("a bad item")
        return [(item, threading.current_thread().name) for item in items]


async def ask_all(worker: Worker, work: Held, keys: Sequence[Any], items: Sequence[Any]) -> list[Any]:
    """Hold the worker with one item, let all others queue up, and let go."""
    first = asyncio.ensure_future(worker.ask("first", work, "first"))
    await asyncio.to_thread(work.began.wait, 120)
    tasks = [asyncio.ensure_future(worker.ask(key, work, item)) for key, item in zip(keys, items, strict=True)]
    await asyncio.sleep(0)
    work.go.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


@settings(max_examples=draws(25))
@given(st.lists(st.sampled_from("abc"), max_size=40), st.integers(1, 8))
def test_every_item_gets_its_own_answer(keys: list[str], batch: int) -> None:
    worker, work = Worker(100, batch), Held()
    items = list(range(len(keys)))
    answers = asyncio.run(ask_all(worker, work, keys, items))
    asyncio.run(worker.close())
    assert [item for item, _ in answers] == items
    assert {name for _, name in answers} <= {"encoders_0"}
    for together in work.batches[1:]:
        assert len(together) <= batch
        assert len({keys[item] for item in together}) == 1
        assert together == sorted(together)
    assert len(work.batches) - 1 == sum(-(-keys.count(key) // batch) for key in set(keys))


def test_a_bad_item_spoils_no_other() -> None:
    worker, work = Worker(10, 10), Held()
    good, bad, other = asyncio.run(ask_all(worker, work, "aaa", ["x", "bad", "y"]))
    asyncio.run(worker.close())
    assert (good[0], other[0]) == ("x", "y")
    assert str(bad) == "a bad item"


def test_the_queue_is_bounded() -> None:
    worker, work = Worker(2, 10), Held()
    answers = asyncio.run(ask_all(worker, work, "aaaa", list("wxyz")))
    assert [answer[0] for answer in answers[:2]] == ["w", "x"]
    assert all(isinstance(answer, QueueFullError) for answer in answers[2:])
    asyncio.run(worker.close())
    with pytest.raises(QueueFullError):
        asyncio.run(worker.ask("a", work, "late"))


def test_clients_take_turns() -> None:
    """The one question of a client stands behind the first of another's many, and none is ever overtaken twice."""

    async def ask() -> list[list[Any]]:
        worker, work = Worker(100, 1), Held()
        first = asyncio.ensure_future(worker.ask("first", work, "first", "a"))
        await asyncio.to_thread(work.began.wait, 120)
        asked = [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("b", 5), ("c", 6)]
        tasks = [asyncio.ensure_future(worker.ask(item, work, item, client)) for client, item in asked]
        await asyncio.sleep(0)
        work.go.set()
        await asyncio.gather(first, *tasks)
        return work.batches

    assert asyncio.run(ask()) == [["first"], [1], [4], [6], [2], [5], [3]]


def test_a_full_queue_has_a_place_for_who_waits_for_less() -> None:
    async def ask() -> list[Any]:
        worker, work = Worker(3, 1), Held()
        first = asyncio.ensure_future(worker.ask("first", work, 0, "a"))
        await asyncio.to_thread(work.began.wait, 120)
        asked = [("a", 1), ("a", 2), ("a", 3), ("a", 4), ("b", 5), ("c", 6), ("d", 7)]
        tasks = [asyncio.ensure_future(worker.ask(item, work, item, client)) for client, item in asked]
        await asyncio.sleep(0)
        work.go.set()
        await first
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(ask())
    assert [type(answer) is QueueFullError for answer in answers] == [False, True, True, True, False, False, True]


def test_who_has_gone_is_not_worked_for() -> None:
    async def go() -> None:
        first = asyncio.ensure_future(worker.ask("first", work, "first"))
        await asyncio.to_thread(work.began.wait, 120)
        gone = asyncio.ensure_future(worker.ask("a", work, "gone"))
        stays = asyncio.ensure_future(worker.ask("b", work, "stays"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        work.go.set()
        assert (await first)[0] == "first"
        assert (await stays)[0] == "stays"

    worker, work = Worker(10, 10), Held()
    asyncio.run(go())
    asyncio.run(worker.close())
    assert ["gone"] not in work.batches


def test_closing_drops_what_waits_and_ends_the_thread() -> None:
    async def go() -> list[Any]:
        first = asyncio.ensure_future(worker.ask("first", work, "first"))
        await asyncio.to_thread(work.began.wait, 120)
        waits = asyncio.ensure_future(worker.ask("a", work, "waits"))
        await asyncio.sleep(0)
        assert worker.waiting == 1
        closing = asyncio.ensure_future(worker.close())
        await asyncio.sleep(0)
        assert not closing.done()
        work.go.set()
        await closing
        return list(await asyncio.gather(first, waits, return_exceptions=True))

    worker, work = Worker(10, 10), Held()
    first, waits = asyncio.run(go())
    assert first[0] == "first"
    assert isinstance(waits, asyncio.CancelledError)
    assert work.batches == [["first"]]
