"""The dense algebra that closed forms spend their time in: X ᵀX, and eigenvalues of what it gives.

On a CPU numpy and scipy do it, on any other device torch: numpy knows that XᵀX is symmetric (half the work), and LAPACK
finds a few of many eigenvectors without the others (half again), for neither of which torch has a call. The number of
threads is torch's own, so that runs side by side give the digits of a run alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def gram(rows: Tensor) -> Tensor:
    """Return XᵀX, float64 [D, D], of X [N, D]."""
    if rows.device.type != "cpu":
        return rows.T @ rows
    array = rows.numpy()
    with _threads():
        return torch.from_numpy(array.T @ array)


def eigh(matrix: Tensor, largest: int | None = None) -> tuple[Tensor, Tensor]:
    """Return eigenvalues [K], ascending, and eigenvectors [D, K] of a symmetric matrix [D, D].

    Args:
        matrix: float64.
        largest: How many, the largest ones; all where not given.
    """
    size = len(matrix)
    count = size if largest is None else min(largest, size)
    if matrix.device.type != "cpu":
        values, vectors = torch.linalg.eigh(matrix)
        return values[size - count :], vectors[:, size - count :]
    from scipy.linalg import eigh as lapack

    some = {} if count == size else {"driver": "evr", "subset_by_index": [size - count, size - 1]}
    with _threads():
        values, vectors = lapack(matrix.numpy(), check_finite=False, **({"driver": "evd"} | some))
    return torch.from_numpy(values), torch.from_numpy(vectors)


@contextmanager
def _threads() -> Iterator[None]:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(torch.get_num_threads(), user_api="blas"):
        yield
