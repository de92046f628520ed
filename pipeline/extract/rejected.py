"""Inputs that are left out of the rows: the error that says why, and the limit on how many there may be."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UserError
from pipeline.store.commit import writing
from pipeline.store.distant import push_table


class RejectedInputError(Exception):
    """An input that cannot be used; its text is the reason as rejected.csv gives it."""


def check_share(rejected: Sequence[tuple[str, str]], items: int, limit: float, *, what: str, table: Path) -> None:
    """Stop where more than the allowed share of the items is broken.

    Args:
        rejected: (id, reason) of those found so far.
        items: How many items there are in all.
        limit: Share that is allowed.
        what: What the items are, for the message.
        table: The rejected.csv that the message points at.

    Raises:
        UserError: Too many.
    """
    if len(rejected) <= math.floor(limit * items + 1e-6):  # 0.29 of 100 is a little less than 29
        return
    first, reason = rejected[0]
    raise UserError(
        expected=f"at most {limit:.1%} broken {what}",
        found=f"{len(rejected)} of {items}, the first {first!r}: {reason}",
        where=str(table),
        remedy="that table lists those found so far: mend them, or allow more with --max-rejected",
    )


def write_rejected(table: Path, rejected: Sequence[tuple[str, str]]) -> None:
    """Write the table of a store that is not finished.

    Raises:
        PipelineError: The disk does not take it.
    """
    with writing(table):
        with table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([("sample_id", "reason"), *rejected])
        push_table(table)
