"""One thread for everything that encodes, because encoders are not thread-safe; questions of one kind go together.

`await worker.ask(key, work, item, client)` queues an item. The oldest is taken, with others of the same key that wait,
up to `batch` of them, and the thread calls `work(items)`, which returns as many results. All else happens in the event
loop.

Clients take turns: a client's second question stands behind everybody's first. Where the queue is full, whoever waits
for less than another client has a place all the same, and the last question of the one who waits for most is refused.
"""

import asyncio
from bisect import insort
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

Work = Callable[[Sequence[Any]], Sequence[Any]]


class QueueFullError(Exception):
    """As many questions wait as may wait."""


@dataclass(frozen=True, eq=False)
class _Job:
    key: Hashable
    work: Work
    item: Any
    client: str
    turn: int
    """The round that it belongs to: of every client one question a round."""
    future: "asyncio.Future[Any]"


class Worker:
    """A thread with a bounded queue.

    Args:
        limit: How many may wait.
        batch: How many are worked on together.
    """

    def __init__(self, limit: int, batch: int) -> None:
        self._limit, self._batch = limit, batch
        self._jobs: list[_Job] = []
        self._turn = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoders")
        self._working: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._jobs)

    async def ask(self, key: Hashable, work: Work, item: Any, client: str = "") -> Any:
        """Return what `work` makes of an item, alone or together with others of the same key.

        Raises:
            QueueFullError: As many wait as may, none of them of a client who waits for more, or the worker is closed.
            Exception: Whatever `work` raises for this item.
        """
        turn = max([self._turn, *(job.turn + 1 for job in self._jobs if job.client == client)])
        if len(self._jobs) >= self._limit:
            self._make_room(turn)
        job = _Job(key, work, item, client, turn, asyncio.get_running_loop().create_future())
        insort(self._jobs, job, key=lambda each: each.turn)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await job.future

    def _make_room(self, turn: int) -> None:
        """Refuse the last question of the client who waits for most, or the one that would be as late itself."""
        if not self._limit or not self._jobs or self._jobs[-1].turn <= turn:
            raise QueueFullError
        last = self._jobs.pop()
        if not last.future.done():
            last.future.set_exception(QueueFullError())

    async def close(self) -> None:
        """Take nothing more, drop what waits, and end the thread when it has finished its batch."""
        self._limit = 0
        for job in self._jobs:
            job.future.cancel()
        if self._working is not None:
            await self._working
        self._thread.shutdown()

    async def _work(self) -> None:
        while self._jobs:
            key, self._turn = self._jobs[0].key, self._jobs[0].turn
            taken = [job for job in self._jobs if job.key == key][: self._batch]
            self._jobs = [job for job in self._jobs if job not in taken]
            await self._answer([job for job in taken if not job.future.done()])  # done: who asked has gone

    async def _answer(self, jobs: Sequence[_Job]) -> None:
        if not jobs:
            return
        items = [job.item for job in jobs]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, jobs[0].work, items)
        except Exception as error:
            if len(jobs) == 1 and not jobs[0].future.done():
                jobs[0].future.set_exception(error)
            for job in jobs if len(jobs) > 1 else ():  # one bad item must not spoil the others
                await self._answer([job])
            return
        for job, result in zip(jobs, results, strict=True):
            if not job.future.done():
                job.future.set_result(result)
