"""Self-similarities of a batch, at little more than half the price of a product: X Xᵀ is symmetric, and so is G + Gᵀ.

Used by `pipeline.align.losses.neighbour_divergence`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

TILE = 512
"""Rows of a tile on a CPU; a tile and its mirror image stay in a processor's cache."""
WIDE = 512
"""Narrower rows than this are multiplied whole: copying would cost what it saves."""


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
