"""AdamW against torch's own; decay goes to matrices alone; the rate is what is set."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from pipeline.align.optimiser import AdamW

SHAPES = [(5, 7), (7,), (), (3, 2, 2)]


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in SHAPES]


@pytest.mark.parametrize("chunk", [4, 1 << 15])
@pytest.mark.parametrize("transposed", [False, True])
def test_agrees_with_torch(chunk: int, transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.align.optimiser.CHUNK", chunk)
    ours, theirs = parameters(), parameters()
    if transposed:
        ours[0] = nn.Parameter(ours[0].detach().T.contiguous().T)
    groups = [{"params": theirs[:1] + theirs[3:], "weight_decay": 0.1}, {"params": theirs[1:3], "weight_decay": 0.0}]
    oracle = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    optimiser = AdamW(ours, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(1, 6):
        rate = 0.1 / step
        for group in oracle.param_groups:
            group["lr"] = rate
        optimiser.rate = rate
        for one, other, source in zip(ours, theirs, parameters(step), strict=True):
            one.grad, other.grad = source.detach().clone(), source.detach().clone()
        optimiser.step()
        oracle.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_matrices_decay_and_vectors_do_not() -> None:
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    idle = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    optimiser = AdamW([matrix, vector, idle], betas=(0.9, 0.9), weight_decay=0.5)
    for parameter in (matrix, vector):
        parameter.grad = torch.zeros_like(parameter)
    optimiser.rate = 0.1
    optimiser.step()
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 1 - 0.1 * 0.5))
    torch.testing.assert_close(vector.detach(), torch.ones(2))
    torch.testing.assert_close(idle, torch.ones(2, 2))


def test_what_has_no_gradient_stays() -> None:
    one, other = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimiser = AdamW([one, other], betas=(0.9, 0.9), weight_decay=0.5)
    one.grad = torch.ones(2, 2)
    optimiser.step()
    assert not torch.equal(one, other)
    torch.testing.assert_close(other.detach(), torch.ones(2, 2))
    optimiser.zero_grad()
    assert one.grad is None


def test_training_loads_no_compiler() -> None:
    """torch._dynamo takes over a second to load, which a training of a few seconds would feel."""
    program = """
import sys, torch
from pipeline.align.recipe import make_recipe
from pipeline.align.start import starting_projectors
from pipeline.align.tensors import PairTensors
from pipeline.align.train import train
data = PairTensors(torch.randn(20, 6), torch.randn(20, 5), torch.arange(21))
recipe = make_recipe("combined", {"dim": 4, "training": {"max_steps": 2, "validations": 1}})
train(data, data, recipe, starting_projectors(data, data, recipe, ([6], [5]), 1), seed=1)
sys.exit("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
