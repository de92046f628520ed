"""The counting underneath retrieval: words of bytes, the float32 band, the float64 fall-back."""

import numpy as np
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


@pytest.mark.parametrize("limit", [0, 10**9])
@pytest.mark.parametrize("dim", [0, 1])
def test_left_out_entries_are_never_counted(dim: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_PAIR_LIMIT", limit)
    left, right = torch.ones(3, 2), torch.ones(4, 2)
    scores = left @ right.T
    scores[0, 1] = scores[2, 3] = scores[1, 1] = -torch.inf
    queries, gallery = (left, right) if dim == 1 else (right, left)
    match = torch.full((len(queries),), 2.0, dtype=torch.float64)
    ours = count_at_least(scores, left, right, thresholds(match, queries, gallery), dim)
    assert torch.equal(ours, (scores > -torch.inf).sum(dim=dim))


@pytest.mark.parametrize("width", [1, 32, 384])
def test_the_band_is_what_it_says(width: int) -> None:
    """(8 + d/16) units in the last place of |q|·max|g|; a tie is 1e-12 of that length."""
    rng = np.random.default_rng(0)
    query, gallery = rng.standard_normal((3, width)).astype(np.float32), rng.standard_normal((5, width)) * 7
    length = np.linalg.norm(query.astype(np.float64), axis=1) * np.linalg.norm(gallery, axis=1).max()
    value = torch.arange(3, dtype=torch.float64)
    found = thresholds(value, torch.from_numpy(query), torch.from_numpy(gallery).float())
    assert found.value is value
    np.testing.assert_allclose(found.band, (8 + width / 16) / 2**24 * length, rtol=1e-6)
    np.testing.assert_allclose(found.tie, 1e-12 * length, rtol=1e-6)
    some = found.part(slice(1, 3))
    for ours, whole in ((some.value, found.value), (some.band, found.band), (some.tie, found.tie)):
        assert ours.tolist() == whole.tolist()[1:]
