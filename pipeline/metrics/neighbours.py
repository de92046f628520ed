"""Mutual nearest neighbours: how alike two representations of the same N items are, whatever their widths.

Each layer's neighbours are found once (`nearest_neighbours`), then any two layers are compared by their tables
(`mutual_knn`, `layer_pairs.compare_layers`): O(layers) searches, not O(pairs).
Source: arXiv 2405.07987 (mutual kNN); k = ⌈2·N^⅓⌉ as in arXiv 2506.16895.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.metrics.arrays import Array, check_count, is_constant, matrix

Neighbours = NDArray[np.int32]


def neighbour_count(rows: int) -> int:
    """Return k = ⌈2·N^⅓⌉ for N rows, at most N − 1 (35 at 5000).

    Raises:
        UserError: Fewer than two rows: nobody has a neighbour.
    """
    check_count(rows, "rows", low=2, high=2**62)
    return min(math.ceil(round(2.0 * math.cbrt(rows), 9)), rows - 1)


def nearest_neighbours(features_ND: Array, k: int | None = None, *, block: int = 1024) -> Neighbours:
    """Return the k nearest rows of each row by cosine similarity, itself left out: int32 [N, K], nearest first.

    Among equally near rows the choice is the library's; it is the same in every run.

    Args:
        features_ND: N rows of one layer.
        k: Neighbours of a row; `neighbour_count(N)` where not given.
        block: Rows whose similarities are held at once.

    Raises:
        UserError: N < 2, k not in 1..N−1, non-finite values, or all rows the same (then there is no nearest).
    """
    features = matrix(features_ND, "features")
    k = neighbour_count(len(features)) if k is None else check_count(k, "k", low=1, high=len(features) - 1)
    unit = torch.nn.functional.normalize(features, dim=1)
    if is_constant(unit):
        raise UserError(
            expected="features that differ between rows",
            found="one and the same direction in all of them",
            remedy="leave this layer out (the class token before the first block is such a layer)",
        )
    found = torch.empty((len(unit), k), dtype=torch.int32)
    for start in range(0, len(unit), block):
        scores = unit[start : start + block] @ unit.T
        own = torch.arange(len(scores), device=unit.device)
        scores[own, own + start] = -torch.inf
        found[start : start + block] = scores.topk(k, dim=1).indices.int().cpu()
    return found.numpy()


def mutual_knn(a: Neighbours, b: Neighbours) -> float:
    """Return mean_i |A_i ∩ B_i| / k of two neighbour tables [N, K] of the same items: 1 the same, about k/N by chance.

    Raises:
        UserError: The tables have different shapes.
    """
    check_tables([a, b])
    inside = np.zeros((len(a), len(a)), dtype=bool)
    rows = np.arange(len(a))[:, None]
    inside[rows, a] = True
    return float(inside[rows, b].mean())


def check_tables(tables: Sequence[Neighbours]) -> tuple[int, int]:
    """Return (N, K) of neighbour tables that are all of one shape.

    Raises:
        UserError: There are none, or two of them differ.
    """
    if not tables or tables[0].ndim != 2:
        raise UserError(expected="a table of neighbours [N, K] at least", found="none")
    for table in tables:
        if table.shape != tables[0].shape:
            raise UserError(
                expected=f"neighbour tables of one shape, {list(tables[0].shape)}",
                found=f"{list(table.shape)}",
                remedy="use the same rows and the same k for every layer",
            )
    return len(tables[0]), tables[0].shape[1]
