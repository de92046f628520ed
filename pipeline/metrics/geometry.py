"""Geometry of the shared space: does it keep the frozen one's neighbourhoods, and how far apart are the modalities?

Trustworthiness and continuity: Venna & Kaski, 2001. Modality gap: arXiv 2203.02053.
"""

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics.arrays import Array, check_count, is_constant, matrix

_BLOCK = 512


def trustworthiness(before_ND: Array, after_NE: Array, k: int = 5) -> float:
    """Return 1 − 2/(Nk(2N−3k−1)) Σ_i Σ_j (r(i, j) − k)₊ over the k neighbours j of i *after*, r their rank *before*.

    1: all neighbours after were neighbours before, by cosine in both spaces. Blocked; no N × N matrix is held.

    Args:
        before_ND: N items in the frozen space.
        after_NE: The same items in the aligned space.
        k: Neighbours, fewer than N/2.

    Raises:
        UserError: Non-finite or mismatched input, or k out of range.
    """
    before, after = matrix(before_ND, "features before"), matrix(after_NE, "features after")
    rows = len(before)
    if len(after) != rows:
        raise UserError(expected=f"as many rows after as before ({rows})", found=str(len(after)))
    check_count(k, "k (fewer than half of the rows)", low=1, high=(rows - 1) // 2)
    before = _prepared(before.double(), "features before")
    after = _prepared(after.double(), "features after")
    penalty = 0.0
    for start in range(0, rows, _BLOCK):
        near = _distances(after, start).topk(k, dim=1, largest=False).indices
        distances = _distances(before, start)
        rank = torch.searchsorted(distances.sort(dim=1).values, distances.gather(1, near)) + 1
        penalty += float((rank - k).clamp_min(0).sum())
    return 1.0 - 2.0 / (rows * k * (2.0 * rows - 3.0 * k - 1.0)) * penalty


def continuity(before_ND: Array, after_NE: Array, k: int = 5) -> float:
    """Return trustworthiness with the spaces swapped: are neighbours before still neighbours after?"""
    return trustworthiness(after_NE, before_ND, k)


def modality_gap(image_ND: Array, text_MD: Array) -> float:
    """Return ‖mean(u) − mean(w)‖ of the two sides' embeddings as given (unit length for the usual meaning).

    Raises:
        UserError: Non-finite input or different widths.
    """
    image = matrix(image_ND, "image embeddings", dtype=torch.float64)
    text = matrix(text_MD, "text embeddings", width=image.shape[1], dtype=torch.float64)
    return float((image.mean(dim=0) - text.mean(dim=0)).norm())


def _prepared(features: Tensor, name: str) -> Tensor:
    if float(features.norm(dim=1).min()) == 0:
        raise UserError(expected=f"{name}: rows that are not zero (they have no direction)", found="a zero row")
    features = torch.nn.functional.normalize(features, dim=1)
    if is_constant(features):
        raise UserError(expected=f"{name} that vary between rows", found="the same row everywhere")
    return features


def _distances(features: Tensor, start: int) -> Tensor:
    """Return squared distances of a block of rows to all rows, each row's own set to infinity."""
    block, lengths = features[start : start + _BLOCK], features.square().sum(dim=1)
    squared = lengths[start : start + _BLOCK, None] + lengths - 2.0 * (block @ features.T)
    own = torch.arange(len(block))
    squared[own, own + start] = torch.inf
    return squared
