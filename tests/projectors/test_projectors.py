"""Every projector of the table: shapes, unit length, gradients, settings, hostile input."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.errors import UnknownNameError, UserError
from pipeline.projectors.asif import AsifProjector
from pipeline.projectors.base import (
    AffineProjector,
    IdentityProjector,
    InputNormalisation,
    LinearProjector,
    Projector,
    ResidualLowRankProjector,
    ResidualMLPProjector,
    unit_rows,
)
from pipeline.projectors.run_record import PROJECTORS, build_projector

D = 12


def make(name: str, **settings: Any) -> Projector:
    """Return a projector of width 12 → 7 (12 → 12 where the kind wants it)."""
    torch.manual_seed(0)
    projector = build_projector(name, {"d_in": D, "d": D if name == "identity" else 7, **settings})
    if isinstance(projector, AsifProjector):
        projector.fill(features(7))
    return projector


def features(rows: int = 20, seed: int = 1) -> Tensor:
    return 5 * torch.randn(rows, D, generator=torch.Generator().manual_seed(seed)) + 2


@pytest.mark.parametrize("mode", ["none", "unit", "standardise"])
@pytest.mark.parametrize("name", PROJECTORS)
def test_embeddings_are_unit_length_float32(name: str, mode: str) -> None:
    projector = make(name, normalise_input=mode, blocks=[4, 8]).eval()
    projector.fit_input(features())
    out = projector(features())
    assert out.shape == (20, projector.d)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.norm(dim=1), torch.ones(20))
    torch.testing.assert_close(unit_rows(projector.project(features())), out)


@pytest.mark.parametrize("name", PROJECTORS)
def test_half_precision_features_are_taken_in(name: str) -> None:
    projector = make(name).eval()
    torch.testing.assert_close(projector(features().half()), projector(features().half().float()))


@pytest.mark.parametrize("name", PROJECTORS)
def test_settings_make_the_same_projector_again(name: str) -> None:
    projector = make(name, normalise_input="standardise", blocks=[4, 8]).eval()
    projector.fit_input(features())
    again = build_projector(name, projector.settings()).eval()
    again.load_state_dict(projector.state_dict())
    assert again.settings() == projector.settings()
    assert torch.equal(again(features()), projector(features()))


@pytest.mark.parametrize("name", ["linear", "residual_mlp", "residual_low_rank", "affine"])
def test_every_parameter_gets_a_gradient_in_the_first_step(name: str) -> None:
    projector = make(name, normalise_input="unit").eval()
    (projector(features()) * torch.randn(20, projector.d)).sum().backward()
    for label, parameter in projector.named_parameters():
        assert parameter.grad is not None, label
        assert float(parameter.grad.abs().sum()) > 0, label


@pytest.mark.parametrize("name", ["residual_mlp", "residual_low_rank"])
def test_non_linear_projectors_are_not_linear(name: str) -> None:
    projector = make(name).eval()
    a, b = features(seed=2), features(seed=3)
    middle = (projector.project(a) + projector.project(b)) / 2
    assert float((projector.project((a + b) / 2) - middle).detach().abs().max()) > 1e-4


def test_the_gate_can_open() -> None:
    projector = ResidualLowRankProjector(D, 7, rank=5)
    before = projector.gate.detach().clone()
    optimiser = torch.optim.SGD(projector.parameters(), lr=1.0)
    torch.autograd.backward((projector.project(features()) ** 2).mean())
    optimiser.step()
    assert bool((projector.gate.detach() != before).all())
    with pytest.raises(UserError, match="no gradient passes"):
        ResidualLowRankProjector(D, 7, gate=-float("inf"))


def test_an_affine_map_is_filled_by_a_closed_form() -> None:
    generator = torch.Generator().manual_seed(4)
    mean, matrix = torch.randn(D, generator=generator), torch.randn(D, 7, generator=generator)
    weights = torch.rand(7, generator=generator)
    projector = AffineProjector(D, 7)
    projector.fill(mean.double(), matrix.double(), weights.double())
    expected = ((features() - mean) @ matrix) * weights
    torch.testing.assert_close(projector.project(features()), expected, atol=1e-3, rtol=1e-3)


def test_a_closed_form_of_another_shape_is_refused() -> None:
    with pytest.raises(UserError, match=r"shape \[12, 7\]"):
        AffineProjector(D, 7).fill(torch.zeros(D), torch.zeros(D, 3), torch.ones(3))


def test_residual_mlp_is_the_formula() -> None:
    projector = ResidualMLPProjector(D, 7, depth=1, expansion=3).eval()
    block: Any = projector.layers[0]
    x = features()
    inner = torch.nn.functional.gelu(torch.nn.functional.layer_norm(x, (D,)) @ block.widen.weight.T + block.widen.bias)
    y = x + inner @ block.narrow.weight.T + block.narrow.bias
    expected = torch.nn.functional.layer_norm(y, (D,)) @ projector.head.weight.T + projector.head.bias
    torch.testing.assert_close(projector.project(x), expected)


def test_asif_is_the_slow_loop() -> None:
    anchors, x = features(9, seed=5), features(4, seed=6)
    projector = AsifProjector(D, 9, top_k=3, exponent=8.0).fill(anchors)
    rows = []
    for row in x:
        similarity = [float(row @ anchor / (row.norm() * anchor.norm())) for anchor in anchors]
        kept = sorted(range(9), key=lambda i: -similarity[i])[:3]
        rows.append([similarity[i] ** 8 if i in kept else 0.0 for i in range(9)])
    torch.testing.assert_close(projector.project(x), torch.tensor(rows))


def test_input_normalisation_by_block() -> None:
    x = features(200)
    unit = InputNormalisation(D, "unit", [4, 8])(x)
    torch.testing.assert_close(unit[:, :4].norm(dim=1), torch.full((200,), 0.5**0.5))
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(200))
    standard = InputNormalisation(D, "standardise", [4, 8])
    standard.fit(x)
    out = standard(x)
    torch.testing.assert_close(out.mean(dim=0), torch.zeros(D), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(dim=0, correction=0), torch.tensor([0.5] * 4 + [8**-0.5] * 8))


def test_constant_dimensions_are_left_unscaled() -> None:
    x = features(50)
    x[:, 3] = 7.0
    standard = InputNormalisation(D, "standardise")
    standard.fit(x)
    assert bool((standard(x)[:, 3] == 0).all())
    assert bool(torch.isfinite(standard(x)).all())


@pytest.mark.parametrize("name", PROJECTORS)
def test_zero_features_give_finite_embeddings_and_gradients(name: str) -> None:
    projector = make(name, normalise_input="unit")
    x = torch.zeros(3, D, requires_grad=True)
    out = projector(x)
    assert bool(torch.isfinite(out).all())
    out.sum().backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())


def test_unit_rows_gradient_in_float64() -> None:
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit_rows, (x,))
    assert unit_rows(torch.ones(2, 2, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("shape", [(3, 5), (12,), (2, 3, 12)])
@pytest.mark.parametrize("name", PROJECTORS)
def test_features_of_another_shape_are_refused(name: str, shape: tuple[int, ...]) -> None:
    projector = make(name)
    with pytest.raises(UserError, match=r"shape \[N, 12\]"):
        projector(torch.zeros(shape))
    with pytest.raises(UserError, match=r"shape \[N, 12\]"):
        projector.fit_input(torch.zeros(shape))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("linear", {"d_in": 0, "d": 3}, "whole number for d_in"),
        ("linear", {"d_in": 3, "d": -1}, "whole number for d,"),
        ("linear", {"d_in": "3", "d": 3}, "whole number for d_in"),
        ("linear", {"d_in": 4, "d": 3, "blocks": [2, 3]}, "add up to 4"),
        ("linear", {"d_in": 4, "d": 3, "blocks": [5, -1]}, "add up to 4"),
        ("linear", {"d_in": 4, "d": 3, "normalise_input": "whiten"}, "input normalisation"),
        ("linear", {"d": 3}, "the settings d_in"),
        ("linear", {"d_in": 4, "d": 3, "depth": 2}, "setting of the linear projector"),
        ("residual_mlp", {"d_in": 4, "d": 3, "depth": -1}, "depth of 0 or more"),
        ("residual_mlp", {"d_in": 4, "d": 3, "expansion": 0}, "expansion of 1"),
        ("residual_mlp", {"d_in": 4, "d": 3, "dropout": 1.0}, r"dropout in \[0, 1\)"),
        ("residual_low_rank", {"d_in": 4, "d": 3, "rank": 0}, "rank of 1"),
        ("identity", {"d_in": 4, "d": 3}, "d = d_in = 4"),
        ("asif", {"d_in": 4, "d": 3, "top_k": 0}, "top_k of 1"),
        ("asif", {"d_in": 4, "d": 3, "exponent": 0}, "positive exponent"),
        ("mlp", {"d_in": 4, "d": 3}, "known projector"),
    ],
)
def test_impossible_settings_are_told(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_projector(name, settings)


def test_asif_wants_as_many_anchors_as_dimensions() -> None:
    with pytest.raises(UserError, match="7 anchors"):
        AsifProjector(D, 7).fill(features(6))


def test_identity_needs_no_second_width() -> None:
    projector = IdentityProjector(D)
    assert projector.d == D
    assert torch.equal(projector.project(features()), features())


def test_linear_without_a_bias() -> None:
    projector = LinearProjector(D, 7, bias=False)
    assert [name for name, _ in projector.named_parameters()] == ["map.weight"]
    torch.testing.assert_close(projector.project(features()), features() @ projector.map.weight.T)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="residual_mlp"):
        build_projector("residual", {})
