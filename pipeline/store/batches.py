"""Cut N rows into batches and gather rows from consecutive parts of a layer."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.store.formats.base import Features


def row_batches(
    rows: int, batch_size: int, *, shuffle: bool, seed: int, drop_last: bool
) -> Iterator[NDArray[np.int64]]:
    """Yield row numbers [B] that cover 0..N-1 once.

    Raises:
        UserError: The batch size is not positive.
    """
    if batch_size < 1:
        raise UserError(expected="a batch size of 1 or more", found=str(batch_size))
    order = np.random.default_rng(seed).permutation(rows) if shuffle else np.arange(rows)
    stop = rows - rows % batch_size if drop_last else rows
    for start in range(0, stop, batch_size):
        yield order[start : min(stop, start + batch_size)].astype(np.int64, copy=False)


def gather(parts: Sequence[Features], rows: NDArray[np.int64]) -> Features:
    """Copy rows [B] out of consecutive parts [n, D] of a layer into a new array [B, D]."""
    if len(parts) == 1:
        return parts[0][rows]
    starts = np.cumsum([0, *(len(part) for part in parts)])
    which = np.searchsorted(starts, rows, side="right") - 1
    out = np.empty((len(rows), parts[0].shape[1]), parts[0].dtype)
    for part in np.unique(which):
        chosen = which == part
        out[chosen] = parts[part][rows[chosen] - starts[part]]
    return out
