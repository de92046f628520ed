"""How far a store is, in lines for people."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.words import count, duration

if TYPE_CHECKING:
    from pipeline.store.status import Summary, WorkerStatus


def status_lines(store: Path, found: "Summary") -> list[str]:
    """Return the first line for any store, and more where somebody is at work or something went wrong."""
    return list(_lines(store, found))


def _lines(store: Path, found: "Summary") -> Iterator[str]:
    yield (
        f"{store}: {count(found.shards, 'shard')}: {found.done} done, {found.leased} leased, {found.missing} missing"
    )
    if found.rate is not None and found.eta is not None and not found.finished:
        yield f"{found.done_items} of {found.items} items, {found.rate:.1f} a second, {duration(found.eta)} to go"
    if found.workers and not found.finished:
        counts = Counter(worker.state for worker in found.workers)
        yield "workers: " + ", ".join(f"{count} {state}" for state, count in counts.items())
        yield from (_worker(worker) for worker in found.workers if worker.state in ("alive", "silent"))
    if not found.finished:
        yield from _reasons("failed", found.failures)
    yield from _reasons("left out", found.rejected)


def _worker(worker: "WorkerStatus") -> str:
    at = f", at {', '.join(f'{index:05d}' for index in worker.at)}" if worker.at else ""
    return f"  {worker.worker} ({worker.index} of {worker.of}): {worker.state}, {count(worker.shards, 'shard')}{at}"


def _reasons(what: str, counts: Mapping[str, int]) -> Iterator[str]:
    yield from (f"{what}: {count} × {reason}" for reason, count in counts.items())
