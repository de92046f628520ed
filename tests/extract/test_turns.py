"""Which worker this is, from flags and environment; and which shards it takes first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.extract.compute import in_turn
from pipeline.extract.config import ExtractConfig
from pipeline.runtime import Share, share_of
from pipeline.store.commit import PendingShard

SRUN = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "3"}
ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "5", "SLURM_ARRAY_TASK_MIN": "4"}
ALONE = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}


@pytest.mark.parametrize(
    ("index", "count", "environment", "expected"),
    [
        (None, None, {}, Share()),
        (1, 2, {}, Share(index=1, count=2)),
        (1, 2, SRUN | TORCHRUN | ARRAY, Share(index=1, count=2)),
        (None, 1, SRUN, Share()),
        (0, 1, SRUN, Share()),
        (None, None, SRUN, Share(index=2, count=4, source="SLURM_PROCID=2")),
        (None, None, TORCHRUN, Share(index=1, count=3, source="RANK=1")),
        (None, None, ARRAY, Share(index=3, count=5, source="SLURM_ARRAY_TASK_ID=7")),
        (None, None, {**ARRAY, "SLURM_ARRAY_TASK_ID": "4"}, Share(count=5, source="SLURM_ARRAY_TASK_ID=4")),
        (None, None, SRUN | TORCHRUN | ARRAY, Share(index=2, count=4, source="SLURM_PROCID=2")),
        (None, None, TORCHRUN | ARRAY, Share(index=1, count=3, source="RANK=1")),
        (None, None, ALONE | ARRAY, Share(index=3, count=5, source="SLURM_ARRAY_TASK_ID=7")),
        (None, None, ALONE, Share()),
        (None, None, {"RANK": "5", "WORLD_SIZE": "1"}, Share()),
        (None, None, {"SLURM_PROCID": "0"}, Share()),
        (None, None, {"RANK": "high"}, Share()),
        (None, None, {"WORLD_SIZE": "8"}, Share()),
        (None, None, {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"}, Share(index=1, count=2, source="?")),
    ],
)
def test_who_says_which_worker_this_is(
    index: int | None, count: int | None, environment: dict[str, str], expected: Share
) -> None:
    found = share_of(index, count, environment)
    assert (found.index, found.count) == (expected.index, expected.count)
    assert expected.source in ("?", found.source)


@pytest.mark.parametrize(
    ("index", "count", "environment", "message"),
    [
        (1, None, {}, "expected --worker-index and --num-workers together, found only --worker-index"),
        (None, 2, SRUN, "expected --worker-index and --num-workers together, found only --num-workers"),
        (2, 2, {}, "--worker-index: expected 0 to 1, as --num-workers says, found 2"),
        (-1, 2, {}, "--worker-index: expected 0 to 1, as --num-workers says, found -1"),
        (0, 0, {}, "--num-workers: expected 1 or more, found 0"),
        (None, None, {**SRUN, "SLURM_PROCID": "4"}, "SLURM_PROCID: expected 0 to 3, as SLURM_NTASKS says, found 4"),
        (
            None,
            None,
            {**TORCHRUN, "WORLD_SIZE": "many"},
            "WORLD_SIZE: expected a whole number, found 'many'; corr",
        ),
        (None, None, {**TORCHRUN, "WORLD_SIZE": "-3"}, "WORLD_SIZE: expected 1 or more, found -3"),
        (None, None, {**ARRAY, "SLURM_ARRAY_TASK_ID": "3"}, "SLURM_ARRAY_TASK_ID: expected 0 to 4, .*, found -1"),
    ],
)
def test_numbers_that_do_not_fit(
    index: int | None, count: int | None, environment: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        share_of(index, count, environment)


def test_the_settings_check_it_too() -> None:
    with pytest.raises(UserError, match="--worker-index: expected 0 to 1, as --num-workers says, found 2"):
        ExtractConfig(dataset="raw", encoder="x", out="out", worker_index=2, num_workers=2)
    with pytest.raises(UserError, match="--num-workers: expected 1 or more, found 0"):
        ExtractConfig(dataset="raw", encoder="x", out="out", num_workers=0)


def shards(*indices: int) -> list[PendingShard]:
    return [PendingShard(index, index * 10, index * 10 + 10, ("output",)) for index in indices]


def order(index: int, count: int, *pending: int, of: int = 10) -> list[int]:
    return [shard.index for shard in in_turn(shards(*pending), of, index, count)]


def test_own_block_front_to_back_and_then_the_others_from_their_ends() -> None:
    assert order(0, 1, *range(10)) == list(range(10))
    assert order(0, 2, *range(10)) == [0, 1, 2, 3, 4, 9, 8, 7, 6, 5]
    assert order(1, 2, *range(10)) == [5, 6, 7, 8, 9, 4, 3, 2, 1, 0]
    assert order(1, 3, *range(10)) == [3, 4, 5, 9, 8, 7, 6, 2, 1, 0]
    assert order(1, 2, 2, 4, 7) == [7, 4, 2], "blocks are of all shards, whatever is missing"
    assert order(5, 8, 0, 1, 2, of=3) == [1, 2, 0], "more workers than shards"


@given(st.integers(1, 40), st.integers(1, 50), st.data())
def test_every_worker_takes_every_shard_and_begins_with_its_own(total: int, count: int, data: st.DataObject) -> None:
    pending = sorted(data.draw(st.sets(st.integers(0, total - 1))))
    firsts: list[int] = []
    for index in range(count):
        turns = order(index, count, *pending, of=total)
        assert sorted(turns) == pending
        own = [shard for shard in pending if index * total // count <= shard < (index + 1) * total // count]
        assert turns[: len(own)] == own
        firsts += own
    assert sorted(firsts) == pending, "each shard is the first choice of exactly one worker"
