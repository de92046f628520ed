"""InfoNCE, DCL and SigLIP against loops written from their formulas."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.align.losses import LOSSES, make_loss
from pipeline.align.losses.contrastive import ContrastiveLoss
from pipeline.align.losses.info_nce import InfoNCELoss
from pipeline.align.losses.siglip import SigLIPLoss
from pipeline.align.losses.targets import DenseTargets, IdentityTargets, SmoothedTargets, distinct_images
from pipeline.align.recipe import TemperatureOptions
from pipeline.errors import UnknownNameError, UserError
from tests.placement import Placed

TAU = 0.1
FIXED = TemperatureOptions(initial=TAU, learned=False, form="raw")
Cosines = Callable[..., Tensor]


def loss_of(name: str) -> ContrastiveLoss:
    loss = make_loss(name, FIXED).double()
    loss.temperature.parameter.fill_(TAU)
    return loss


def allowed_or_all(allowed: Tensor | None, n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool) if allowed is None else allowed


def slow_info_nce(s: Tensor, t: Tensor, allowed: Tensor | None = None) -> float:
    n, keep, total = len(s), allowed_or_all(allowed, len(s)), 0.0
    for i in range(n):
        denominator = sum(math.exp(s[i, j].item() / TAU) for j in range(n) if keep[i, j])
        for j in range(n):
            if keep[i, j]:
                total -= t[i, j].item() * math.log(math.exp(s[i, j].item() / TAU) / denominator)
    return total / n


def slow_dcl(s: Tensor, t: Tensor, allowed: Tensor | None = None) -> float:
    n, keep, total = len(s), allowed_or_all(allowed, len(s)), 0.0
    for i in range(n):
        denominator = sum(math.exp(s[i, j].item() / TAU) for j in range(n) if keep[i, j] and i != j)
        total += math.log(denominator)
        total -= sum(t[i, j].item() * s[i, j].item() / TAU for j in range(n) if keep[i, j])
    return total / n


def slow_siglip(s: Tensor, t: Tensor | None = None, allowed: Tensor | None = None) -> float:
    n, keep, total = len(s), allowed_or_all(allowed, len(s)), 0.0
    for i in range(n):
        for j in range(n):
            if keep[i, j]:
                yes = float(i == j) if t is None else (t[i, j].item() + t[j, i].item()) / 2
                sure = 1 / (1 + math.exp(-(s[i, j].item() / TAU - 10.0)))
                total -= yes * math.log(sure) + (1 - yes) * math.log(1 - sure)
    return total / n


def slow_masked(t: Tensor, allowed: Tensor) -> Tensor:
    """Return targets whose rows give the mass of the left-out pairs to the others, in proportion."""
    out = torch.zeros_like(t)
    for i in range(len(t)):
        total = sum(t[i, j].item() for j in range(len(t)) if allowed[i, j])
        for j in range(len(t)):
            out[i, j] = t[i, j] / total if allowed[i, j] else 0.0
    return out


@pytest.mark.parametrize("smooth", [0.0, 0.3])
@pytest.mark.parametrize("ids", [None, [0, 1, 0, 2, 3, 3, 4]])
@pytest.mark.parametrize(("name", "oracle"), [("info_nce", slow_info_nce), ("dcl", slow_dcl)])
def test_agrees_with_slow_loop(
    cosines: Cosines, name: str, oracle: Callable[..., float], ids: list[int] | None, smooth: float
) -> None:
    s = cosines()
    allowed = None if ids is None else distinct_images(torch.tensor(ids))
    targets = SmoothedTargets(smooth) if smooth else IdentityTargets()
    dense = targets.dense(s.detach(), allowed)
    found = loss_of(name)(s, targets, allowed)
    assert found.i2t.item() == pytest.approx(oracle(s, dense, allowed), abs=1e-12)
    assert found.t2i.item() == pytest.approx(oracle(s.T, dense, allowed), abs=1e-12)


@pytest.mark.parametrize("ids", [None, [0, 1, 0, 2, 3, 3, 4]])
def test_siglip_agrees_with_slow_loop(cosines: Cosines, ids: list[int] | None) -> None:
    s = cosines()
    allowed = None if ids is None else distinct_images(torch.tensor(ids))
    found = loss_of("siglip")(s, IdentityTargets(), allowed)
    assert found.i2t.item() == pytest.approx(slow_siglip(s, None, allowed), abs=1e-12)
    assert found.i2t is found.t2i


@pytest.mark.parametrize("name", LOSSES)
def test_targets_over_the_allowed_pairs_agree_with_slow_loop(cosines: Cosines, name: str) -> None:
    """Any T, rows renormalised over the pairs that count."""
    s, allowed = cosines(), distinct_images(torch.tensor([0, 1, 0, 2, 3, 3, 4]))
    t = torch.softmax(cosines(seed=3).detach(), dim=1)
    oracle = {"info_nce": slow_info_nce, "dcl": slow_dcl, "siglip": slow_siglip}[name]
    found, masked = loss_of(name)(s, DenseTargets(t), allowed), slow_masked(t, allowed)
    assert found.i2t.item() == pytest.approx(oracle(s, masked, allowed), abs=1e-12)
    if name != "siglip":
        assert found.t2i.item() == pytest.approx(oracle(s.T, masked, allowed), abs=1e-12)


def test_smoothed_siglip_asks_the_smoothed_targets(cosines: Cosines) -> None:
    s, allowed = cosines(), distinct_images(torch.tensor([0, 1, 0, 2, 3, 3, 4]))
    targets = SmoothedTargets(0.3)
    dense = targets.dense(s.detach(), allowed)
    found = loss_of("siglip")(s, targets, allowed)
    assert found.i2t.item() == pytest.approx(slow_siglip(s, dense, allowed), abs=1e-12)


@pytest.mark.parametrize("alpha", [0.3, torch.linspace(0, 0.6, 7, dtype=torch.float64)])
@pytest.mark.parametrize("ids", [None, [0, 1, 0, 2, 3, 3, 4]])
def test_expectations_are_those_of_the_targets_row_by_row(
    cosines: Cosines, ids: list[int] | None, alpha: float | Tensor
) -> None:
    z = cosines().detach()
    allowed = None if ids is None else distinct_images(torch.tensor(ids))
    for targets in (IdentityTargets(), SmoothedTargets(alpha), DenseTargets(torch.softmax(z.T, dim=1))):
        expected = (targets.dense(z, allowed) * z).sum(dim=1)
        torch.testing.assert_close(targets.expectation(z, allowed), expected, atol=1e-12, rtol=0)


def test_targets_take_the_type_of_the_similarities() -> None:
    like = torch.zeros(3, 3, dtype=torch.float64)
    for targets in (IdentityTargets(), SmoothedTargets(0.1), DenseTargets(torch.eye(3))):
        assert targets.dense(like, None).dtype == torch.float64
        assert targets.expectation(like.bfloat16(), None).dtype == torch.bfloat16


def test_siglip_sums_over_pairs_and_divides_by_n() -> None:
    """The stated reduction: a batch where nothing matches anything grows with N."""
    loss = SigLIPLoss(FIXED, bias=0.0)
    values = [loss(torch.zeros(n, n), IdentityTargets()).i2t.item() for n in (4, 8)]
    assert values == pytest.approx([4 * math.log(2), 8 * math.log(2)])


def test_info_nce_is_symmetric_cross_entropy(cosines: Cosines) -> None:
    s, labels = cosines(), torch.arange(7)
    found = loss_of("info_nce")(s, IdentityTargets())
    assert found.i2t.item() == pytest.approx(F.cross_entropy(s / TAU, labels).item(), abs=1e-12)
    assert found.t2i.item() == pytest.approx(F.cross_entropy(s.T / TAU, labels).item(), abs=1e-12)


def test_gradient_is_softmax_less_target_over_n(cosines: Cosines) -> None:
    z = (cosines().detach() / TAU).requires_grad_()
    targets = SmoothedTargets(0.2)
    loss = InfoNCELoss(TemperatureOptions(initial=1.0, maximum=1.0, learned=False)).double()
    (rows,) = torch.autograd.grad(loss(z, targets).i2t, z)
    (columns,) = torch.autograd.grad(loss(z, targets).t2i, z)
    dense = targets.dense(z.detach(), None)
    torch.testing.assert_close(rows, (torch.softmax(z, dim=1) - dense) / 7, atol=1e-14, rtol=0)
    torch.testing.assert_close(columns, (torch.softmax(z, dim=0) - dense.T) / 7, atol=1e-14, rtol=0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["identity", "smoothed", "per_row", "dense", "masked"])
def test_gradcheck(cosines: Cosines, name: str, kind: str) -> None:
    rows = torch.softmax(cosines(5, seed=3).detach(), dim=1)
    allowed = distinct_images(torch.tensor([0, 1, 1, 2, 3])) if kind == "masked" else None
    targets = {
        "identity": IdentityTargets(),
        "smoothed": SmoothedTargets(0.1),
        "per_row": SmoothedTargets(torch.linspace(0, 0.5, 5, dtype=torch.float64)),
        "dense": DenseTargets(rows),
        "masked": DenseTargets(rows),
    }[kind]
    loss = make_loss(name, TemperatureOptions(initial=0.2)).double()
    tau = torch.tensor(math.log(0.2), dtype=torch.float64, requires_grad=True)

    def value(s: Tensor, log_tau: Tensor) -> Tensor:
        found = torch.func.functional_call(loss, {"temperature.parameter": log_tau}, (s, targets, allowed))
        total: Tensor = 0.3 * found.i2t + 0.7 * found.t2i
        return total

    assert torch.autograd.gradcheck(value, (cosines(5), tau))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("ids", [None, [0, 1, 1, 2, 3]])
def test_all_that_a_loss_makes_lies_where_the_similarities_lie(
    cosines: Cosines, name: str, ids: list[int] | None
) -> None:
    s, loss = cosines(5), loss_of(name)
    allowed = None if ids is None else distinct_images(torch.tensor(ids))
    rows = torch.softmax(s.detach(), dim=1)
    shares = torch.linspace(0, 0.5, 5, dtype=torch.float64)
    with Placed():
        for targets in (IdentityTargets(), SmoothedTargets(0.1), SmoothedTargets(shares), DenseTargets(rows)):
            loss(s, targets, allowed).i2t.backward()


def test_masked_captions_of_one_image_are_no_strangers(cosines: Cosines) -> None:
    """A pair that shares its image gets no gradient at all; without the mask it is pushed away."""
    s, allowed = cosines(4), distinct_images(torch.tensor([0, 0, 1, 2]))
    found = loss_of("info_nce")(s, IdentityTargets(), allowed)
    (gradient,) = torch.autograd.grad(found.i2t + found.t2i, s)
    assert gradient[0, 1] == 0
    assert gradient[1, 0] == 0
    assert gradient[0, 2] > 0


def test_dcl_row_without_mismatch_counts_nothing() -> None:
    s = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    allowed = distinct_images(torch.tensor([0, 0, 0]))
    found = loss_of("dcl")(s, IdentityTargets(), allowed)
    (gradient,) = torch.autograd.grad(found.i2t, s)
    assert found.i2t.item() == 0
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (4,)])
def test_refuses_other_shapes(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="square similarity matrix of at least 2 pairs"):
        loss_of(name)(torch.zeros(shape), IdentityTargets())


@pytest.mark.parametrize(("name", "oracle"), [("info_nce", slow_info_nce), ("dcl", slow_dcl), ("siglip", slow_siglip)])
def test_two_pairs_are_enough(cosines: Cosines, name: str, oracle: Callable[..., float]) -> None:
    s = cosines(2)
    assert loss_of(name)(s, IdentityTargets()).i2t.item() == pytest.approx(oracle(s, torch.eye(2)), abs=1e-12)


def test_unknown_loss_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match="info_nce, siglip, dcl"):
        make_loss("clip", FIXED)


@pytest.mark.parametrize("form", ["raw", "log"])
def test_temperature_is_clamped_and_keeps_its_gradient(form: str) -> None:
    loss = make_loss("info_nce", TemperatureOptions(initial=0.07, form=form))  # type: ignore[arg-type]
    loss.temperature.parameter.data.fill_(-9.0 if form == "log" else -1.0)
    loss.temperature.clamp()
    assert loss.temperature().item() == pytest.approx(0.001, rel=1e-5)
    loss(torch.randn(4, 4), IdentityTargets()).i2t.backward()
    gradient = loss.temperature.parameter.grad
    assert gradient is not None
    assert gradient.abs().item() > 0


@pytest.mark.parametrize("form", ["raw", "log"])
def test_temperature_is_clamped_from_above(form: str) -> None:
    loss = make_loss("info_nce", TemperatureOptions(initial=0.07, form=form))  # type: ignore[arg-type]
    loss.temperature.parameter.data.fill_(9.0)
    loss.temperature.clamp()
    assert loss.temperature.parameter.item() == pytest.approx(math.log(0.5) if form == "log" else 0.5, rel=1e-5)


def test_fixed_temperature_is_no_parameter() -> None:
    assert not list(make_loss("info_nce", FIXED).parameters())


@pytest.mark.parametrize(("field", "value"), [("initial", 0.9), ("initial", 0.0), ("minimum", 0.0), ("maximum", -1.0)])
def test_impossible_temperatures_are_refused(field: str, value: float) -> None:
    with pytest.raises(UserError, match=r"temperature\."):
        TemperatureOptions(**{field: value})  # type: ignore[arg-type]
