"""Workers on a Ray cluster, and items handed to whichever of them is free.

A worker that is lost, with its node or alone, is started again where there is room, and its item goes to the first
worker that is free: a shard or a cell that was committed stays, the rest of the item is done again. Ray's own restarts
(`max_restarts`) are not used: they would tie an item to a worker that may never find room again, while others could
finish it. An item that fails stops all.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pipeline
from pipeline.engines.cluster import Cluster
from pipeline.engines.hire import hire
from pipeline.engines.places import Place
from pipeline.engines.worker import Done, Failed, Work
from pipeline.errors import PipelineError, UserError
from pipeline.progress import Update

LOSSES = 3
"""Workers that an item may lose before it is given up."""
_POLL = 0.5
"""Seconds between two questions how far a worker is: it answers with what is newest, so that news never pile up."""
_PATIENCE = 30.0
"""Seconds without any worker before that is said."""


@dataclass(eq=False)
class _Hired:
    """A worker that was asked for."""

    actor: Any
    place: Place
    call: Any
    """What is waited for: that it is ready, or its item's end; None while there is nothing for it to do."""
    ready: bool = False
    position: int | None = None
    asked: Any = None
    """An unanswered question for news."""
    asked_at: float = 0.0


@dataclass(kw_only=True)
class Pool:
    """Does items on workers.

    Args:
        cluster: Where.
        work: A function that a module holds.
        items: What it is called with; small things that can be pickled.
        places: Where workers fit; no more are started than there are items.
        one_ends_all: Whether an item that ends means that nothing is left of those that nobody is at; they give None.
        threads: Threads that a worker at a place computes with; nothing means as many as its CPUs.
        on_done: Is told (position, result) as each item ends.
        tell: Is told (number of the worker, its news); nothing means that nobody asks.
        lost: Is told the number of a worker that is lost.
        say: Takes a sentence for the user.
    """

    cluster: Cluster
    work: Work
    items: Sequence[Any]
    places: Sequence[Place]
    one_ends_all: bool = False
    threads: int | None = None
    on_done: Callable[[int, Any], None] = lambda position, result: None
    tell: Callable[[int, Update], None] | None = None
    lost: Callable[[int], None] = lambda worker: None
    say: Callable[[str], None] = lambda sentence: None
    _hired: list[_Hired] = field(default_factory=list)
    _results: dict[int, Any] = field(default_factory=dict)
    _losses: dict[int, int] = field(default_factory=dict)
    _false_starts: int = 0

    def run(self) -> list[Any]:
        """Return the items' results in their order.

        Raises:
            PipelineError: As an item raised it, or an item lost its worker too often.
        """
        self._waiting = deque(range(len(self.items)))
        self._alone_since = time.monotonic()
        try:
            for place in self.places[: len(self.items)]:
                self._hire(place)
            while len(self._results) < len(self.items):
                self._step()
        finally:
            for hired in self._hired:
                self._dismiss(hired)
        return [self._results[position] for position in range(len(self.items))]

    # ---- workers -----------------------------------------------------------------------------------------------------

    def _hire(self, place: Place) -> None:
        actor = hire(self.cluster.ray, place, threads=self.threads)
        self._hired.append(_Hired(actor, place, actor.ready.remote()))

    def _dismiss(self, hired: _Hired) -> None:
        with suppress(Exception):  # one that is lost already, or a cluster that is
            self.cluster.ray.kill(hired.actor)

    def _lose(self, hired: _Hired, error: Exception) -> None:
        """Start another worker in place of one that is lost; its item waits for the first that is free."""
        self._dismiss(hired)
        self._hired.remove(hired)
        self.lost(id(hired))
        position = hired.position
        if position is None:
            self._false_starts += 1
            losses, limit = self._false_starts, LOSSES * len(self.places)
        else:
            self._waiting.appendleft(position)
            losses = self._losses[position] = self._losses.get(position, 0) + 1
            limit = LOSSES
        if losses > limit:
            raise _given_up(error, started=position is not None)
        self._settle()
        if not self._waiting:
            return
        self._hire(self._another(hired.place))
        for other in self._hired:
            if other.ready and other.call is None:
                self._hand_out(other)

    def _another(self, place: Place) -> Place:
        """Return the same place if its node is there, else the smallest, on any node."""
        if any(node.name == place.node for node in self.cluster.nodes()):
            return place
        smallest = min(self.places, key=lambda each: each.cpus)
        return Place(cpus=smallest.cpus, gpus=smallest.gpus)

    # ---- items -------------------------------------------------------------------------------------------------------

    def _hand_out(self, hired: _Hired) -> None:
        hired.position = self._waiting.popleft() if self._waiting else None
        hired.call = None
        if hired.position is not None:
            hired.call = hired.actor.run.remote(self.work, self.items[hired.position])

    def _step(self) -> None:
        calls = {hired.call: hired for hired in self._hired if hired.call is not None}
        questions = {hired.asked: hired for hired in self._hired if hired.asked is not None}
        answered, _ = self.cluster.ray.wait([*calls, *questions], timeout=_POLL)
        for reference in answered:
            if reference in calls:
                self._end(calls[reference])
            else:
                self._hear(questions[reference])
        self._ask()
        self._look_for_workers()

    def _end(self, hired: _Hired) -> None:
        try:
            found = self.cluster.ray.get(hired.call)
        except self._lost() as error:
            self._lose(hired, error)
            return
        if not hired.ready:
            _same_version(found)
            hired.ready = True
        elif isinstance(found, Failed):
            raise found.error
        elif isinstance(found, Done) and hired.position is not None:
            self._told(hired, found.news)
            self._results[hired.position] = found.result
            self.on_done(hired.position, found.result)
            self._settle()
        self._hand_out(hired)

    def _settle(self) -> None:
        if self.one_ends_all and self._results:
            self._results |= dict.fromkeys(self._waiting)
            self._waiting.clear()

    def _lost(self) -> tuple[type[Exception], ...]:
        """Return what Ray raises where a worker, its node or a call is lost, or a worker cannot start."""
        return (self.cluster.ray.exceptions.RayError,)

    # ---- news --------------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        now = time.monotonic()
        for hired in self._hired:
            working = self.tell is not None and hired.position is not None
            if working and hired.asked is None and now - hired.asked_at > _POLL:
                hired.asked, hired.asked_at = hired.actor.news.remote(), now

    def _hear(self, hired: _Hired) -> None:
        question, hired.asked = hired.asked, None
        with suppress(*self._lost()):  # its item's call says so
            self._told(hired, self.cluster.ray.get(question))

    def _told(self, hired: _Hired, news: Sequence[Update]) -> None:
        for update in news:
            if self.tell is not None:
                self.tell(id(hired), update)

    def _look_for_workers(self) -> None:
        if any(hired.ready for hired in self._hired):
            self._alone_since = time.monotonic()
        elif time.monotonic() - self._alone_since > _PATIENCE:
            self._alone_since = time.monotonic()
            self.say("Waiting for room on the cluster: no worker has started yet.")


def _same_version(version: str) -> None:
    if version != pipeline.__version__:
        raise UserError(
            expected=f"fewpairs {pipeline.__version__} on every node",
            found=version,
            where="--engine ray",
            remedy="install the same version everywhere",
        )


def _given_up(error: Exception, *, started: bool) -> PipelineError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return PipelineError(
        expected="workers that live" if started else "workers that start",
        found=f"{LOSSES + 1} that died: {lines[-1] if lines else type(error).__name__}",
        where="--engine ray",
        remedy="where memory ran out use fewer or larger places (--workers, --jobs); what was finished stays"
        if started
        else "install fewpairs on every node, the same version of Python and of it",
    )
