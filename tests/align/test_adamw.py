"""Our AdamW against torch's, which costs seconds to import."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.align.adamw import AdamW


def gradients(shapes: list[Tensor], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape.shape, generator=generator, dtype=shape.dtype) for shape in shapes]


@pytest.mark.slow
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_same_steps_as_torch(weight_decay: float, clip: float) -> None:
    start = gradients([torch.empty(4, 3, dtype=torch.float64), torch.empty(5, dtype=torch.float64)], 0)
    ours, theirs = ([nn.Parameter(value.clone()) for value in start] for _ in range(2))
    mine = AdamW(ours, betas=(0.9, 0.95), weight_decay=weight_decay)
    other = torch.optim.AdamW(
        [{"params": theirs[:1], "weight_decay": weight_decay}, {"params": theirs[1:], "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )
    for step in range(1, 20):
        rate = 0.1 / step
        for one, two, gradient in zip(ours, theirs, gradients(start, step), strict=True):
            one.grad, two.grad = gradient.clone(), gradient.clone()
        mine.clip(clip)
        if clip:
            nn.utils.clip_grad_norm_(theirs, clip)
        mine.step(rate)
        for group in other.param_groups:
            group["lr"] = rate
        other.step()
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


def test_follows_the_formula() -> None:
    parameter = nn.Parameter(torch.tensor([[2.0]], dtype=torch.float64))
    optimiser = AdamW([parameter], betas=(0.9, 0.99), weight_decay=0.5)
    first = second = 0.0
    expected = 2.0
    for step, gradient in enumerate((1.0, -3.0, 0.5), start=1):
        parameter.grad = torch.tensor([[gradient]], dtype=torch.float64)
        optimiser.step(0.1)
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
        expected -= 0.1 * 0.5 * expected
        expected -= 0.1 * (first / (1 - 0.9**step)) / ((second / (1 - 0.99**step)) ** 0.5 + 1e-8)
    assert parameter.item() == pytest.approx(expected, rel=1e-12)


def test_vectors_are_not_decayed_and_idle_parameters_stay() -> None:
    matrix, vector, idle = (nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (2,), (3, 3)))
    optimiser = AdamW([matrix, vector, idle], betas=(0.9, 0.9), weight_decay=0.5)
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
    optimiser.step(0.1)
    assert matrix[0, 0].item() == pytest.approx(0.95)
    assert torch.equal(vector.detach(), torch.ones(2))
    assert torch.equal(idle.detach(), torch.ones(3, 3))


def test_clip_leaves_small_gradients_alone() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimiser = AdamW([parameter], betas=(0.9, 0.9), weight_decay=0.0)
    parameter.grad = torch.tensor([3.0, 4.0])
    optimiser.clip(10.0)
    assert parameter.grad.tolist() == [3.0, 4.0]
    optimiser.clip(1.0)
    assert parameter.grad.norm().item() == pytest.approx(1.0, rel=1e-5)
    optimiser.zero_grad()
    optimiser.clip(1.0)
    assert parameter.grad is None
