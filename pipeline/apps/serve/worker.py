"""One thread for everything that encodes, because encoders are not thread-safe; questions of one kind go together.

`await worker.ask(key, work, item)` queues an item. The thread takes the oldest, with others of the same key that wait,
up to `batch` of them, and calls `work(items)`, which returns as many results.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

Work = Callable[[Sequence[Any]], Sequence[Any]]


class QueueFullError(Exception):
    """As many questions wait as may wait."""


@dataclass(frozen=True)
class _Job:
    key: Hashable
    work: Work
    item: Any
    future: "Future[Any]" = field(default_factory=Future)


class Worker:
    """A thread with a bounded queue.

    Args:
        limit: How many may wait.
        batch: How many are worked on together.
    """

    def __init__(self, limit: int, batch: int) -> None:
        self._limit, self._batch = limit, batch
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="encoders", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._jobs)

    async def ask(self, key: Hashable, work: Work, item: Any) -> Any:
        """Return what `work` makes of an item, alone or together with others of the same key.

        Raises:
            QueueFullError: As many wait as may, or the worker is closed.
            Exception: Whatever `work` raises for this item.
        """
        job = _Job(key, work, item)
        with self._changed:
            if self._closed or len(self._jobs) >= self._limit:
                raise QueueFullError
            self._jobs.append(job)
            self._changed.notify()
        return await asyncio.wrap_future(job.future)

    def close(self) -> None:
        """Take nothing more, drop what waits, and end the thread when it has finished its batch."""
        with self._changed:
            self._closed = True
            dropped, self._jobs = list(self._jobs), deque()
            self._changed.notify()
        for job in dropped:
            job.future.cancel()
        self._thread.join()

    def _run(self) -> None:
        while jobs := self._take():
            live = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if live:
                self._answer(live)

    def _take(self) -> list[_Job]:
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            if not self._jobs:
                return []
            key = self._jobs[0].key
            taken = [job for job in self._jobs if job.key == key][: self._batch]
            chosen = set(map(id, taken))
            self._jobs = deque(job for job in self._jobs if id(job) not in chosen)
            return taken

    def _answer(self, jobs: list[_Job]) -> None:
        try:
            results = jobs[0].work([job.item for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:  # one bad item must not spoil the others
                self._answer([job])
            return
        for job, result in zip(jobs, results, strict=True):
            job.future.set_result(result)
