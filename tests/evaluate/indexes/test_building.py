"""Built in parts, an index answers as one built at once; ids are those of the whole gallery."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.evaluate.indexes.building import Built, Gallery, _lists, build_in_blocks
from pipeline.evaluate.indexes.faiss_index import FaissIndex, training_sample
from pipeline.evaluate.indexes.flat import FlatIndex
from pipeline.evaluate.indexes.hnsw import HNSWIndex
from pipeline.evaluate.indexes.ivf import IVFIndex, IVFPQIndex, ListsIndex, SQ8Index
from pipeline.evaluate.indexes.on_disk import ON_DISK
from tests.evaluate.indexes.test_kinds import unit

pytest.importorskip("faiss")
VECTORS, QUERIES = unit(3000, 16, 0), unit(60, 16, 1)
LISTS: list[type[ListsIndex]] = [IVFIndex, SQ8Index, IVFPQIndex]


class Counted:
    """A gallery that notes how many rows were asked for at once."""

    def __init__(self) -> None:
        self.most = 0

    def read(self, rows: np.ndarray[Any, Any]) -> torch.Tensor:
        self.most = max(self.most, len(rows))
        return VECTORS[torch.from_numpy(rows)]


def build(kind: type[FaissIndex], folder: Path, memory: int) -> Built:
    return build_in_blocks(kind, Gallery(rows=3000, width=16, read=Counted().read), folder, seed=3, memory=memory)


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("share", [1.0, 0.7, 0.25])
def test_parts_answer_as_one(kind: type[ListsIndex], share: float, tmp_path: Path) -> None:
    """All memory that the codes need: two parts, merged in memory; less: merged on the disk."""
    training = training_sample(3000, 4 * 2**20, 3)
    whole = build_in_blocks(kind, Gallery.of(VECTORS), tmp_path, seed=3)
    assert (whole.parts, whole.files, len(training)) == (1, (), 3000)
    row_bytes = int(whole.index.own.code_size) + 8
    memory = max(int(3000 * row_bytes * share) + 1, 3000)
    empty = kind.empty(16, 3000, 3, 3000)
    empty.train(VECTORS.numpy())
    counted = Counted()
    gallery = Gallery(rows=3000, width=16, read=counted.read)
    built = _lists(kind, empty, gallery, tmp_path, 3, memory)
    assert built.parts >= 2
    assert bool(built.files) == (share < 1)
    assert counted.most <= max(1, memory // 2 // row_bytes)
    assert {path.name for path in tmp_path.iterdir()} == ({ON_DISK} if share < 1 else set())
    for effort in (1, 5, whole.index.most_effort):
        whole.index.set_effort(effort)
        built.index.set_effort(effort)
        expected, found = whole.index.search(QUERIES, 10), built.index.search(QUERIES, 10)
        assert torch.equal(expected[1], found[1])
        torch.testing.assert_close(expected[0], found[0])


@pytest.mark.parametrize("kind", [FlatIndex, IVFIndex])
def test_every_row_is_there_under_its_own_number(kind: type[FaissIndex], tmp_path: Path) -> None:
    built = build(kind, tmp_path, 300_000).index
    built.set_effort(built.most_effort)
    scores, positions = built.search(VECTORS[::97], 1)
    assert positions[:, 0].tolist() == list(range(0, 3000, 97))
    torch.testing.assert_close(scores[:, 0], torch.ones(len(scores)))
    assert built.rows == 3000


def test_training_within_the_memory(tmp_path: Path) -> None:
    counted = Counted()
    gallery = Gallery(rows=3000, width=16, read=counted.read)
    build_in_blocks(IVFIndex, gallery, tmp_path, memory=2**15)
    assert counted.most * 16 * 4 <= 2**15


def test_what_must_lie_in_memory_says_so(tmp_path: Path) -> None:
    for kind in (FlatIndex, HNSWIndex):
        with pytest.raises(UserError, match=r"found 192,000 bytes of vectors.*take --kind ivf, sq8 or ivfpq"):
            build(kind, tmp_path, 100_000)


def test_no_rows_and_hardly_any(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a gallery with at least one row"):
        build_in_blocks(IVFIndex, Gallery.of(torch.empty(0, 4)), tmp_path)
    kinds: list[type[FaissIndex]] = [*LISTS, FlatIndex, HNSWIndex]
    for kind in kinds:
        for rows in (1, 3, 200):
            built = build_in_blocks(kind, Gallery.of(unit(rows, 4, 0)), tmp_path)
            assert built.index.search(unit(2, 4, 1), 500)[1].shape == (2, rows)


def test_clustering_goes_to_gpus_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    asked: list[int] = []

    def to_gpus(index: Any) -> Any:
        asked.append(index.d)
        return index

    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", to_gpus, raising=False)
    index = IVFIndex(VECTORS)
    assert asked == [16]
    assert index.search(VECTORS[:2], 1)[1].flatten().tolist() == [0, 1]
    FlatIndex(VECTORS)
    assert asked == [16, 16]
