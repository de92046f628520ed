"""Decay goes to matrices alone; the rate is what is set; fused steps are the plain ones."""

import torch
from torch import nn

from pipeline.align.optimiser import make_optimiser, set_rate

SHAPES = [(5, 7), (7,), (), (3, 2, 2)]


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in SHAPES]


def test_fused_steps_are_the_plain_ones() -> None:
    ours, theirs = parameters(), parameters()
    groups = [{"params": theirs[:1] + theirs[3:], "weight_decay": 0.1}, {"params": theirs[1:3], "weight_decay": 0.0}]
    oracle = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=False, foreach=False)
    optimiser = make_optimiser(ours, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(1, 6):
        for each in (optimiser, oracle):
            set_rate(each, 0.1 / step)
        for one, other, source in zip(ours, theirs, parameters(step), strict=True):
            one.grad, other.grad = source.detach().clone(), source.detach().clone()
        optimiser.step()
        oracle.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_matrices_decay_and_vectors_do_not() -> None:
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    idle = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    optimiser = make_optimiser([matrix, vector, idle], betas=(0.9, 0.9), weight_decay=0.5)
    for parameter in (matrix, vector):
        parameter.grad = torch.zeros_like(parameter)
    set_rate(optimiser, 0.1)
    optimiser.step()
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 1 - 0.1 * 0.5))
    torch.testing.assert_close(vector.detach(), torch.ones(2))
    torch.testing.assert_close(idle, torch.ones(2, 2))


def test_no_vectors_is_no_group() -> None:
    optimiser = make_optimiser([nn.Parameter(torch.ones(2, 2))], betas=(0.9, 0.95), weight_decay=0.1)
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.1]
