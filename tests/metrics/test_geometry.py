"""Trustworthiness and continuity against scikit-learn; the modality gap against arithmetic."""

import numpy as np
import pytest
import torch
from sklearn.manifold import trustworthiness as their_trustworthiness
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics import similarity
from pipeline.metrics.similarity import continuity, modality_gap, trustworthiness


def spaces(rows: int = 150) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 12, generator=generator)
    return x, x[:, :4] + 0.3 * torch.randn(rows, 4, generator=generator)


@pytest.mark.parametrize("k", [1, 5, 30])
def test_both_equal_scikit_learn(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "_BLOCK", 64)
    x, y = spaces()
    a, b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x.numpy(), y.numpy()))
    assert trustworthiness(x, y, k) == pytest.approx(their_trustworthiness(a, b, n_neighbors=k))
    assert continuity(x, y, k) == pytest.approx(their_trustworthiness(b, a, n_neighbors=k))
    if k == 5:
        assert (trustworthiness(x, y), continuity(x, y)) == (trustworthiness(x, y, 5), continuity(x, y, 5))


def test_rotation_and_scale_keep_everything() -> None:
    x, _ = spaces()
    turned = 3 * x @ torch.linalg.qr(torch.randn(12, 12)).Q
    assert trustworthiness(x, turned, 5) == pytest.approx(1.0, abs=1e-4)
    assert continuity(x, turned, 5) == pytest.approx(1.0, abs=1e-4)


def test_modality_gap() -> None:
    image, text = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[-1.0, 0.0], [0.0, -1.0], [0.0, -1.0]])
    assert modality_gap(image, text) == pytest.approx(np.hypot(0.5 + 1 / 3, 0.5 + 2 / 3))
    assert modality_gap(image, image) == 0.0
    third = torch.full((3, 2), 1 / 3, dtype=torch.float64)
    assert modality_gap(third, 0 * third) == pytest.approx(2**0.5 / 3, rel=1e-14)


@pytest.mark.parametrize(
    ("x", "y", "k", "message"),
    [
        (torch.randn(10, 3), torch.randn(9, 3), 2, r"as many rows after as before \(10\), found 9"),
        (torch.randn(10, 3), torch.randn(10, 3), 5, r"expected k \(fewer than half of the rows\) between 1 and 4"),
        (torch.randn(1, 3), torch.randn(1, 3), 1, "more rows"),
        (torch.randn(10, 3), torch.full((10, 3), torch.nan), 2, "expected finite features after, found NaN"),
        (torch.full((10, 3), torch.nan), torch.randn(10, 3), 2, "expected finite features before, found NaN"),
        (torch.randn(10, 3), torch.zeros(10, 3), 2, "expected features after: rows that are not zero"),
        (torch.eye(10)[:, :3], torch.randn(10, 3), 2, "expected features before: rows that are not zero"),
        (torch.ones(10, 3), torch.randn(10, 3), 2, "expected features before that vary"),
        (torch.randn(10, 3), torch.ones(10, 3), 2, "expected features after that vary"),
        (torch.randn(10, 3), torch.randn(10, 3), 0, r"expected k \(.*\) between 1 and 4, found 0"),
    ],
)
def test_hostile_input_is_told(x: Tensor, y: Tensor, k: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        trustworthiness(x, y, k)


def test_more_hostile_input() -> None:
    with pytest.raises(UserError, match="expected text embeddings of width 3, found width 2"):
        modality_gap(torch.randn(4, 3), torch.randn(4, 2))
    with pytest.raises(UserError, match="expected finite image embeddings, found"):
        modality_gap(torch.full((4, 3), torch.nan), torch.randn(4, 3))
