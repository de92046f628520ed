"""Rows that are added block by block answer as those added at once; training keeps within the memory."""

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.indexes.index import INDEXES, Gallery, Index, add_rows, build_index, train
from pipeline.indexes.recall import Truth
from tests.indexes.test_kinds import unit

pytest.importorskip("faiss")
VECTORS, QUERIES = unit(3000, 16, 0), unit(60, 16, 1)
LISTS = [name for name, kind in INDEXES.items() if kind.has_lists]


class Counted:
    """A gallery that notes how many rows were asked for at once."""

    def __init__(self) -> None:
        self.most = 0

    def read(self, rows: np.ndarray[Any, Any]) -> torch.Tensor:
        self.most = max(self.most, len(rows))
        return VECTORS[torch.from_numpy(rows)]

    def gallery(self) -> Gallery:
        return Gallery(rows=3000, width=16, read=self.read)


def in_blocks(kind: str, memory: int, counted: Counted | None = None) -> tuple[Index, Truth]:
    gallery, truth = (counted or Counted()).gallery(), Truth(QUERIES, 10)
    own, _ = train(INDEXES[kind], Gallery.of(VECTORS), 3)
    add_rows(own, gallery, gallery.blocks(memory), truth.see)
    return Index(INDEXES[kind], own, 3), truth


@pytest.mark.parametrize("kind", ["flat", *LISTS])
def test_blocks_answer_as_one(kind: str) -> None:
    whole, counted = build_index(VECTORS, kind, seed=3), Counted()
    built, truth = in_blocks(kind, 2**15, counted)
    assert counted.most * 4 * 16 * 8 <= 2**15
    for effort in {1, 5, whole.most_effort}:
        whole.effort = built.effort = effort
        expected, found = whole.search(QUERIES, 10), built.search(QUERIES, 10)
        assert torch.equal(expected[1], found[1])
        torch.testing.assert_close(expected[0], found[0])
    assert torch.equal(truth.positions, build_index(VECTORS, "torch").search(QUERIES, 10)[1])


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_every_row_is_there_under_its_own_number(kind: str) -> None:
    built, _ = in_blocks(kind, 300_000)
    built.effort = built.most_effort
    scores, positions = built.search(VECTORS[::97], 1)
    assert positions[:, 0].tolist() == list(range(0, 3000, 97))
    torch.testing.assert_close(scores[:, 0], torch.ones(len(scores)))
    assert built.rows == 3000


def test_training_within_the_memory() -> None:
    counted = Counted()
    _, rows = train(INDEXES["ivf"], counted.gallery(), 0, 2**15, at_once=100)
    assert rows * 16 * 4 == 2**15 // 2
    assert counted.most == 100


def test_no_rows() -> None:
    with pytest.raises(UserError, match="a gallery with at least one row"):
        train(INDEXES["ivf"], Gallery.of(torch.empty(0, 4)), 0)


@pytest.mark.parametrize("kind", ["flat", "hnsw", *LISTS])
@pytest.mark.parametrize("rows", [1, 3, 200])
def test_hardly_any_rows(kind: str, rows: int) -> None:
    assert build_index(unit(rows, 4, 0), kind).search(unit(2, 4, 1), 500)[1].shape == (2, rows)


def test_clustering_goes_to_gpus_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    asked: list[int] = []

    def to_gpus(index: Any) -> Any:
        asked.append(index.d)
        return index

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", to_gpus, raising=False)
    index = build_index(VECTORS, "ivf")
    assert asked == [16]
    assert index.search(VECTORS[:2], 1)[1].flatten().tolist() == [0, 1]
    build_index(VECTORS, "flat")
    assert asked == [16, 16]


def test_what_an_index_looks_like() -> None:
    assert repr(build_index(VECTORS, "flat")) == "<Index flat: 3,000 rows of 16 numbers>"
    index = build_index(VECTORS, "ivf")
    assert repr(index) == f"<Index ivf: 3,000 rows of 16 numbers, nprobe {index.effort}>"
