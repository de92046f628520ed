"""The fused divergence: in tiles and blocks as in one, and the same as the general path of probabilities."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pipeline.align.losses import blocks
from pipeline.align.losses.blocks import add_transpose_, row_blocks, self_product
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


class Products(TorchFunctionMode):
    """Counts the products of two matrices."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.mm
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("n", "width", "device", "tiles"),
    [(5, 3, "cpu", 2), (4, 3, "cpu", 0), (9, 2, "cpu", 0), (4, 2, "cpu", 0), (9, 3, "meta", 0), (9, 4, "cpu", 3)],
)
def test_only_many_wide_rows_on_a_cpu_are_multiplied_in_tiles(
    n: int, width: int, device: str, tiles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "TILE", 4)
    monkeypatch.setattr(blocks, "WIDE", 3)
    with Products() as products:
        found = self_product(torch.ones(n, width, device=device), 2.0)
    assert products.count == tiles
    assert found.shape == (n, n)


@pytest.mark.parametrize(("device", "elements"), [("cpu", 20), ("meta", 40)])
@pytest.mark.parametrize(("n", "width"), [(7, 5), (7, 20), (7, 39), (7, 41), (1, 100)])
def test_a_block_of_rows_is_as_large_as_the_device_likes(
    n: int, width: int, device: str, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "CPU_ELEMENTS", 20)
    monkeypatch.setattr(blocks, "GPU_ELEMENTS", 40)
    parts = list(row_blocks(torch.empty(n, width, device=device)))
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(n))
    rows_of = [part.stop - part.start for part in parts]
    assert rows_of[0] == min(n, max(1, elements // width))
    assert len(set(rows_of[:-1])) <= 1
