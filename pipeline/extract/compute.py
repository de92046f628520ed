"""The loop: claim a shard, decode in threads, encode, and let another thread write while the next one is computed.

Batches are cut from the items' own order inside a shard and never cross its end, so neither the number of workers nor
an interruption changes what a row is computed with. A GPU is given the next batch before the last one is waited for.
In memory: the shard at work, the one being written, and a few decoded items.
"""

import csv
import io
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeVar

import numpy as np

from pipeline.errors import UserError
from pipeline.extract.forward import Arrays, Forward, batches_by_length, batches_in_order
from pipeline.extract.items import Items, Prepared, Preparing
from pipeline.progress import Meter
from pipeline.runtime import Share
from pipeline.storage.contract import Storage
from pipeline.storage.local import writing
from pipeline.store.commit import PendingShard, committed
from pipeline.store.events import EventLog
from pipeline.store.manifest import MANIFEST, REJECTED, is_record, shard_index
from pipeline.store.writer import StoreWriter

T = TypeVar("T")
R = TypeVar("R")
Rows = tuple[list[str], Arrays, list[tuple[str, str]]]
"""Ids [N], layer → features [N, D], and (id, reason) of what was rejected."""

_POLL = 0.5
"""Seconds between the first two looks at shards that other processes are computing."""
_LOOK = 1.0
"""Seconds between two looks at what others have committed."""
_LONGEST_POLL = 5.0
"""Seconds between two looks after many: each reads the records of the whole store."""


def in_order(
    pool: ThreadPoolExecutor, function: Callable[[T], R], tasks: Iterable[T], ahead: int
) -> Generator[R, None, None]:
    """Yield `function(task)` in the order of the tasks, computed in the pool, at most `ahead` of them at a time."""
    waiting: deque[Future[R]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@dataclass
class Computation:
    """Computes what is missing of one store.

    Args:
        writer: The store.
        items: What it is made of.
        forward: The encoder at work.
        preparing: What decodes or tokenises.
        max_rejected: Share of the items that may be broken.
        meter: Is told of finished rows.
        batch_size: Rows a batch is cut to; what the device takes at once may be less (see `Forward`).
        share: Which shards are taken first.
        events: Is told of every shard.
    """

    writer: StoreWriter
    items: Items
    forward: Forward
    preparing: Preparing
    max_rejected: float
    meter: Meter
    batch_size: int
    share: Share
    events: EventLog
    shards: set[int] = field(default_factory=set)
    """Shards that this run computed (some layers of)."""
    others: "OtherWorkers" = field(init=False)
    """Counts what other workers commit."""
    rejected: dict[str, str] = field(default_factory=dict)
    """Id → reason of the items that this run and the ones before it found broken."""

    def run(self) -> None:
        """Compute until nothing is missing anywhere; waits for shards that another process is computing.

        Raises:
            UserError: More than the allowed share of the items is broken.
            PipelineError: The disk is full or the device fails.
        """
        self.rejected |= rejected_before(self.writer)
        self._check_rejected([])
        wait = _POLL
        self.others = OtherWorkers(self.writer.root, self.shards)
        self.meter.begin(self.others.watch(self.writer.pending(self.forward.layers)))
        while left := self.writer.pending(self.forward.layers):
            turns = in_turn(left, self.writer.header.shards, self.share.index, self.share.count)
            if self._pass(turns):
                wait = _POLL
            else:
                self.events.touch()
                self.meter.elsewhere(self.others.rows())
                time.sleep(wait)
                wait = min(1.5 * wait, _LONGEST_POLL)
        self.meter.elsewhere(self.others.rows(again=0))

    def _pass(self, left: Sequence[PendingShard]) -> int:
        """Compute those of the shards that nobody else is at; return how many."""
        took, written = 0, None
        with ExitStack() as stack:
            claims = stack.enter_context(Claims(self.writer, self.events))
            committer = stack.enter_context(ThreadPoolExecutor(1, "write"))
            modality = self.forward.encoder.modality
            threads, several = self.preparing.threads(modality), self.preparing.at_once(modality)
            decoders = stack.enter_context(ThreadPoolExecutor(threads, "decode"))
            tasks = self._tasks(claims.take(left), several)
            waiting = self.forward.batch_size // (several if modality == "image" else 1)  # texts take little room
            ahead = 2 * threads + waiting
            results = stack.enter_context(closing(in_order(decoders, self._prepare, tasks, ahead)))
            for shard, group in groupby(results, key=lambda result: result[0]):
                rows = self._encode(shard, (item for _, some in group for item in some))
                if written:
                    written.result()
                self._check_rejected(rows[2])
                written = committer.submit(self._commit, claims, shard, rows)
                took += 1
            if written:
                written.result()
        return took

    @staticmethod
    def _tasks(shards: Iterable[PendingShard], several: int) -> Iterator[tuple[PendingShard, range]]:
        for shard in shards:
            for start in range(shard.start, shard.stop, several):
                yield shard, range(start, min(start + several, shard.stop))

    def _prepare(self, task: tuple[PendingShard, range]) -> tuple[PendingShard, list[Prepared]]:
        shard, positions = task
        return shard, self.preparing(self.forward.encoder, [self.items.at(position) for position in positions])

    def _encode(self, shard: PendingShard, items: Iterable[Prepared]) -> Rows:
        rejected: list[Prepared] = []
        features = self.forward.empty(shard.stop - shard.start, shard.layers)
        done = np.zeros(shard.stop - shard.start, bool)
        cut = batches_by_length if self.forward.encoder.modality == "text" else batches_in_order
        for rows, values in self._features(shard, cut(self._sound(items, rejected), self.batch_size)):
            for name, array in values.items():
                features[name][rows] = array
            done[rows] = True
            self.meter.advance(len(rows))
        names = self.items.samples.sample_id
        kept = features if done.all() else {name: array[done] for name, array in features.items()}
        ids = [names[shard.start + int(row)] for row in np.flatnonzero(done)]
        return ids, kept, [(names[item.position], item.reason) for item in rejected]

    def _features(
        self, shard: PendingShard, batches: Iterable[Sequence[Prepared]]
    ) -> Iterator[tuple[list[int], Arrays]]:
        """Yield rows of the shard and their features; a GPU has the next batch before this one is waited for."""
        started: deque[tuple[list[int], Callable[[], Arrays]]] = deque()
        for batch in batches:
            tensors = [item.tensor for item in batch if item.tensor is not None]
            started.append(([item.position - shard.start for item in batch], self.forward.start(tensors, shard.layers)))
            if len(started) > 1:
                rows, finish = started.popleft()
                yield rows, finish()
        for rows, finish in started:
            yield rows, finish()

    def _sound(self, items: Iterable[Prepared], rejected: list[Prepared]) -> Iterator[Prepared]:
        for item in items:
            if item.tensor is None:
                rejected.append(item)
                self.meter.advance()
            else:
                yield item

    def _commit(self, claims: "Claims", shard: PendingShard, rows: Rows) -> None:
        ids, _, rejected = rows
        if self.writer.holds(shard.index):
            self.writer.commit(shard, *rows)
            self.shards.add(shard.index)
            self.events.write(
                "committed",
                shard=shard.index,
                items=shard.stop - shard.start,
                rows=len(ids),
                seconds=round(claims.seconds(shard.index), 3),
                layers=shard.layers,
                rejected=Counter(reason for _, reason in rejected),
            )
        else:  # this process stalled for so long that others took it over
            self.events.write("lost", shard=shard.index)
        self.meter.elsewhere(self.others.rows())
        claims.release(shard.index)

    def _check_rejected(self, rejected: list[tuple[str, str]]) -> None:
        self.rejected |= dict(rejected)
        root, found = self.writer.root, list(self.rejected.items())
        try:
            self.items.require_sound(found, self.max_rejected, str(root / REJECTED))
        except UserError:
            if root.stat(MANIFEST) is None:  # a finished store has its whole table already
                write_rejected(root, found)
            raise


def rejected_before(writer: StoreWriter) -> dict[str, str]:
    """Return id → reason of what the committed shards of a store left out."""
    done = committed(writer.root, writer.header)
    return {item_id: reason for files in done.values() for file in files for item_id, reason in file.rejected}


class Claims:
    """The shards that this process has claimed and not yet committed; all are let go at the end."""

    def __init__(self, writer: StoreWriter, events: EventLog) -> None:
        self._writer, self._events = writer, events
        self._held: dict[int, ExitStack] = {}
        self._since: dict[int, float] = {}

    def __enter__(self) -> "Claims":
        return self

    def __exit__(self, *_: object) -> None:
        for index in list(self._held):
            self.release(index)

    def take(self, shards: Iterable[PendingShard]) -> Iterator[PendingShard]:
        """Yield those shards that nobody else holds, each claimed until `release`."""
        for shard in shards:
            with ExitStack() as stack:
                if stack.enter_context(self._writer.claim(shard.index)):
                    self._held[shard.index] = stack.pop_all()
                    self._since[shard.index] = time.monotonic()
                    self._events.write("claimed", shard=shard.index)
                    yield shard

    def seconds(self, index: int) -> float:
        """Return for how long a shard has been held."""
        return time.monotonic() - self._since[index]

    def release(self, index: int) -> None:
        """Let a shard go."""
        self._held.pop(index).close()


def in_turn(pending: Sequence[PendingShard], shards: int, index: int, count: int) -> list[PendingShard]:
    """Return the pending shards in the order in which worker `index` of `count` takes them.

    Args:
        pending: What is missing, in order.
        shards: How many shards the store has.
        index: Which worker.
        count: How many workers.
    """
    blocks = [(worker * shards // count, (worker + 1) * shards // count) for worker in range(count)]
    turns = [blocks[(index + step) % count] for step in range(count)]
    own, *others = ([shard for shard in pending if start <= shard.index < stop] for start, stop in turns)
    return [*own, *(shard for block in others for shard in reversed(block))]


class OtherWorkers:
    """Counts the rows of shards that were pending when this worker began and that others have committed since.

    Make it first and ask what is pending then: a shard that is committed in between is done, and not counted here.

    Args:
        root: The store.
        own: Shards that this worker committed; grows while it works.
    """

    def __init__(self, root: Storage, own: set[int]) -> None:
        self._root, self._own = root, own
        self._rows: dict[int, int] = {}
        self._before = self._names()
        self._looked, self._found = time.monotonic(), 0

    def watch(self, pending: Sequence[PendingShard]) -> int:
        """Count these shards from now on; return how many rows they have."""
        self._rows = {shard.index: shard.stop - shard.start for shard in pending}
        return sum(self._rows.values())

    def rows(self, again: float = _LOOK) -> int:
        """Return how many there are; what was found less than `again` seconds ago counts as now."""
        if time.monotonic() - self._looked >= again:
            self._looked = time.monotonic()
            new = {shard_index(name) for name in self._names() - self._before} - self._own
            self._found = sum(self._rows.get(index, 0) for index in new if index is not None)
        return self._found

    def _names(self) -> set[str]:
        return {path.name for path in self._root.here.iterdir() if is_record(path.name)}


def write_rejected(root: Storage, rejected: Sequence[tuple[str, str]]) -> None:
    """Write the table of a store that is not finished.

    Raises:
        PipelineError: The disk does not take it.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("sample_id", "reason"), *rejected])
    with writing(root, REJECTED):
        root.put(REJECTED, text.getvalue().encode())
