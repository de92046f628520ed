"""N×N matrices piece by piece: blocks of rows that a processor's cache holds, and self-similarities by tiles.

X Xᵀ is symmetric, and so is G + Gᵀ: by tiles either costs little more than half of a product.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

CPU_ELEMENTS = 1 << 17
"""Elements of a block on a CPU: half a megabyte in float32."""
GPU_ELEMENTS = 1 << 26
"""Elements of a block elsewhere, where a launch costs more than a pass."""
TILE = 512
"""Rows of a tile on a CPU; a tile and its mirror image stay in a processor's cache."""
WIDE = 512
"""Narrower rows than this are multiplied whole: copying would cost what it saves."""


def row_blocks(matrix_NM: Tensor) -> Iterator[slice]:
    """Yield the blocks of rows of a matrix [N, M], one row at least in each."""
    elements = CPU_ELEMENTS if matrix_NM.device.type == "cpu" else GPU_ELEMENTS
    rows = max(1, elements // matrix_NM.shape[1])
    for start in range(0, len(matrix_NM), rows):
        yield slice(start, min(start + rows, len(matrix_NM)))


def self_product(rows_ND: Tensor, factor: float) -> Tensor:
    """Return factor·X Xᵀ, [N, N]; on a CPU only tiles on and above the diagonal are multiplied, the rest is copied."""
    n, width = rows_ND.shape
    if rows_ND.device.type != "cpu" or n <= TILE or width < WIDE:
        return (rows_ND * factor) @ rows_ND.T
    scaled_ND = rows_ND * factor
    product_NN = rows_ND.new_empty(n, n)
    for above in _tiles(n):
        torch.mm(scaled_ND[above], rows_ND[above.start :].T, out=product_NN[above, above.start :])
        for left in _tiles(above.start):
            product_NN[above, left] = product_NN[left, above].T
    return product_NN


def add_transpose_(square_NN: Tensor) -> Tensor:
    """Replace G by G + Gᵀ, in place, and return it."""
    for below in _tiles(len(square_NN)):
        for left in _tiles(below.start):
            both = square_NN[below, left].add_(square_NN[left, below].T)
            square_NN[left, below] = both.T
        corner = square_NN[below, below]
        corner += corner.T.clone()
    return square_NN


def _tiles(stop: int) -> Iterator[slice]:
    for start in range(0, stop, TILE):
        yield slice(start, min(start + TILE, stop))
