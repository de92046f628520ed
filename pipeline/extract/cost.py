"""What an extraction will cost, said before the work: rows × layers × width × bytes, free disk, expected time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.encoders.base import Encoder
from pipeline.errors import PipelineError
from pipeline.extract.items import Items
from pipeline.extract.prepare import prepare
from pipeline.runtime import free_disk
from pipeline.store.dtypes import storage_dtype
from pipeline.store.records import PendingShard
from pipeline.words import duration, size

SHARD_BYTES = 128 * 2**20
"""What a shard's layers sum up to, about."""
_LEAST_ROWS, _MOST_ROWS, _LEAST_SHARDS = 256, 65536, 8
_FINE_ROWS = {"image": 256, "text": 4096}
"""Rows that no shard is cut finer than for the sake of a kill: a quarter to a whole minute of a small model's work."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What is to be done and what it takes."""

    what: str
    """What the rows are."""
    rows: int
    """N items of the data set."""
    layers: tuple[tuple[str, int], ...]
    """(name, width D) of the L layers that are asked for."""
    bytes: int
    """Bytes of all N rows of all L layers."""
    missing_rows: int
    """Rows of shards that lack a layer."""
    missing_bytes: int
    """Bytes that are still to be written."""
    free_bytes: int
    """Free bytes on the disk of the store."""
    seconds: float | None = None
    """Expected time for what is missing; None where it was not measured."""

    def sentence(self) -> str:
        """Return the cost for people."""
        widths = sum(width for _, width in self.layers)
        text = (
            f"{self.rows:,} {self.what} × {len(self.layers)} layers ({widths:,} values a row) = {size(self.bytes)}; "
            f"still to do: {self.missing_rows:,} rows, {size(self.missing_bytes)}; free disk: {size(self.free_bytes)}"
        )
        return text if self.seconds is None else f"{text}; expected time: {duration(self.seconds)}"


def estimate(
    root: Path, items: Items, layers: Sequence[tuple[str, int]], pending: Sequence[PendingShard], storage: str
) -> Cost:
    """Count rows and bytes. `layers` are (name, D), `pending` is what lacks some of them.

    Raises:
        PipelineError: What is missing does not fit on the disk.
    """
    itemsize, width = storage_dtype(storage).itemsize, dict(layers)
    missing = sum((shard.stop - shard.start) * sum(width[name] for name in shard.layers) for shard in pending)
    cost = Cost(
        what=items.what,
        rows=len(items),
        layers=tuple(layers),
        bytes=len(items) * sum(width.values()) * itemsize,
        missing_rows=sum(shard.stop - shard.start for shard in pending),
        missing_bytes=missing * itemsize,
        free_bytes=free_disk(root),
    )
    if cost.missing_bytes * 1.02 > cost.free_bytes:
        raise PipelineError(
            expected=f"{size(cost.missing_bytes)} of free disk",
            found=f"{size(cost.free_bytes)}",
            where=str(root),
            remedy="take fewer layers (--layers), --storage-dtype fp16, or another --out",
        )
    return cost


def seconds_a_row(encoder: Encoder, items: Items, layers: Sequence[str], batch_size: int, first: int) -> float:
    """Measure one small batch from loading to features, after one that warms up; 0 where no item is sound."""
    positions = range(first, min(len(items), first + min(batch_size, 8)))
    took = 0.0
    for _ in range(2):
        start = time.perf_counter()
        prepared = [prepare(encoder, items.source(position)) for position in positions]
        tensors = [item.tensor for item in prepared if item.tensor is not None]
        if tensors:
            encoder.encode(tensors, layers)
        took = time.perf_counter() - start
    return took / max(len(positions), 1)


def default_shard_rows(items: int, widths: Sequence[int], storage: str, modality: str) -> int:
    """Return a power of two: about `SHARD_BYTES` a shard, yet at least eight shards where they hold enough items.

    Small data sets are cut finer than the bytes ask for, because a shard is what a killed run loses at most. Enough are
    256 images, and 4096 texts: those are sorted by length inside a shard, and 256 of them give batches with 6 % more
    tokens, all of them padding; 4096 with less than 1 %.
    """
    by_bytes = SHARD_BYTES // max(1, sum(widths) * storage_dtype(storage).itemsize)
    wanted = min(by_bytes, max(_FINE_ROWS[modality], items // _LEAST_SHARDS), _MOST_ROWS)
    return max(_LEAST_ROWS, 1 << (max(wanted, 1).bit_length() - 1))
