"""Decay goes to matrices alone; the rate is what is set."""

import torch

from pipeline.align.optimiser import make_optimiser, set_rate


def test_matrices_decay_and_vectors_do_not() -> None:
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    idle = torch.nn.Parameter(torch.ones(2, 2), requires_grad=False)
    optimiser = make_optimiser([matrix, vector, idle], betas=(0.9, 0.9), weight_decay=0.5)
    for parameter in (matrix, vector):
        parameter.grad = torch.zeros_like(parameter)
    set_rate(optimiser, 0.1)
    optimiser.step()
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 1 - 0.1 * 0.5))
    torch.testing.assert_close(vector.detach(), torch.ones(2))
    torch.testing.assert_close(idle, torch.ones(2, 2))


def test_no_vectors_is_no_group() -> None:
    optimiser = make_optimiser([torch.nn.Parameter(torch.ones(2, 2))], betas=(0.9, 0.95), weight_decay=0.1)
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.1]
