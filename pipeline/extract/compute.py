"""The loop: claim a shard, decode in threads, encode, and let another thread write while the next one is computed.

Batches are cut from the items' own order inside a shard and never cross its end, so neither the number of workers nor
an interruption changes what a row is computed with. A GPU is given the next batch before the last one is waited for.
In memory: the shard at work, the one being written, and a few decoded items.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, groupby, islice, pairwise
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.encoders.base import Encoder
from pipeline.errors import PipelineError, UserError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.items import Items, Prepared, Preparing, prepare
from pipeline.progress import Meter
from pipeline.runtime import resolve_device, torch_dtype
from pipeline.storage.contract import Storage
from pipeline.storage.local import writing
from pipeline.store.commit import PendingShard, committed
from pipeline.store.events import EventLog
from pipeline.store.key import storage_dtype
from pipeline.store.manifest import MANIFEST, REJECTED, is_record, shard_index
from pipeline.store.samples import rejected_bytes
from pipeline.store.writer import StoreWriter

T = TypeVar("T")
R = TypeVar("R")
Arrays = dict[str, NDArray[np.generic]]
"""Layer → features [N, D]."""
Started = tuple[list[int], Callable[[], Arrays]]
"""Rows of a shard, and what waits for their features."""
Rows = tuple[list[str], Arrays, list[tuple[str, str]]]
"""Ids [N], their features, and (id, reason) of what was rejected."""

_POLL = 0.5
"""Seconds between the first two looks at shards that other processes are computing."""
_LOOK = 1.0
"""Seconds between two looks at what others have committed."""
_LONGEST_POLL = 5.0
"""Seconds between two looks after many: each reads the records of the whole store."""


@dataclass
class Computation:
    """Computes what is missing of one store.

    Args:
        writer: The store.
        items: What it is made of.
        forward: The encoder at work.
        preparing: What decodes or tokenises.
        config: Which worker of how many this is, and the share of the items that may be broken.
        meter: Is told of finished rows.
        events: Is told of every shard.
    """

    writer: StoreWriter
    items: Items
    forward: "Forward"
    preparing: Preparing
    config: ExtractConfig
    meter: Meter
    events: EventLog
    shards: set[int] = field(default_factory=set)
    """Shards that this run computed (some layers of)."""
    rejected: dict[str, str] = field(default_factory=dict)
    """Id → reason of the items that this run and the ones before it found broken."""

    def __post_init__(self) -> None:
        self._batch_size = self.forward.batch_size  # what batches are cut to, though the device may take less at once
        self._others = OtherWorkers(self.writer.root, self.shards)
        self._claimed: dict[int, tuple[ExitStack, float]] = {}
        """Shard → what lets go of it, and since when it has been held."""

    def run(self) -> None:
        """Compute until nothing is missing anywhere; waits for shards that another process is computing.

        Raises:
            UserError: More than the allowed share of the items is broken.
            PipelineError: The disk is full or the device fails.
        """
        before = committed(self.writer.root, self.writer.header).values()
        self._reject([pair for files in before for file in files for pair in file.rejected])
        wait = _POLL
        self.meter.begin(self._others.watch(self.writer.pending(self.forward.layers)))
        while left := self.writer.pending(self.forward.layers):
            if self._pass(in_turn(left, self.writer.header.shards, self.config.worker_index, self.config.num_workers)):
                wait = _POLL
            else:
                self.events.touch()
                self.meter.elsewhere(self._others.rows())
                time.sleep(wait)
                wait = min(1.5 * wait, _LONGEST_POLL)
        self.meter.elsewhere(self._others.rows(again=0))

    def _pass(self, left: Sequence[PendingShard]) -> int:
        """Compute those of the shards that nobody else is at; return how many."""
        took, written = 0, None
        with ExitStack() as stack:
            stack.callback(lambda: self._release(*self._claimed))
            committer = stack.enter_context(ThreadPoolExecutor(1, "write"))
            modality = self.forward.encoder.modality
            threads, several = self.preparing.threads(modality), self.preparing.at_once(modality)
            decoders = stack.enter_context(ThreadPoolExecutor(threads, "decode"))
            tasks = (
                (shard, range(start, min(start + several, shard.stop)))
                for shard in self._claims(left)
                for start in range(shard.start, shard.stop, several)
            )
            waiting = self.forward.batch_size // (several if modality == "image" else 1)  # texts take little room
            results = stack.enter_context(closing(in_order(decoders, self._prepare, tasks, 2 * threads + waiting)))
            for shard, group in groupby(results, key=lambda result: result[0]):
                rows = self._encode(shard, (item for _, some in group for item in some))
                if written:
                    written.result()
                self._reject(rows[2])
                written = committer.submit(self._commit, shard, rows)
                took += 1
            if written:
                written.result()
        return took

    def _claims(self, shards: Iterable[PendingShard]) -> Iterator[PendingShard]:
        """Yield those shards that nobody else holds, each claimed until it is committed or the pass ends."""
        for shard in shards:
            with ExitStack() as claim:
                if claim.enter_context(self.writer.claim(shard.index)):
                    self._claimed[shard.index] = claim.pop_all(), time.monotonic()
                    self.events.write("claimed", shard=shard.index)
                    yield shard

    def _release(self, *indices: int) -> None:
        for index in indices:
            claim, _ = self._claimed.pop(index)
            claim.close()

    def _prepare(self, task: tuple[PendingShard, range]) -> tuple[PendingShard, list[Prepared]]:
        shard, positions = task
        return shard, self.preparing(self.forward.encoder, [self.items.at(position) for position in positions])

    def _encode(self, shard: PendingShard, items: Iterable[Prepared]) -> Rows:
        rejected: list[Prepared] = []
        features = self.forward.empty(shard.stop - shard.start, shard.layers)
        done = np.zeros(shard.stop - shard.start, bool)
        cut = batches_by_length if self.forward.encoder.modality == "text" else batches_in_order
        batches = cut(self._sound(items, rejected), self._batch_size)
        last: Started = ([], dict)
        # A pair at a time: a GPU has the next batch before this one is waited for.
        for (rows, finish), _ in pairwise(chain((self._start(shard, batch) for batch in batches), [last])):
            for name, array in finish().items():
                features[name][rows] = array
            done[rows] = True
            self.meter.advance(len(rows))
        names = self.items.samples.sample_id
        kept = features if done.all() else {name: array[done] for name, array in features.items()}
        ids = [names[shard.start + int(row)] for row in np.flatnonzero(done)]
        return ids, kept, [(names[item.position], item.reason) for item in rejected]

    def _start(self, shard: PendingShard, batch: Sequence[Prepared]) -> Started:
        tensors = [item.tensor for item in batch if item.tensor is not None]
        return [item.position - shard.start for item in batch], self.forward.start(tensors, shard.layers)

    def _sound(self, items: Iterable[Prepared], rejected: list[Prepared]) -> Iterator[Prepared]:
        for item in items:
            if item.tensor is None:
                rejected.append(item)
                self.meter.advance()
            else:
                yield item

    def _commit(self, shard: PendingShard, rows: Rows) -> None:
        ids, _, rejected = rows
        if self.writer.holds(shard.index):
            self.writer.commit(shard, *rows)
            self.shards.add(shard.index)
            _, since = self._claimed[shard.index]
            self.events.write(
                "committed",
                shard=shard.index,
                items=shard.stop - shard.start,
                rows=len(ids),
                seconds=round(time.monotonic() - since, 3),
                layers=shard.layers,
                rejected=Counter(reason for _, reason in rejected),
            )
        else:  # this process stalled for so long that others took it over
            self.events.write("lost", shard=shard.index)
        self.meter.elsewhere(self._others.rows())
        self._release(shard.index)

    def _reject(self, rejected: Iterable[tuple[str, str]]) -> None:
        """Note what is broken; where that is too much, leave the table that the error names."""
        self.rejected |= dict(rejected)
        root, found = self.writer.root, list(self.rejected.items())
        try:
            self.items.require_sound(found, self.config.max_rejected, str(root / REJECTED))
        except UserError:
            if root.stat(MANIFEST) is None:  # a finished store has its whole table already
                with writing(root, REJECTED):
                    root.put(REJECTED, rejected_bytes(found))
            raise


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


# ---- one of several workers ------------------------------------------------------------------------------------------


def in_turn(pending: Sequence[PendingShard], shards: int, index: int, count: int) -> list[PendingShard]:
    """Return the pending shards in the order in which worker `index` of `count` takes them.

    Its own block of the store's `shards` comes first, then the others' blocks, each from its end.
    """
    blocks = [(worker * shards // count, (worker + 1) * shards // count) for worker in range(count)]
    turns = [blocks[(index + step) % count] for step in range(count)]
    own, *others = ([shard for shard in pending if start <= shard.index < stop] for start, stop in turns)
    return [*own, *(shard for block in others for shard in reversed(block))]


class OtherWorkers:
    """Counts the rows of shards that were pending when this worker began and that others have committed since.

    Made first, and told then what is pending: a shard that is committed in between is done, and not counted here.

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


# ---- the same twice -------------------------------------------------------------------------------------------------

TRIED = 8
"""Rows of a new store that are encoded twice before anything is written."""
_LOOKED_AT = 64
"""Items that are looked at for so many sound ones."""
_SLACK = {"fp32": 1e-3, "fp16": 5e-2, "bf16": 5e-2}
"""By arithmetic: how far two passes on a GPU may lie apart, as a share of a row's length.

A GPU may add up in another order each time, which moves a sum by a few units in its last place (1e-7 of it in float32,
which the layers after it may make a hundred times larger; 4e-3 where each layer rounds to bfloat16). Dropout of one
value in ten moves a row by a third of its length, a dropped block or a hidden patch by more than a tenth.
"""


def require_same_twice(encoder: Encoder, items: Items, layers: Sequence[str], config: ExtractConfig) -> None:
    """Encode the first few sound items twice, in the same batch: on a CPU the bits are the same, on a GPU nearly.

    Costs two passes of `TRIED` rows and the decoding of so many items.

    Raises:
        UserError: A layer is not the same: something is drawn at random, such as dropout or masked patches.
    """
    looked = (prepare(encoder, items.at(position)) for position in range(min(len(items), _LOOKED_AT)))
    sound = (item.tensor for item in looked if item.tensor is not None)
    tensors = list(islice(sound, min(TRIED, config.rows_a_pass(encoder.modality))))
    if not tensors:
        return
    forward = Forward(encoder, layers, "float32", len(tensors))
    once, again = forward.start(tensors, layers)(), forward.start(tensors, layers)()
    exact = resolve_device(config.device).type == "cpu"
    for name in layers:
        rows = _differing(once[name], again[name], 0.0 if exact else _SLACK[config.dtype])
        if rows:
            raise UserError(
                expected="the same features from the same batch twice",
                found=f"others in layer {name} the second time, in {rows} of {len(tensors)} rows",
                where=encoder.spec,
                remedy="it draws at random: leave dropout or masking out (evaluation mode), or seed it in `encode`",
            )


def _differing(once: NDArray[np.generic], again: NDArray[np.generic], share: float) -> int:
    """Return how many rows of [N, D] differ by more than a share of their length; what is no number is the same."""
    first, second = (np.nan_to_num(each.astype(np.float64)) for each in (once, again))
    return int((np.linalg.norm(first - second, axis=1) > share * np.linalg.norm(first, axis=1)).sum())


# ---- one forward pass after another ----------------------------------------------------------------------------------


def batches_in_order(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield batches in the order of the items."""
    left = iter(items)
    yield from iter(lambda: list(islice(left, size)), [])


def batches_by_length(items: Iterable[Prepared], size: int) -> Iterator[list[Prepared]]:
    """Yield batches of texts of similar length T, the longest first: little padding, want of memory shows early."""

    def place(item: Prepared) -> tuple[int, int]:
        return -len(item.tensor) if item.tensor is not None else 0, item.position

    return batches_in_order(sorted(items, key=place), size)


@dataclass
class Forward:
    """Runs an encoder over batches.

    Args:
        encoder: The encoder.
        layers: L layers to take.
        storage: Number format of the results: float32, float16 or bfloat16 (whose bits travel as uint16).
        batch_size: Rows in a pass; halved for good when the GPU runs out of memory.
    """

    encoder: Encoder
    layers: Sequence[str]
    storage: str
    batch_size: int
    notes: list[str] = field(default_factory=list)
    """What the user should know, such as a halved batch."""

    def empty(self, rows: int, layers: Sequence[str]) -> Arrays:
        """Return room for the features of some rows: layer → [rows, D]."""
        dtype = storage_dtype(self.storage).numpy
        return {name: np.empty((rows, self.encoder.width(name)), dtype) for name in layers}

    def start(self, batch: Sequence[Tensor], layers: Sequence[str]) -> Callable[[], Arrays]:
        """Start one pass or several smaller ones; return what waits for layer → [N, D] in the storage dtype.

        Raises:
            PipelineError: A single row does not fit into the GPU's memory.
            UserError: When waited for: the encoder gives something else than one row a sample.
        """
        while True:
            parts = batches_in_order(batch, self.batch_size)
            try:
                waiting = [(len(part), self.encoder.start(part, layers)) for part in parts]
            except torch.OutOfMemoryError as error:
                self._halve(error)
            else:
                return partial(self._finish, waiting, layers)

    def _halve(self, error: Exception) -> None:
        if self.batch_size == 1:
            raise PipelineError(
                expected="memory for one row",
                found="too little on the device",
                where=self.encoder.spec,
                remedy="use --device cpu, --dtype bf16 or a smaller encoder",
            ) from error
        self.batch_size //= 2
        torch.cuda.empty_cache()
        self.notes.append(f"out of GPU memory: going on with --batch-size {self.batch_size}")

    def _finish(
        self, waiting: Sequence[tuple[int, Callable[[], Mapping[str, Tensor]]]], layers: Sequence[str]
    ) -> Arrays:
        parts = []
        for rows, finish in waiting:
            features = finish()
            for name in layers:
                wanted = (rows, self.encoder.width(name))
                found = tuple(features[name].shape) if name in features else "no such layer"
                if found != wanted:
                    where = f"encode() of {self.encoder.spec}"
                    raise UserError(expected=f"{name} of shape {wanted}", found=str(found), where=where)
            parts.append({name: _stored(features[name], self.storage) for name in layers})
        return parts[0] if len(parts) == 1 else {n: np.concatenate([part[n] for part in parts]) for n in layers}


def _stored(tensor: Tensor, storage: str) -> NDArray[np.generic]:
    values = tensor.detach().to("cpu", torch_dtype(storage)).contiguous()
    if storage == "bfloat16":
        return values.view(torch.int16).numpy().view(np.uint16)
    return values.numpy()
