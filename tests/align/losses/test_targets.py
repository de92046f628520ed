"""Embedding smoothing and soft targets: the properties that follow from the formula."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.align.losses.info_nce import InfoNCELoss
from pipeline.align.losses.targets import (
    DenseTargets,
    IdentityTargets,
    SmoothedTargets,
    distinct_images,
    intra_modal_targets,
    smoothed_targets,
)
from pipeline.align.recipe import SmoothingOptions, SoftTargetOptions, TemperatureOptions
from pipeline.errors import UserError

Cosines = Callable[..., Tensor]
TAU = 0.1
LOSS = InfoNCELoss(TemperatureOptions(initial=TAU, learned=False, form="raw")).double()
LOSS.temperature.parameter.fill_(TAU)


def test_equals_label_smoothing_of_torch(cosines: Cosines) -> None:
    s, labels = cosines(), torch.arange(7)
    found = LOSS(s, SmoothedTargets(0.1))
    assert found.i2t.item() == pytest.approx(F.cross_entropy(s / TAU, labels, label_smoothing=0.1).item(), abs=1e-12)
    assert found.t2i.item() == pytest.approx(F.cross_entropy(s.T / TAU, labels, label_smoothing=0.1).item(), abs=1e-12)


def test_off_diagonal_spread_is_the_uniform_one_with_another_alpha(cosines: Cosines) -> None:
    n, alpha = 7, 0.12
    dense = torch.full((n, n), alpha / (n - 1), dtype=torch.float64).fill_diagonal_(1 - alpha)
    found, expected = LOSS(cosines(), SmoothedTargets(alpha * n / (n - 1))), LOSS(cosines(), DenseTargets(dense))
    assert found.i2t.item() == pytest.approx(expected.i2t.item(), abs=1e-12)


@pytest.mark.parametrize("schedule", ["fixed", "cosine", "per_sample"])
def test_alpha_zero_is_info_nce(cosines: Cosines, schedule: str) -> None:
    s = cosines()
    plain, off = LOSS(s, IdentityTargets()), SmoothingOptions(alpha=0.0, schedule=schedule)  # type: ignore[arg-type]
    assert isinstance(smoothed_targets(off, s, 0.5), IdentityTargets)
    for targets in (smoothed_targets(off, s, 0.5), SmoothedTargets(0.0)):
        smoothed = LOSS(s, targets)
        assert (smoothed.i2t - plain.i2t).item() == pytest.approx(0, abs=1e-12)
        (found,) = torch.autograd.grad(smoothed.t2i, s, retain_graph=True)
        (expected,) = torch.autograd.grad(plain.t2i, s, retain_graph=True)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_minimum_is_the_entropy_of_the_target() -> None:
    """Logits ln T reach it; any other logits lie above."""
    n, alpha = 6, 0.1
    dense = SmoothedTargets(alpha).dense(torch.zeros(n, n, dtype=torch.float64), None)
    entropy = (-(dense * dense.log()).sum(dim=1).mean()).item()
    assert entropy > 0
    found = LOSS(dense.log() * TAU, SmoothedTargets(alpha))
    assert found.i2t.item() == pytest.approx(entropy, abs=1e-12)
    for scale in (0.5, 2.0):
        assert LOSS(dense.log() * TAU * scale, SmoothedTargets(alpha)).i2t.item() > entropy


@pytest.mark.parametrize("n", [4, 64])
def test_best_gap_between_match_and_mismatch(n: int) -> None:
    """τ·ln((1−α+α/N)/(α/N)) makes the gradient vanish, and grows with N."""
    alpha = 0.1
    gap = TAU * math.log((1 - alpha + alpha / n) / (alpha / n))
    s = (torch.eye(n, dtype=torch.float64) * gap).requires_grad_()
    (gradient,) = torch.autograd.grad(LOSS(s, SmoothedTargets(alpha)).i2t, s)
    assert gradient.abs().max().item() < 1e-12
    assert gap > TAU * math.log((1 - alpha + alpha / 2) / (alpha / 2))


@pytest.mark.parametrize("alpha", [0.2, torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4])])
@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4], [0, 0, 1, 2, 2]])
def test_rows_of_targets_sum_to_one(alpha: float | Tensor, ids: list[int]) -> None:
    allowed = distinct_images(torch.tensor(ids))
    dense = SmoothedTargets(alpha).dense(torch.zeros(5, 5), allowed)
    torch.testing.assert_close(dense.sum(dim=1), torch.ones(5))
    assert bool((dense[~allowed] == 0).all())


def test_schedules() -> None:
    s = torch.diag(
        torch.tensor([1.0, 0.0, -0.5, 1.5])
    )  # rounding may bring a cosine above 1: a share is never negative
    cosine = [smoothed_targets(SmoothingOptions(alpha=0.2, schedule="cosine"), s, t) for t in (0.0, 0.5, 1.0)]
    assert [t.alpha for t in cosine if isinstance(t, SmoothedTargets)] == pytest.approx([0.2, 0.1, 0.0])
    per_sample = smoothed_targets(SmoothingOptions(alpha=0.2, schedule="per_sample"), s, 0.0)
    assert isinstance(per_sample, SmoothedTargets)
    torch.testing.assert_close(torch.as_tensor(per_sample.alpha), torch.tensor([0.0, 0.2, 0.2, 0.0]))
    fixed = smoothed_targets(SmoothingOptions(alpha=0.2), s, 0.9)
    assert isinstance(fixed, SmoothedTargets)
    assert fixed.alpha == 0.2


def test_per_sample_share_has_no_gradient(cosines: Cosines) -> None:
    targets = smoothed_targets(SmoothingOptions(alpha=0.2, schedule="per_sample"), cosines(), 0.0)
    assert isinstance(targets, SmoothedTargets)
    assert not torch.as_tensor(targets.alpha).requires_grad


def test_soft_targets_follow_the_formula() -> None:
    image, text = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    options = SoftTargetOptions(weight=0.4, temperature=0.2)
    found = intra_modal_targets(image, text, options).dense(torch.zeros(6, 6, dtype=torch.float64), None)
    for i in range(6):
        scores = []
        for j in range(6):
            pair = [F.cosine_similarity(m[i] - m.mean(0), m[j] - m.mean(0), dim=0) for m in (image, text)]
            scores.append((pair[0] + pair[1]).item() / 2 / 0.2)
        denominator = sum(math.exp(score) for score in scores)
        row = [0.4 * math.exp(score) / denominator + 0.6 * (i == j) for j, score in enumerate(scores)]
        torch.testing.assert_close(found[i], torch.tensor(row, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("given", "exact"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1e-6), (torch.float16, 1e-6)]
)
def test_soft_targets_are_computed_in_float32_at_least(given: torch.dtype, exact: float) -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(6, width, generator=generator, dtype=torch.float64).to(given) for width in (4, 3))
    like, options = torch.zeros(6, 6, dtype=torch.float64), SoftTargetOptions(weight=0.4, temperature=0.2)
    found = intra_modal_targets(image, text, options).dense(like, None)
    expected = intra_modal_targets(image.double(), text.double(), options).dense(like, None)
    torch.testing.assert_close(found, expected, atol=exact, rtol=0)


@pytest.mark.parametrize("alpha", [-0.1, 1.0, math.nan])
def test_impossible_shares_are_refused(alpha: float) -> None:
    with pytest.raises(UserError, match=r"smoothing\.alpha in \[0, 1\)"):
        SmoothingOptions(alpha=alpha)
