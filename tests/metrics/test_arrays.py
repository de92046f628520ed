"""What the metrics take and refuse: shapes, numbers that are no numbers, ranges."""

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics.retrieval import check_count, indices, is_constant, matrix


@pytest.mark.parametrize("given", [np.ones((2, 3)), torch.ones(2, 3, dtype=torch.float16), np.ones((2, 3), dtype=bool)])
def test_any_table_becomes_float32(given: Tensor) -> None:
    found = matrix(given, "features")
    assert found.dtype == torch.float32
    assert found.tolist() == [[1.0] * 3] * 2


def test_a_matrix_keeps_what_it_is_asked_to_keep_and_no_gradient() -> None:
    third = np.array([[1 / 3]])
    assert matrix(third, "features", dtype=torch.float64).item() == 1 / 3
    assert not matrix(torch.ones(1, 1, requires_grad=True), "features").requires_grad
    assert matrix(np.ones((1, 4)), "features", width=4).shape == (1, 4)


@pytest.mark.parametrize("shape", [(3,), (0, 3), (3, 0), (2, 2, 2), ()])
def test_a_matrix_has_two_axes_and_a_row(shape: tuple[int, ...]) -> None:
    message = f"expected features of shape [N, D] with a row at least, found shape {list(shape)}"
    with pytest.raises(UserError, match=re.escape(message)):
        matrix(torch.ones(shape), "features")


def test_another_width_is_told() -> None:
    with pytest.raises(UserError, match="expected features of width 4, found width 3"):
        matrix(np.ones((2, 3)), "features", width=4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_the_first_row_that_is_not_finite_is_named(value: float) -> None:
    rows = np.ones((5, 3))
    rows[2, 1] = rows[4, 0] = value
    with pytest.raises(UserError, match=r"expected finite features, found NaN or infinity, first in row 2\b"):
        matrix(rows, "features")
    if value == 1e300:
        assert matrix(rows, "features", dtype=torch.float64).max().item() == value


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64])
def test_whole_numbers_become_int64(dtype: torch.dtype) -> None:
    found = indices(torch.tensor([0, 2, 1], dtype=dtype), "labels", length=3, below=3)
    assert found.dtype == torch.int64
    assert found.tolist() == [0, 2, 1]
    assert len(indices(torch.zeros(0, dtype=dtype), "labels", below=1)) == 0


@pytest.mark.parametrize("given", [np.array([0.0]), np.array([True]), np.array([[0]]), np.array(0)])
def test_what_is_no_row_of_whole_numbers_is_refused(given: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> None:
    with pytest.raises(UserError, match=r"expected labels as whole numbers \[M\]"):
        indices(given, "labels", below=2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0, 3], "expected labels between 0 and 2, found 0 to 3"),
        ([-1, 2], "expected labels between 0 and 2, found -1 to 2"),
        ([0, 1, 2], "expected 2 labels, found 3"),
        ([0], "expected 2 labels, found 1"),
    ],
)
def test_numbers_out_of_range_are_told(given: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        indices(torch.tensor(given), "labels", length=2, below=3)


@pytest.mark.parametrize("value", [1, 3, np.int64(2), np.uint8(1)])
def test_a_count_within_its_bounds(value: int) -> None:
    found = check_count(value, "k", low=1, high=3)
    assert (found, type(found)) == (int(value), int)


@pytest.mark.parametrize("value", [0, 4, True, 2.0, "2", None])
def test_a_count_out_of_its_bounds(value: int) -> None:
    with pytest.raises(UserError, match=re.escape(f"expected k between 1 and 3, found {value!r}")):
        check_count(value, "k", low=1, high=3)


def test_where_no_count_would_do_more_rows_are_asked_for() -> None:
    with pytest.raises(UserError, match=r"expected more rows \(none are left for k\), found 1"):
        check_count(1, "k", low=1, high=0)
    with pytest.raises(UserError, match="expected k between 1 and 1, found 2"):
        check_count(2, "k", low=1, high=1)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_rows_are_constant_up_to_rounding(scale: float) -> None:
    """A millionth of the first row's largest value is rounding, twice that is not."""
    rows = scale * torch.tensor([[-1.0, 0.25], [-1.0, 0.25], [-1.0, 0.25]], dtype=torch.float64)
    assert is_constant(rows)
    for change, constant in ((0.5e-6, True), (2e-6, False), (-2e-6, False)):
        moved = rows.clone()
        moved[2, 1] += scale * change
        assert is_constant(moved) is constant
    exact = torch.tensor([[2.0], [2.5]])
    assert is_constant(exact, tolerance=0.25)
    assert not is_constant(exact, tolerance=0.2)


def test_rows_of_zeros_are_constant() -> None:
    assert is_constant(torch.zeros(3, 2))
    assert is_constant(torch.tensor([[0.0], [1e-19]], dtype=torch.float64))
    assert not is_constant(torch.tensor([[0.0], [1e-17]], dtype=torch.float64))
