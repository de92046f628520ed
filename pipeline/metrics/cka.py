"""Linear CKA: how alike two representations of the same N items are, up to rotation and scale.

Source: arXiv 1905.00414 (biased), and Song et al., JMLR 2012, for the unbiased HSIC, which does not grow with width.
"""

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics.arrays import Array, matrix, same_rows

_BLOCK = 2048


def linear_cka(x_ND: Array, y_NE: Array, *, unbiased: bool = False) -> float:
    """Return HSIC(X, Y) / √(HSIC(X, X) · HSIC(Y, Y)) with linear kernels, in float64.

    Biased: HSIC ∝ ‖Xᶜᵀ Yᶜ‖²_F of centred features, CKA in 0..1. Unbiased: about 0 for unrelated features.
    Costs N·D·E or N²·(D + E), whichever is less; no N × N matrix is held.

    Args:
        x_ND: N items' features.
        y_NE: The same items' other features.
        unbiased: Which estimator of HSIC.

    Raises:
        UserError: Non-finite or mismatched input, constant features, fewer than 2 rows (4 for the unbiased one).
    """
    x, y = matrix(x_ND, "x", dtype=torch.float64), matrix(y_NE, "y", dtype=torch.float64)
    same_rows("x", x, "y", y)
    least = 4 if unbiased else 2
    if len(x) < least:
        raise UserError(expected=f"{least} rows at least", found=str(len(x)))
    x, y = _centred(x, "x"), _centred(y, "y")
    hsic = _unbiased_hsic if unbiased else _gram_product
    own = hsic(x, x) * hsic(y, y)
    if own <= 0:
        raise UserError(expected="features whose HSIC with themselves is positive", found="none left after centring")
    return float(hsic(x, y) / own**0.5)


def _centred(x: Tensor, name: str) -> Tensor:
    scale = float(x.abs().max())
    centred = x - x.mean(dim=0)
    if float(centred.abs().max()) <= 1e-12 * max(scale, 1e-300):
        raise UserError(expected=f"features {name} that vary between rows", found="the same row everywhere")
    unit: Tensor = centred * (len(x) ** 0.5 / float(centred.norm()))  # CKA has no scale; this keeps the sums near 1
    return unit


def _gram_product(x: Tensor, y: Tensor) -> float:
    """Return tr(K L) = ‖Xᵀ Y‖²_F for K = X Xᵀ and L = Y Yᵀ, the cheaper way."""
    if x.shape[1] * y.shape[1] <= len(x) * (x.shape[1] + y.shape[1]):
        return float((x.T @ y).square().sum())
    total = 0.0
    for start in range(0, len(x), _BLOCK):
        rows = slice(start, start + _BLOCK)
        total += float(((x[rows] @ x.T) * (y[rows] @ y.T)).sum())
    return total


def _unbiased_hsic(x: Tensor, y: Tensor) -> float:
    """Return [tr(K̃L̃) + 1ᵀK̃1·1ᵀL̃1/((n−1)(n−2)) − 2/(n−2)·1ᵀK̃L̃1] / (n(n−3)), K̃ and L̃ without their diagonals."""
    n = len(x)
    k_diagonal, l_diagonal = x.square().sum(dim=1), y.square().sum(dim=1)
    k_sums, l_sums = x @ x.sum(dim=0) - k_diagonal, y @ y.sum(dim=0) - l_diagonal
    trace = _gram_product(x, y) - float(k_diagonal @ l_diagonal)
    product = float(k_sums.sum()) * float(l_sums.sum()) / ((n - 1) * (n - 2))
    return (trace + product - 2 / (n - 2) * float(k_sums @ l_sums)) / (n * (n - 3))
