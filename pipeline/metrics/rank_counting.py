"""Counting who scores at least as high as the match, exactly, at the price of one float32 matrix product.

Used by `retrieval`. A float32 product gives a pair another last bit in another place of the matrix, so equal items need
not get equal scores. Here only scores farther from the threshold than float32 can err are decided in float32; the few
inside that band are decided again in float64, where what differs by less than 1e-12 of the vectors' lengths is a tie.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_LANE_LIMIT = 248  # a byte counts to 255; a multiple of 8 below that
_PAIR_LIMIT = 100_000  # above it, one float64 product of the tile is cheaper than pair after pair
_TIE = 1e-12


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What the other items must reach, for Q queries."""

    value: Tensor
    """Score of the match, float64 [Q]; +inf where a query has none."""
    band: Tensor
    """How far a float32 score may err, float64 [Q]."""
    tie: Tensor
    """Difference that still counts as a tie, float64 [Q]."""

    def part(self, chosen: slice) -> "Thresholds":
        """Return the thresholds of some of the queries."""
        return Thresholds(value=self.value[chosen], band=self.band[chosen], tie=self.tie[chosen])


def thresholds(value: Tensor, query: Tensor, gallery: Tensor) -> Thresholds:
    """Return the thresholds for match scores [Q] of queries [Q, d] in a gallery [G, d].

    The band is (8 + d/16) units in the last place of |q|·max|g|: sums run in 16 lanes or more on today's hardware.
    """
    length = query.double().norm(dim=1) * gallery.norm(dim=1).max().double()
    band = (8 + query.shape[1] / 16) * 2.0**-24 * length
    return Thresholds(value=value, band=band, tie=_TIE * length)


def count_at_least(scores: Tensor, left: Tensor, right: Tensor, limit: Thresholds, dim: int) -> Tensor:
    """Count in a tile of scores [R, C] = left [R, d] · rightᵀ [d, C] the entries at or above each query's threshold.

    Args:
        scores: The tile in float32; entries at −inf are never counted.
        left: Vectors of the rows.
        right: Vectors of the columns.
        limit: Thresholds of the queries: of the R rows for `dim` 1, of the C columns for `dim` 0.
        dim: Axis that is counted away.

    Returns:
        Counts, int64 [R] or [C].
    """
    low = (limit.value - limit.band).float().unsqueeze(dim)
    high = (limit.value + limit.band).float().unsqueeze(dim)
    sure = count_true(scores > high, dim)
    near = count_true(scores >= low, dim) - sure
    undecided = int(near.sum())
    if undecided == 0:
        return sure
    if undecided > _PAIR_LIMIT:
        return _count_in_float64(scores, left, right, limit, dim)
    queries = near.nonzero().squeeze(1)
    part = scores.index_select(1 - dim, queries)
    inside = (part >= low.index_select(1 - dim, queries)) & (part <= high.index_select(1 - dim, queries))
    rows, columns = inside.nonzero(as_tuple=True)
    if dim == 1:
        rows = queries[rows]
    else:
        columns = queries[columns]
    return sure + _decide_pairs(rows, columns, left, right, limit, dim)


def count_true(mask: Tensor, dim: int) -> Tensor:
    """Count the true entries of a boolean matrix [R, C] along an axis, eight at once in the bytes of a word."""
    rows, columns = mask.shape
    spare = -columns % 8
    if spare:
        mask = torch.nn.functional.pad(mask, (0, spare))
    words = mask.contiguous().view(torch.int64)
    if dim == 0:
        parts = [part.sum(dim=0).view(torch.uint8).long() for part in torch.split(words, _LANE_LIMIT, dim=0)]
        return torch.stack(parts).sum(dim=0)[:columns]
    chunks = [
        part.sum(dim=1).view(torch.uint8).view(rows, 8).sum(dim=1) for part in torch.split(words, _LANE_LIMIT, dim=1)
    ]
    return torch.stack(chunks).sum(dim=0)


def pair_scores(left: Tensor, right: Tensor, rows: Tensor, columns: Tensor, block: int = 16384) -> Tensor:
    """Return the float64 scores [P] of P pairs (row of left, row of right); equal pairs get equal scores."""
    parts = [
        (left[r].double() * right[c].double()).sum(dim=1)
        for r, c in zip(torch.split(rows, block), torch.split(columns, block), strict=True)
    ]
    return torch.cat(parts)


def _decide_pairs(rows: Tensor, columns: Tensor, left: Tensor, right: Tensor, limit: Thresholds, dim: int) -> Tensor:
    owner = rows if dim == 1 else columns
    reached = pair_scores(left, right, rows, columns) >= (limit.value - limit.tie)[owner]
    return torch.bincount(owner[reached], minlength=len(limit.value))


def _count_in_float64(scores: Tensor, left: Tensor, right: Tensor, limit: Thresholds, dim: int) -> Tensor:
    exact = left.double() @ right.double().T
    exact[scores == -torch.inf] = -torch.inf
    return count_true(exact >= (limit.value - limit.tie).unsqueeze(dim), dim)
