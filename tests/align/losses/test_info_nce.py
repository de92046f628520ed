"""Both directions at once, against torch's own cross-entropy, and in blocks as in one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.align.losses.info_nce import InfoNCELoss, both_cross_entropies
from pipeline.align.losses.targets import IdentityTargets, SmoothedTargets, Targets
from pipeline.align.recipe import TemperatureOptions

Cosines = Callable[..., Tensor]
TAU = 0.07


def value_and_gradients(losses: tuple[Tensor, Tensor], *leaves: Tensor) -> list[Tensor]:
    total = 0.3 * losses[0] + 0.7 * losses[1]
    return [*losses, *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("elements", [1, 15, 1 << 17], ids=["row by row", "two rows", "at once"])
@pytest.mark.parametrize("n", [2, 7])
def test_agrees_with_torch(
    cosines: Cosines, n: int, elements: int, alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.align.losses.blocks.CPU_ELEMENTS", elements)
    similarity, tau = cosines(n), torch.tensor(TAU, dtype=torch.float64, requires_grad=True)
    logits, labels = similarity / tau, torch.arange(n)
    expected = tuple(F.cross_entropy(z, labels, label_smoothing=alpha) for z in (logits, logits.T))
    found = both_cross_entropies(similarity, tau, alpha)
    for one, other in zip(
        value_and_gradients(found, similarity, tau),
        value_and_gradients((expected[0], expected[1]), similarity, tau),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("alpha", [0.0, 0.1, torch.linspace(0, 0.5, 5, dtype=torch.float64)])
def test_gradcheck(cosines: Cosines, alpha: float | Tensor) -> None:
    tau = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, t: both_cross_entropies(s, t, alpha), (cosines(5), tau))


def test_similarities_that_lie_transposed(cosines: Cosines) -> None:
    similarity, tau = cosines(), torch.tensor(TAU, dtype=torch.float64, requires_grad=True)
    straight = value_and_gradients(both_cross_entropies(similarity.T.contiguous(), tau, 0.1), similarity, tau)
    turned = value_and_gradients(both_cross_entropies(similarity.T, tau, 0.1), similarity, tau)
    for one, other in zip(straight, turned, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("tau", [0.001, 0.5])
def test_finite_at_both_ends_of_the_temperature(cosines: Cosines, tau: float) -> None:
    similarity = cosines(40).detach().float().requires_grad_()
    temperature = torch.tensor(tau, requires_grad=True)
    for tensor in value_and_gradients(both_cross_entropies(similarity, temperature, 0.1), similarity, temperature):
        assert bool(torch.isfinite(tensor).all())


def test_fixed_temperature_and_one_direction_alone(cosines: Cosines) -> None:
    similarity = cosines()
    rows, _ = both_cross_entropies(similarity, torch.tensor(TAU, dtype=torch.float64), 0.0)
    (gradient,) = torch.autograd.grad(rows, similarity)
    torch.testing.assert_close(gradient, (torch.softmax(similarity / TAU, 1) - torch.eye(7)) / 7 / TAU)


@pytest.mark.parametrize("targets", [IdentityTargets(), SmoothedTargets(0.1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plain_and_smoothed_targets_keep_nothing_but_the_similarities(
    cosines: Cosines, targets: Targets, dtype: torch.dtype
) -> None:
    similarity = cosines(9).detach().to(dtype).requires_grad_()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        InfoNCELoss(TemperatureOptions())(similarity, targets)
    assert {tensor.data_ptr() for tensor in kept if tensor.numel() >= 81} == {similarity.data_ptr()}
