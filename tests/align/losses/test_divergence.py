"""The fused divergence: in tiles and blocks as in one, and the same as the general path of probabilities."""

import pytest
import torch
from torch import Tensor

from pipeline.align.losses.blocks import add_transpose_, self_product
from pipeline.align.losses.structure import neighbour_divergence, neighbourhoods, row_divergence, structure_term
from pipeline.align.recipe import StructureOptions


def rows(n: int, width: int, seed: int) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(params=[3, 4, 512], ids=lambda tile: f"tiles of {tile}")
def tiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.align.losses.blocks.TILE", request.param)
    monkeypatch.setattr("pipeline.align.losses.blocks.WIDE", 1)
    monkeypatch.setattr("pipeline.align.losses.blocks.CPU_ELEMENTS", 11 * request.param)


@pytest.mark.usefixtures("tiled")
def test_symmetric_products() -> None:
    x, g = rows(11, 5, 0), rows(11, 11, 1)
    torch.testing.assert_close(self_product(x, 3.0), 3.0 * x @ x.T)
    torch.testing.assert_close(add_transpose_(g.clone()), g + g.T)


@pytest.mark.usefixtures("tiled")
@pytest.mark.parametrize("mask_diagonal", [False, True])
def test_agrees_with_the_general_path(mask_diagonal: bool) -> None:
    x, a = rows(11, 6, 0), rows(11, 4, 1).requires_grad_()
    options = StructureOptions(temperature=0.2, mask_diagonal=mask_diagonal)
    original, aligned = neighbourhoods(x, options), neighbourhoods(a, options)
    expected = row_divergence(aligned, original, "js")
    found = structure_term(x, a, options)
    assert found.value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert found.diagonal_features.item() == pytest.approx(original.diagonal().mean().item())
    assert found.diagonal_embeddings.item() == pytest.approx(aligned.diagonal().mean().item())
    gradients = [torch.autograd.grad(value, a)[0] for value in (found.value, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-14)


@pytest.mark.usefixtures("tiled")
def test_gradcheck_in_tiles() -> None:
    x, a = rows(7, 6, 0), rows(7, 4, 1).mul(0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda b: neighbour_divergence(b, x, 0.5, mask_diagonal=False).value, (a,))


def test_embeddings_without_gradient() -> None:
    """A side that is left as it is."""
    x = rows(7, 6, 0)
    assert neighbour_divergence(x, x, 0.5, mask_diagonal=False).value.item() == pytest.approx(0, abs=1e-14)
    assert not structure_term(x, rows(7, 4, 1), StructureOptions()).value.requires_grad


def test_nothing_of_the_batch_squared_is_kept() -> None:
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    a = rows(64, 4, 1).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        structure_term(rows(64, 6, 0), a, StructureOptions())
    assert max(kept) < 64 * 64
