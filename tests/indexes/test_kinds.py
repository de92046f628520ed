"""Every index kind against a slow exact search."""

import importlib
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import MissingExtraError, UnknownNameError, UserError
from pipeline.indexes import KINDS
from pipeline.indexes.index import INDEXES, build_index, choose_kind, find_faiss
from pipeline.indexes.recall import recall_against_exact


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=1)


@pytest.fixture
def no_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `import faiss` fail the way a faiss-gpu without its libraries does: with no ImportError."""

    def fail(name: str) -> Any:
        raise OSError(f"{name}: libcudart.so.12: cannot open shared object file")

    find_faiss.cache_clear()
    monkeypatch.setattr(importlib, "import_module", fail)


@pytest.fixture(autouse=True)
def fresh_cache() -> Any:
    yield
    find_faiss.cache_clear()


@pytest.mark.parametrize("kind", ["torch", "flat"])
def test_exact_kinds_agree_with_a_loop(kind: str) -> None:
    gallery, queries = unit(300, 16, 0), unit(20, 16, 1)
    scores, positions = build_index(gallery, kind).search(queries, 7)
    for row, query in enumerate(queries.numpy()):
        similarity = gallery.numpy() @ query
        best = sorted(range(300), key=lambda item: (-similarity[item], item))[:7]
        assert positions[row].tolist() == best
        np.testing.assert_allclose(scores[row].numpy(), similarity[best], rtol=1e-5)


def test_torch_and_faiss_order_ties_alike() -> None:
    gallery = unit(40, 8, 0).repeat(3, 1)[torch.randperm(120, generator=torch.Generator().manual_seed(5))]
    answers = [build_index(gallery, kind).search(gallery[:9], 120)[1] for kind in ("torch", "flat")]
    groups = [[{int(i) for i in row[start : start + 3]} for row in answers[0] for start in range(0, 120, 3)]]
    groups += [[{int(i) for i in row[start : start + 3]} for row in answers[1] for start in range(0, 120, 3)]]
    assert groups[0] == groups[1]


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "sq8"])
def test_approximate_kinds_find_nearly_all(kind: str) -> None:
    gallery, queries = unit(2000, 8, 0), unit(50, 8, 1)
    index = build_index(gallery, kind)
    assert recall_against_exact(index, gallery, queries, 10) > 0.8
    assert not index.kind.exact


@pytest.mark.parametrize("kind", list(INDEXES))
def test_k_beyond_the_gallery_returns_the_gallery(kind: str) -> None:
    scores, positions = build_index(unit(3, 4, 0), kind).search(unit(2, 4, 1), 10)
    assert scores.shape == positions.shape == (2, 3)
    assert sorted(positions[0].tolist()) == [0, 1, 2]


def test_a_single_query_and_no_query() -> None:
    index = build_index(unit(5, 4, 0), "torch")
    assert index.search(unit(1, 4, 1), 2)[1].shape == (1, 2)
    assert index.search(torch.empty(0, 4), 2)[1].shape == (0, 2)


def test_rule_goes_by_rows_and_then_by_memory() -> None:
    assert choose_kind("auto", 999_999, 256) == "flat"
    assert choose_kind("auto", 1_000_000, 256) == "ivf"
    assert choose_kind("auto", 1_000_000, 256, memory=2**30 - 1) == "ivf"
    assert choose_kind("auto", 1_000_000, 256, memory=1_023_999_999) == "sq8"
    assert choose_kind("auto", 1_000_000, 256, memory=255_999_999) == "ivfpq"


@pytest.mark.parametrize("rows", [1, 2, 40, 200, 255, 256])
@pytest.mark.parametrize("kind", ["ivf", "hnsw", "sq8", "ivfpq"])
def test_hardly_any_rows(kind: str, rows: int) -> None:
    gallery = unit(rows, 6, 0)
    index = build_index(gallery, kind)
    scores, positions = index.search(gallery, rows + 5)
    assert scores.shape == positions.shape == (rows, rows)
    assert sorted(positions[0].tolist()) == list(range(rows))


@pytest.mark.parametrize("width", [1, 3, 7, 10])
def test_product_codes_of_any_width(width: int) -> None:
    gallery = unit(700, width, 0)
    assert build_index(gallery, "ivfpq").search(gallery[:3], 2)[1].shape == (3, 2)


@pytest.mark.usefixtures("no_faiss")
def test_without_faiss_search_is_exact_by_torch() -> None:
    assert choose_kind("auto", 10) == choose_kind("flat", 10) == choose_kind("auto", 10**7) == "torch"
    with pytest.raises(MissingExtraError, match="pip install faiss-cpu"):
        build_index(unit(10, 4, 0), "hnsw")


def test_names_and_table_agree() -> None:
    assert list(KINDS) == ["auto", *INDEXES]


def test_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="auto, torch, flat, ivf, hnsw"):
        build_index(unit(3, 4, 0), "annoy")


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="at least one row"):
        build_index(torch.empty(0, 4))
    with pytest.raises(UserError, match=r"queries \[Q, 4\]"):
        build_index(unit(3, 4, 0)).search(unit(1, 5, 0), 1)
    with pytest.raises(UserError, match="k = 0"):
        build_index(unit(3, 4, 0)).search(unit(1, 4, 0), 0)
