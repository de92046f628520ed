"""A stored index: the same answers, and refused when a byte, a field or what it is of differs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import KeyMismatchError, UnknownNameError, UserError
from pipeline.files import dump_signed, read_signed
from pipeline.indexes.index import INDEXES, Index, build_index
from pipeline.indexes.stored import FAISS, ON_DISK, RECORD, merge_lists, read_index, write_index
from tests.indexes.test_kinds import unit

faiss: Any = pytest.importorskip("faiss")
VECTORS, QUERIES = unit(2000, 16, 0), unit(40, 16, 1)
OF: dict[str, Any] = {"features": [{"key_digest": "aa", "content_digest": "bb"}], "projector": "cc", "split": None}
STORABLE = [name for name, kind in INDEXES.items() if kind.recipe]


def store(folder: Path, kind: str = "ivf", *, on_disk: bool = False) -> Index:
    folder.mkdir(exist_ok=True)
    index = build_index(VECTORS, kind)
    if on_disk:
        empty = INDEXES[kind].empty(16, 2000)
        empty.train(VECTORS.numpy())
        part = faiss.clone_index(empty)
        part.add(VECTORS.numpy())
        faiss.write_index(part, str(folder / "part"))
        merge_lists(empty, [folder / "part"], folder / ON_DISK)
        index = Index(INDEXES[kind], empty)
    index.effort = 3
    write_index(folder, index, OF, {"recall": {"k": 10}, "build": {"parts": 1}})
    return index


@pytest.mark.parametrize("kind", STORABLE)
def test_the_same_answers_after_reading(kind: str, tmp_path: Path) -> None:
    index = store(tmp_path / "index", kind)
    again = read_index(tmp_path / "index", OF)
    assert again.kind is index.kind
    assert (again.effort, again.rows, again.width) == (index.effort, 2000, 16)
    for expected, found in zip(index.search(QUERIES, 9), again.search(QUERIES, 9), strict=True):
        assert torch.equal(expected, found)


def test_lists_on_the_disk_may_be_moved(tmp_path: Path) -> None:
    index = store(tmp_path / "index", on_disk=True)
    expected = index.search(QUERIES, 9)[1]
    assert len(json.loads((tmp_path / "index" / RECORD).read_text())["files"]) == 2
    (tmp_path / "index").rename(tmp_path / "moved")
    assert torch.equal(read_index(tmp_path / "moved", OF).search(QUERIES, 9)[1], expected)


@pytest.mark.parametrize("name", [FAISS, "index.ivfdata"])
def test_a_changed_byte_is_never_opened(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path / "index", on_disk=True)
    data = bytearray((tmp_path / "index" / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "index" / name).write_bytes(data)
    monkeypatch.setattr("faiss.read_index", lambda *_: pytest.fail("opened"))
    with pytest.raises(UserError, match=rf"{name}: expected the sha256 .*build it again with `pipeline index`"):
        read_index(tmp_path / "index", OF)
    (tmp_path / "index" / name).unlink()
    with pytest.raises(UserError, match="found no such file"):
        read_index(tmp_path / "index", OF)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projector": "dd"}, 'expected projector = "cc", found projector = "dd"'),
        ({"features": [{"key_digest": "xx", "content_digest": "bb"}]}, "expected features = .*aa.* found .*xx"),
        ({"split": "test"}, 'expected split = null, found split = "test"'),
    ],
)
def test_an_index_of_something_else_is_a_miss_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    store(tmp_path / "index")
    with pytest.raises(KeyMismatchError, match=message):
        read_index(tmp_path / "index", {**OF, **changes})


def test_a_damaged_record_is_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    with pytest.raises(UserError, match="expected the folder of an index, found no such folder"):
        read_index(folder, OF)
    store(folder)
    record = read_signed(folder / RECORD, "an index")
    cases: list[tuple[dict[str, Any], type[UserError], str]] = [
        ({"format": 2}, UserError, "format 1, found format 2"),
        ({"rows": "many"}, UserError, "nothing usable in rows"),
        (
            {"kind": "torch"},
            UnknownNameError,
            "expected a known stored index .flat, ivf, hnsw, sq8, ivfpq., found 'torch'",
        ),
        ({"files": {}}, UserError, "expected the digest of index.faiss"),
        ({"files": {**record["files"], "../x": "0"}}, UserError, "expected the digest of index.faiss"),
        ({"rows": 1999}, UserError, "expected 1999 rows of width 16, found 2000"),
        ({"kind": "hnsw"}, UserError, "expected an index of kind hnsw"),
    ]
    for changes, error, message in cases:
        (folder / RECORD).write_bytes(dump_signed({**record, **changes}))
        with pytest.raises(error, match=message):
            read_index(folder, OF)
    (folder / RECORD).write_text("[")
    with pytest.raises(UserError, match="expected JSON that describes an index"):
        read_index(folder, OF)
