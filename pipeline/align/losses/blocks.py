"""Blocks of rows of an N×N matrix: small enough that a processor's cache holds the few passes over each."""

from collections.abc import Iterator

from torch import Tensor

CPU_ELEMENTS = 1 << 17
"""Elements of a block on a CPU: half a megabyte in float32."""
GPU_ELEMENTS = 1 << 26
"""Elements of a block elsewhere, where a launch costs more than a pass."""


def row_blocks(matrix_NM: Tensor) -> Iterator[slice]:
    """Yield the blocks of rows of a matrix [N, M], one row at least in each."""
    elements = CPU_ELEMENTS if matrix_NM.device.type == "cpu" else GPU_ELEMENTS
    rows = max(1, elements // matrix_NM.shape[1])
    for start in range(0, len(matrix_NM), rows):
        yield slice(start, min(start + rows, len(matrix_NM)))
