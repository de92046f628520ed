"""The counting underneath retrieval: words of bytes, the float32 band, the float64 fall-back."""

import pytest
import torch

from pipeline.metrics import retrieval
from pipeline.metrics.retrieval import count_at_least, count_true, pair_scores, thresholds


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 8), (255, 9), (256, 16), (1000, 33), (2, 5000)])
def test_counting_equals_summing(shape: tuple[int, int]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.3
    for dim in (0, 1):
        assert torch.equal(count_true(mask, dim), mask.sum(dim=dim))
        assert torch.equal(count_true(torch.ones(shape, dtype=torch.bool), dim), torch.ones(shape).sum(dim=dim).long())


@pytest.mark.parametrize("limit", [0, 10**9])
@pytest.mark.parametrize("dim", [0, 1])
def test_near_scores_are_decided_in_float64(dim: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores a hair apart, below what float32 tells apart: both ways of deciding give the float64 answer."""
    monkeypatch.setattr(retrieval, "_PAIR_LIMIT", limit)
    generator = torch.Generator().manual_seed(0)
    base = torch.nn.functional.normalize(torch.randn(1, 32, generator=generator), dim=1)
    left = (base + 1e-7 * torch.randn(20, 32, generator=generator)).float()
    right = (base + 1e-7 * torch.randn(30, 32, generator=generator)).float()
    exact = left.double() @ right.double().T
    match = exact.median(dim=dim).values
    queries, gallery = (left, right) if dim == 1 else (right, left)
    ours = count_at_least(left @ right.T, left, right, thresholds(match, queries, gallery), dim)
    assert torch.equal(ours, (exact >= match.unsqueeze(dim)).sum(dim=dim))


def test_pair_scores_of_copies_are_equal() -> None:
    left, right = torch.randn(1, 77).repeat(500, 1), torch.randn(1, 77).repeat(500, 1)
    scores = pair_scores(left, right, torch.arange(500), torch.arange(500), block=33)
    assert bool((scores == scores[0]).all())
