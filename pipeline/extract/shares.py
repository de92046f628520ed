"""Which shards a worker takes first, where several work on one store. Only the order: any of them may do all of it.

Worker i of n begins with the i-th of n contiguous blocks of the data set, front to back, so that each reads its files
one after the other. Then it takes from the other blocks, the next worker's first and each from its end, where its owner
comes last. The blocks are cut from all shards, not from what is missing, so that a worker that starts late or again
cuts them as the others did.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.store.records import PendingShard

_LAUNCHERS = (
    ("SLURM_PROCID", "SLURM_NTASKS", ""),
    ("RANK", "WORLD_SIZE", ""),
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
)
"""(this worker's number, how many there are, the first number) as srun, torchrun and job arrays of SLURM say them."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """One worker's part of a store."""

    index: int = 0
    """Which of the workers this is, from 0."""
    count: int = 1
    """How many workers there are."""
    source: str = ""
    """What in the environment said so; empty where the flags did, or nothing."""


def share_of(index: int | None, count: int | None, environment: Mapping[str, str]) -> Share:
    """Return a worker's share: what the flags say, else the first launcher of several workers in the environment.

    A launcher that starts one process, or that does not say how many it starts, is no launcher of several workers.

    Args:
        index: `--worker-index`, None where nothing was said.
        count: `--num-workers`, None where nothing was said.
        environment: Environment variables.

    Raises:
        UserError: One flag without the other, or numbers that do not fit each other.
    """
    if count == 1 and index is None:
        return Share()
    if index is not None and count is not None:
        return _checked(index, count, "--worker-index", "--num-workers")
    if index is not None or count is not None:
        found = "only --num-workers" if index is None else "only --worker-index"
        raise UserError(expected="--worker-index and --num-workers together", found=found, where="pipeline extract")
    for number, total, first in _LAUNCHERS:
        if environment.get(total, "1") == "1" or number not in environment:
            continue
        begin = _whole(environment, first) if environment.get(first) else 0
        share = _checked(_whole(environment, number) - begin, _whole(environment, total), number, total)
        return Share(index=share.index, count=share.count, source=f"{number}={environment[number]}")
    return Share()


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


def _checked(index: int, count: int, number: str, total: str) -> Share:
    if count < 1:
        raise UserError(expected="1 or more", found=str(count), where=total)
    if not 0 <= index < count:
        raise UserError(expected=f"0 to {count - 1}, as {total} says", found=str(index), where=number)
    return Share(index=index, count=count)


def _whole(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    try:
        return int(text)
    except ValueError as error:
        remedy = "mend it, or say --worker-index and --num-workers"
        raise UserError(expected="a whole number", found=repr(text), where=name, remedy=remedy) from error
