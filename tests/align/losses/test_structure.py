"""STRUCTURE: against a loop written from the formula, and every property that it promises."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.align.losses.structure import neighbourhoods, row_divergence, structure_term, structure_weight
from pipeline.align.recipe import StructureOptions
from pipeline.errors import UserError
from tests.placement import Placed

FORMS = ["js", "as_coded"]


def features(n: int = 9, width: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator, dtype=torch.float64)


def rotation(width: int, seed: int = 1) -> Tensor:
    q: Tensor = torch.linalg.qr(features(width, width, seed))[0]
    return q


def slow_neighbourhoods(x: Tensor, tau: float, centre_first: bool, mask: bool) -> list[list[float]]:
    rows = [row.clone() for row in x]
    if centre_first:
        mean = sum(rows) / len(rows)
        rows = [(row - mean) / (row - mean).norm() for row in rows]
    else:
        rows = [row / row.norm() for row in rows]
        mean = sum(rows) / len(rows)
        rows = [row - mean for row in rows]
    out = []
    for i, row in enumerate(rows):
        masses = [0.0 if mask and i == j else math.exp((row @ other).item() / tau) for j, other in enumerate(rows)]
        out.append([mass / sum(masses) for mass in masses])
    return out


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def slow_structure(x: Tensor, a: Tensor, options: StructureOptions) -> float:
    one, two = (
        slow_neighbourhoods(m, options.temperature, options.centre_first, options.mask_diagonal) for m in (x, a)
    )
    total = 0.0
    for level in range(1, options.levels + 1):
        powers = [torch.linalg.matrix_power(torch.tensor(m, dtype=torch.float64), level).tolist() for m in (one, two)]
        for p, q in zip(*powers, strict=True):
            m = [(s + t) / 2 for s, t in zip(p, q, strict=True)]
            value = (kl(p, m) + kl(q, m)) / 2 if options.form == "js" else (kl(m, q) + kl(m, p)) / 2
            total += value / level / len(x)
    return total / options.levels


@pytest.mark.parametrize("levels", [1, 2, 3, 5])
@pytest.mark.parametrize("centre_first", [False, True])
def test_agrees_with_slow_loop(levels: int, centre_first: bool) -> None:
    x, a = features(), features(width=4, seed=2)
    for form in FORMS:
        options = StructureOptions(levels=levels, temperature=0.3, centre_first=centre_first, form=form)  # type: ignore[arg-type]
        found = structure_term(x, a, options).value.item()
        assert found == pytest.approx(slow_structure(x, a, options), rel=1e-9)


def test_masked_diagonal_agrees_with_slow_loop() -> None:
    options = StructureOptions(temperature=0.3, mask_diagonal=True)
    x, a = features(), features(width=4, seed=2)
    found = structure_term(x, a, options)
    assert found.value.item() == pytest.approx(slow_structure(x, a, options), rel=1e-9)
    assert found.diagonal_features.item() == 0


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mask_diagonal", [False, True])
@pytest.mark.parametrize("centre_first", [False, True])
def test_rotation_and_scale_cost_nothing(levels: int, form: str, mask_diagonal: bool, centre_first: bool) -> None:
    options = StructureOptions(
        levels=levels,
        form=form,  # type: ignore[arg-type]
        mask_diagonal=mask_diagonal,
        centre_first=centre_first,
    )
    x = features(12)
    assert 0 <= structure_term(x, 3.7 * x @ rotation(6), options).value.item() < 1e-10


def test_translation_costs_nothing_only_when_centred_first() -> None:
    x = features()
    moved = x + 5.0
    assert structure_term(x, moved, StructureOptions(centre_first=True)).value.item() < 1e-10
    assert structure_term(x, moved, StructureOptions()).value.item() > 1e-3


@pytest.mark.parametrize("levels", [1, 3])
def test_order_of_samples_does_not_matter(levels: int) -> None:
    x, a, order = features(), features(seed=2), torch.randperm(9, generator=torch.Generator().manual_seed(0))
    options = StructureOptions(levels=levels)
    found, permuted = structure_term(x, a, options).value, structure_term(x[order], a[order], options).value
    assert found.item() == pytest.approx(permuted.item(), rel=1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(5))
def test_never_negative_and_js_below_ln_two(form: str, seed: int) -> None:
    options = StructureOptions(form=form, temperature=0.001)  # type: ignore[arg-type]
    x, a = features(seed=seed), features(seed=seed + 10)
    value = structure_term(x, a, options).value.item()
    assert value >= 0
    if form == "js":
        assert value <= math.log(2) + 1e-12


def test_js_reaches_ln_two_for_disjoint_rows() -> None:
    identity = torch.eye(4, dtype=torch.float64)
    assert row_divergence(identity, identity.roll(1, dims=0), "js").item() == pytest.approx(math.log(2))


def test_forms_agree_to_second_order() -> None:
    p = torch.softmax(features(6, 6), dim=1)
    for scale, tolerance in ((1e-2, 1e-2), (1e-3, 1e-3)):
        q = torch.softmax(p.log() + scale * features(6, 6, 4), dim=1)
        js, coded = (row_divergence(q, p, form).item() for form in ("js", "as_coded"))
        assert js == pytest.approx(coded, rel=tolerance)


@pytest.mark.parametrize("level", [1, 2, 5])
@pytest.mark.parametrize("mask_diagonal", [False, True])
def test_powers_are_row_stochastic(level: int, mask_diagonal: bool) -> None:
    p = neighbourhoods(features(), StructureOptions(mask_diagonal=mask_diagonal))
    power = torch.linalg.matrix_power(p, level)
    assert bool((power >= 0).all())
    torch.testing.assert_close(power.sum(dim=1), torch.ones(9, dtype=torch.float64))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("mask_diagonal", [False, True])
@pytest.mark.parametrize("kind", ["duplicates", "zero rows", "all zero", "two rows", "bf16", "fp16", "huge"])
def test_finite_values_and_gradients(kind: str, form: str, levels: int, mask_diagonal: bool) -> None:
    x, a = features().float(), features(width=4, seed=2).float()
    if kind == "duplicates":
        x, a = x[[0] * 9], a[[0] * 9]
    elif kind == "zero rows":
        x[3], a[5] = 0, 0
    elif kind == "all zero":
        x, a = x * 0, a * 0
    elif kind == "two rows":
        x, a = x[:2], a[:2]
    elif kind in ("bf16", "fp16"):
        dtype = torch.bfloat16 if kind == "bf16" else torch.float16
        x, a = x.to(dtype), a.to(dtype)
    else:
        x, a = x * 1e15, a * 1e15
    a = a.detach().requires_grad_()
    options = StructureOptions(form=form, levels=levels, mask_diagonal=mask_diagonal)  # type: ignore[arg-type]
    found = structure_term(x, a, options)
    found.value.backward()  # type: ignore[no-untyped-call]
    assert a.grad is not None
    assert bool(torch.isfinite(found.value))
    assert bool(torch.isfinite(a.grad).all())
    assert found.value.dtype == torch.float32


@pytest.mark.parametrize("form", FORMS)
def test_finite_at_a_very_low_temperature(form: str) -> None:
    """Probabilities underflow to 0 in float32: both forms and their gradients stay finite."""
    a = features(seed=2).float().requires_grad_()
    found = structure_term(features().float(), a, StructureOptions(temperature=1e-4, form=form))  # type: ignore[arg-type]
    found.value.backward()  # type: ignore[no-untyped-call]
    assert a.grad is not None
    assert bool(torch.isfinite(found.value))
    assert bool(torch.isfinite(a.grad).all())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("levels", [1, 3])
def test_all_that_it_makes_lies_where_the_features_lie(form: str, levels: int) -> None:
    x, a = features(), features(width=4, seed=2).requires_grad_()
    with Placed():
        options = StructureOptions(form=form, levels=levels, mask_diagonal=True)  # type: ignore[arg-type]
        structure_term(x, a, options).value.backward()  # type: ignore[no-untyped-call]


def test_float32_inside_autocast() -> None:
    x, a = features().float(), features(seed=2).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = structure_term(x, a, StructureOptions()).value
    assert torch.equal(inside, structure_term(x, a, StructureOptions()).value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("mask_diagonal", [False, True])
@pytest.mark.parametrize("centre_first", [False, True])
def test_gradcheck(form: str, levels: int, mask_diagonal: bool, centre_first: bool) -> None:
    options = StructureOptions(
        form=form,  # type: ignore[arg-type]
        levels=levels,
        temperature=0.3,
        mask_diagonal=mask_diagonal,
        centre_first=centre_first,
    )
    x, a = features(6, 4), features(6, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda embeddings: structure_term(x, embeddings, options).value, (a,))


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    p, q = (torch.softmax(features(11, 11, seed), dim=1) for seed in (0, 1))
    whole = row_divergence(q, p, "js")
    monkeypatch.setattr("pipeline.align.losses.blocks.CPU_ELEMENTS", 25)
    assert row_divergence(q, p, "js").item() == pytest.approx(whole.item(), rel=1e-12)


def test_low_temperature_shows_in_the_diagonal_mass() -> None:
    """At τ 0.05 random rows keep nearly all mass on themselves: P ≈ I and R_S ≈ 0, and the log says so."""
    x = F.normalize(features(64, 256), dim=1)
    found = structure_term(x, features(64, 256, 2), StructureOptions())
    assert found.diagonal_features.item() > 0.9
    assert found.value.item() < 0.01


def test_warm_up() -> None:
    share = StructureOptions(weight=10.0, warm_up=0.1)
    assert [structure_weight(share, step, 100) for step in (0, 5, 10, 99)] == [0.0, 5.0, 10.0, 10.0]
    published = StructureOptions(weight=10.0, warm_up_steps=1000)
    assert structure_weight(published, 100, 100) == pytest.approx(1.0)
    assert structure_weight(StructureOptions(weight=10.0, warm_up=0.0), 0, 100) == 10.0


def test_a_warm_up_of_less_than_a_step_is_over_at_once() -> None:
    """λ(t) = λ₀·min(1, t/warm-up): step 0 has no weight yet, step 1 all of it."""
    short = StructureOptions(weight=10.0, warm_up_steps=1)
    assert [structure_weight(short, step, 100) for step in (0, 1)] == [0.0, 10.0]
    half = StructureOptions(weight=10.0, warm_up=0.005)
    assert [structure_weight(half, step, 100) for step in (0, 1)] == [0.0, 10.0]


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_of_a_probability_of_zero_is_that_of_the_floor(form: str) -> None:
    """Where q counts as the floor in a logarithm, only M moves: ½·∂/∂q of the formula with ln q held at ln(floor)."""
    q = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    row_divergence(q, p, form).backward()  # type: ignore[no-untyped-call,arg-type]
    m = (p[0] + q[0].detach()) / 2
    floor = torch.tensor(1e-200, dtype=torch.float64)
    logs = [torch.log(torch.maximum(each, floor)) for each in (q[0].detach(), p[0], m)]
    ratio = torch.where(q[0] > 0, m / q[0], 0.0).detach()
    coded = (logs[2] - logs[1] / 2 - logs[0] / 2 + 1 - ratio) / 2
    expected = coded if form == "as_coded" else (logs[0] - logs[2]) / 2
    assert q.grad is not None
    torch.testing.assert_close(q.grad[0], expected, rtol=1e-12, atol=1e-12)


def test_refuses_other_shapes() -> None:
    with pytest.raises(UserError, match="as many embeddings as features"):
        structure_term(torch.ones(3, 2), torch.ones(4, 2), StructureOptions())
    with pytest.raises(UserError, match="at least 2"):
        structure_term(torch.ones(1, 2), torch.ones(1, 2), StructureOptions())


@pytest.mark.parametrize(("field", "value"), [("levels", 0), ("temperature", 0.0), ("weight", -1.0), ("warm_up", 2.0)])
def test_impossible_options_are_refused(field: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"structure\.{field}"):
        StructureOptions(**{field: value})  # type: ignore[arg-type]
