"""CKA against its definition with centring matrices and U-centred kernels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics import cka
from pipeline.metrics.cka import linear_cka

Matrix = NDArray[np.float64]


def biased(k: Matrix, m: Matrix) -> float:
    """HSIC with centring matrices."""
    h = np.eye(len(k)) - 1 / len(k)
    return float(np.trace(k @ h @ m @ h))


def unbiased(k: Matrix, m: Matrix) -> float:
    """HSIC_u, term by term, of kernels without their diagonals."""
    n, one = len(k), np.ones(len(k))
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    rest = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
    return float(np.trace(k @ m) + rest) / (n * (n - 3))


def pair(rows: int, d: int, e: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, d, generator=generator, dtype=torch.float64) + 2
    return x, x @ torch.randn(d, e, generator=generator, dtype=torch.float64) + torch.randn(
        rows, e, generator=generator, dtype=torch.float64
    )


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(5, 30), d=st.integers(1, 40), e=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_both_estimators_equal_their_definition(rows: int, d: int, e: int, seed: int) -> None:
    """Widths below and above the number of rows take both ways of computing."""
    x, y = pair(rows, d, e, seed)
    k, m = (x @ x.T).numpy(), (y @ y.T).numpy()
    for hsic, flag in ((biased, False), (unbiased, True)):
        expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
        assert linear_cka(x, y, unbiased=flag) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = pair(20, 60, 70, 0)
    whole = linear_cka(x, y)
    monkeypatch.setattr(cka, "_BLOCK", 7)
    assert linear_cka(x, y) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("flag", [False, True])
def test_rotation_scale_shift_and_self(flag: bool) -> None:
    x, y = pair(50, 8, 6, 1)
    q = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    assert linear_cka(x, x, unbiased=flag) == pytest.approx(1.0)
    assert linear_cka(x, 3 * x @ q + 5, unbiased=flag) == pytest.approx(1.0)
    assert linear_cka(x, y, unbiased=flag) == pytest.approx(linear_cka(y, x, unbiased=flag))
    assert linear_cka(1e6 * x, y, unbiased=flag) == pytest.approx(linear_cka(x, y, unbiased=flag))


def test_wide_unrelated_features_look_alike_only_to_the_biased_one() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 500, generator=generator), torch.randn(60, 500, generator=generator)
    assert linear_cka(x, y) > 0.8
    assert abs(linear_cka(x, y, unbiased=True)) < 0.1


@pytest.mark.parametrize(
    ("x", "y", "flag", "message"),
    [
        (torch.randn(5, 3), torch.randn(4, 3), False, "as many rows"),
        (torch.randn(1, 3), torch.randn(1, 3), False, "2 rows at least"),
        (torch.randn(3, 3), torch.randn(3, 3), True, "4 rows at least"),
        (torch.full((5, 3), 0.1), torch.randn(5, 3), False, "features x that vary"),
        (torch.randn(5, 3), torch.zeros(5, 3), True, "features y that vary"),
        (torch.randn(5, 3), torch.full((5, 3), torch.nan), False, "NaN"),
    ],
)
def test_hostile_input_is_told(x: Tensor, y: Tensor, flag: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        linear_cka(x, y, unbiased=flag)
