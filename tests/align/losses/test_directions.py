"""Direction weights: against loops, and the properties that follow from the formulas."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.align.losses.directions import SIGNALS, DirectionWeights
from pipeline.align.recipe import DirectionOptions
from pipeline.errors import UnknownNameError, UserError
from tests.placement import Placed

Cosines = Callable[..., Tensor]
TAU = torch.tensor(0.1, dtype=torch.float64)
FREE = {"minimum": 0.0, "beta": 0.0}


def weights_of(schedule: str, s: Tensor, **options: float) -> tuple[float, float]:
    module = DirectionWeights(DirectionOptions(schedule=schedule, **options))
    found = module(s, TAU)
    return found.i2t.item(), found.t2i.item()


def slow_signal(schedule: str, s: Tensor) -> float:
    n, total = len(s), 0.0
    for i in range(n):
        row = [value.item() for value in s[i]]
        if schedule == "variance":
            mean = sum(row) / n
            total += sum((value - mean) ** 2 for value in row) / n
        elif schedule == "entropy":
            mass = sum(math.exp(value / 0.1) for value in row)
            total -= sum(math.exp(v / 0.1) / mass * math.log(math.exp(v / 0.1) / mass) for v in row) / math.log(n)
        else:
            total += row[i] - max(value for j, value in enumerate(row) if j != i)
    return total / n


@pytest.mark.parametrize("schedule", ["entropy", "cosine_spread", "variance"])
def test_agrees_with_slow_loop(cosines: Cosines, schedule: str) -> None:
    s = cosines().detach() + 2 * torch.eye(7, dtype=torch.float64)
    s[:, 0] *= 0.3
    first, second = slow_signal(schedule, s), slow_signal(schedule, s.T)
    if schedule == "cosine_spread":
        first, second = 1 / (first + 0.01), 1 / (second + 0.01)
    assert weights_of(schedule, s, **FREE)[0] == pytest.approx(first / (first + second), abs=1e-6)


@pytest.mark.parametrize("schedule", SIGNALS)
@pytest.mark.parametrize("total", [1.0, 2.0])
def test_weights_sum_to_k_and_transposing_swaps_them(cosines: Cosines, schedule: str, total: float) -> None:
    s = cosines().detach()
    s[:, 0] *= 0.3
    first, second = weights_of(schedule, s, total=total), weights_of(schedule, s.T, total=total)
    assert sum(first) == pytest.approx(total, abs=1e-12)
    assert first == pytest.approx(second[::-1], abs=1e-12)


@pytest.mark.parametrize("schedule", ["entropy", "cosine_spread", "variance"])
def test_statistics_are_per_anchor(schedule: str) -> None:
    """The trap: a statistic of the whole matrix is the same for S and Sᵀ and pins λ at ½."""
    s = torch.eye(6, dtype=torch.float64) * 0.2 + torch.linspace(0, 0.5, 6, dtype=torch.float64)[None, :]
    assert abs(weights_of(schedule, s, **FREE)[0] - 0.5) > 1e-3


def test_variance_points_where_gamma_says() -> None:
    s = torch.linspace(0, 0.5, 6, dtype=torch.float64)[None, :] + torch.eye(6, dtype=torch.float64) * 0.1
    up, down = (weights_of("variance", s, gamma=gamma, **FREE) for gamma in (1.0, -1.0))
    assert up[0] > 0.5 > down[0]
    assert up[0] == pytest.approx(down[1], abs=1e-6)


def test_gamma_zero_is_the_fixed_baseline(cosines: Cosines) -> None:
    assert weights_of("variance", cosines(), gamma=0.0) == weights_of("fixed", cosines()) == (0.5, 0.5)


def test_weights_are_clipped() -> None:
    s = torch.linspace(0, 1, 8, dtype=torch.float64)[None, :].expand(8, 8)
    assert weights_of("variance", s, beta=0.0) == pytest.approx((0.9, 0.1))


def test_average_starts_at_the_first_value_and_moves_by_beta(cosines: Cosines) -> None:
    module = DirectionWeights(DirectionOptions(schedule="variance", beta=0.75))
    first, second = cosines(seed=1).detach(), cosines(seed=2).detach()
    module(first, TAU)
    assert module.average[0].item() == pytest.approx(slow_signal("variance", first))
    module(second, TAU)
    expected = 0.75 * slow_signal("variance", first) + 0.25 * slow_signal("variance", second)
    assert module.average[0].item() == pytest.approx(expected)


def test_evaluation_leaves_the_average_alone(cosines: Cosines) -> None:
    module = DirectionWeights(DirectionOptions(schedule="variance"))
    trained = module(cosines(seed=1), TAU)
    before = module.average.clone()
    module.eval()
    evaluated = module(cosines(seed=2), TAU)
    assert torch.equal(module.average, before)
    assert evaluated == trained


def test_evaluation_before_any_step_is_the_fixed_baseline(cosines: Cosines) -> None:
    module = DirectionWeights(DirectionOptions(schedule="variance")).eval()
    assert module(cosines(), TAU).i2t.item() == 0.5


def test_state_travels_with_a_checkpoint(cosines: Cosines) -> None:
    module, restored = (DirectionWeights(DirectionOptions(schedule="variance")) for _ in range(2))
    module(cosines(seed=1), TAU)
    restored.load_state_dict(module.state_dict())
    assert restored(cosines(seed=2), TAU) == module(cosines(seed=2), TAU)


@pytest.mark.parametrize("schedule", SIGNALS)
def test_weights_carry_no_gradient_and_stay_finite(schedule: str) -> None:
    module = DirectionWeights(DirectionOptions(schedule=schedule))
    for s in (torch.zeros(2, 2), torch.ones(3, 3), -torch.eye(3)):
        found = module(s.requires_grad_(), torch.tensor(0.01, requires_grad=True))
        assert not found.i2t.requires_grad
        assert 0.1 <= found.i2t.item() <= 0.9


def test_hardest_mismatch_is_no_caption_of_the_same_image() -> None:
    s = torch.eye(3, dtype=torch.float64)
    s[0, 1] = 0.9
    allowed = torch.ones(3, 3, dtype=torch.bool)
    allowed[0, 1] = allowed[1, 0] = False
    signal = SIGNALS["cosine_spread"].signal
    assert signal is not None
    assert signal(s, TAU, allowed).item() == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", ["entropy", "cosine_spread", "variance"])
def test_signals_are_the_papers_numbers(cosines: Cosines, schedule: str) -> None:
    """Not only their ratio: an entropy of 1 is that of a row that knows nothing, whatever N."""
    signal = SIGNALS[schedule].signal
    assert signal is not None
    s = cosines().detach()
    assert signal(s, TAU, None).item() == pytest.approx(slow_signal(schedule, s), rel=1e-12)
    if schedule == "entropy":
        assert signal(torch.zeros(5, 5, dtype=torch.float64), TAU, None).item() == pytest.approx(1.0)


def test_a_match_without_a_mismatch_is_as_far_as_a_cosine_can_be() -> None:
    signal = SIGNALS["cosine_spread"].signal
    assert signal is not None
    s = torch.full((2, 2), 0.3, dtype=torch.float64)
    alone = torch.eye(2, dtype=torch.bool)
    assert signal(s, TAU, alone).item() == pytest.approx(0.3 - -1.0)
    assert signal(-torch.ones(2, 2, dtype=torch.float64), TAU, None).item() == 0.0


def test_captions_of_one_image_count_in_neither_direction(cosines: Cosines) -> None:
    """The mask reaches the signal of both directions: the hardest *allowed* mismatch of each row and column."""
    s = cosines(4).detach()
    s[0, 1] = s[1, 0] = 5.0
    allowed = torch.ones(4, 4, dtype=torch.bool)
    allowed[0, 1] = allowed[1, 0] = False
    hidden = torch.where(allowed, s, -2.0)
    first, second = (max(0.0, slow_signal("cosine_spread", m)) for m in (hidden, hidden.T))
    module = DirectionWeights(DirectionOptions(schedule="cosine_spread", **FREE))
    module(s, TAU, allowed)
    assert module.average.tolist() == pytest.approx([slow_signal("cosine_spread", m) for m in (hidden, hidden.T)])
    found = module.eval()(s, TAU, allowed)
    assert found.i2t.item() == pytest.approx(1 / (first + 0.01) / (1 / (first + 0.01) + 1 / (second + 0.01)))


def test_weights_are_clipped_at_both_ends() -> None:
    s = torch.linspace(0, 1, 8, dtype=torch.float64)[None, :].expand(8, 8)
    assert weights_of("variance", s.T, beta=0.0, minimum=0.2) == pytest.approx((0.2, 0.8))


def test_weights_have_the_type_of_the_similarities_and_averages_float64(cosines: Cosines) -> None:
    module = DirectionWeights(DirectionOptions(schedule="variance"))
    found = module(cosines().detach().float(), TAU.float())
    assert (found.i2t.dtype, found.t2i.dtype, module.average.dtype) == (torch.float32, torch.float32, torch.float64)


@pytest.mark.parametrize("schedule", SIGNALS)
def test_weights_lie_where_the_similarities_lie(cosines: Cosines, schedule: str) -> None:
    module, s = DirectionWeights(DirectionOptions(schedule=schedule)), cosines().detach()
    with Placed():
        module(s, TAU)


def test_unknown_schedule_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match="fixed, entropy, cosine_spread, variance"):
        DirectionWeights(DirectionOptions(schedule="linear"))


@pytest.mark.parametrize(("field", "value"), [("beta", 1.0), ("minimum", 0.6), ("total", 0.0), ("epsilon", 0.0)])
def test_impossible_options_are_refused(field: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"direction\.{field}"):
        DirectionOptions(**{field: value})  # type: ignore[arg-type]


def test_epsilon_of_the_options_takes_the_place_of_the_schedules_own(cosines: Cosines) -> None:
    s = cosines().detach()
    first, second = slow_signal("variance", s) + 0.5, slow_signal("variance", s.T) + 0.5
    assert weights_of("variance", s, epsilon=0.5, **FREE)[0] == pytest.approx(first / (first + second), rel=1e-12)
