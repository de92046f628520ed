"""Built in parts, in any order and number, an index has the same bytes; what is foreign or damaged is named."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import KeyMismatchError, PipelineError, UserError
from pipeline.files import lock
from pipeline.indexes import parts as building
from pipeline.indexes.index import Gallery
from pipeline.indexes.parts import PLAN, IndexParts, Wanted
from pipeline.indexes.recall import recalls
from pipeline.indexes.stored import FAISS, ON_DISK, read_index, write_index
from tests.indexes.test_kinds import unit

faiss: Any = pytest.importorskip("faiss")
ROWS = 4000
VECTORS, QUERIES = unit(ROWS, 16, 0), unit(40, 16, 1)
UNITS = (0, 700, 700, 1500, 2600, 3100, ROWS)
OF: dict[str, Any] = {"features": "aa", "split": None}


def wanted(**changes: Any) -> Wanted:
    said = {"of": OF, "kind": "ivf", "seed": 0, "k": 10, "width": 16, "units": UNITS, "parts": 3}
    return Wanted(**{**said, **changes})


def begin(folder: Path, vectors: torch.Tensor = VECTORS, **changes: Any) -> IndexParts:
    return IndexParts(folder, wanted(**changes), Gallery.of(vectors)).begin(lambda: (QUERIES, "images"), 2**30)


def make(parts: IndexParts, numbers: Sequence[int] | None = None) -> None:
    for number in parts.missing() if numbers is None else numbers:
        assert parts.add(number)


def finished(parts: IndexParts, into: Path) -> list[bytes]:
    """Merge, write, and return the bytes of the index."""
    into.mkdir()
    write_index(into, parts.merge(into), parts.wanted.of, {})
    return [(into / name).read_bytes() for name in (FAISS, ON_DISK)]


@pytest.fixture
def parts(tmp_path: Path) -> IndexParts:
    return begin(tmp_path / "parts")


@pytest.mark.parametrize("kind", ["ivf", "sq8", "ivfpq"])
def test_any_number_of_parts_in_any_order_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    found = []
    for count in (1, 3, 60):
        parts = begin(tmp_path / f"parts-{count}", kind=kind, parts=count)
        make(parts, parts.missing()[::-1])
        found.append(finished(parts, tmp_path / f"index-{count}"))
    assert found[0] == found[1] == found[2]


def test_every_row_is_in_the_list_of_its_nearest_centre(parts: IndexParts, tmp_path: Path) -> None:
    """The oracle is a matrix product: rows by rising id, each once, with its own numbers."""
    make(parts)
    finished(parts, tmp_path / "index")
    own = read_index(tmp_path / "index", OF).own
    centres = own.quantizer.reconstruct_n(0, own.nlist)
    nearest = (VECTORS.numpy() @ centres.T).argmax(axis=1)
    for number in range(own.nlist):
        size = own.invlists.list_size(number)
        ids = faiss.rev_swig_ptr(own.invlists.get_ids(number), size)
        assert ids.tolist() == np.flatnonzero(nearest == number).tolist()
        codes = faiss.rev_swig_ptr(own.invlists.get_codes(number), size * own.code_size)
        np.testing.assert_array_equal(codes.view(np.float32).reshape(size, 16), VECTORS.numpy()[ids])


def test_the_truth_is_that_of_a_full_sort(parts: IndexParts, tmp_path: Path) -> None:
    make(parts)
    truth = parts.truth()
    scores = QUERIES.numpy() @ VECTORS.numpy().T
    np.testing.assert_array_equal(truth.positions.numpy(), np.argsort(-scores, axis=1, kind="stable")[:, :10])
    finished(parts, tmp_path / "index")
    index = read_index(tmp_path / "index", OF)
    index.effort = 2
    found = index.search(QUERIES, 10)[1]
    by_hand = [len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), truth.positions.tolist(), strict=True)]
    np.testing.assert_allclose(recalls(index, truth), by_hand)
    assert 0 < np.mean(by_hand) < 1


@given(st.lists(st.integers(0, 400), max_size=12), st.integers(1, 15))
def test_parts_are_runs_of_units_that_cover_all_rows_once(sizes: list[int], parts: int) -> None:
    units = [0, *np.cumsum([*sizes, 1]).tolist()]
    made = wanted(units=units, parts=parts)
    spans = made.spans()
    assert 1 <= len(spans) <= parts
    assert [edge for span in spans for edge in span][1:-1:2] == [start for start, _ in spans][1:]
    assert (spans[0][0], spans[-1][1]) == (0, units[-1])
    assert {edge for span in spans for edge in span} <= set(units)
    assert all(start < stop for start, stop in spans)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_blocks_are_the_same_for_any_number_of_parts(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "BLOCK_ROWS", 300)
    made = wanted(parts=count)
    blocks = [block.tolist() for part in range(len(made.spans())) for block in made.blocks(part)]
    by_hand = [
        list(range(at, min(at + 300, stop))) for start, stop in pairwise(UNITS) for at in range(start, stop, 300)
    ]
    assert blocks == by_hand


@pytest.mark.parametrize("rows", [1, 3, 63, 200])
def test_hardly_any_rows(rows: int, tmp_path: Path) -> None:
    """Fewer rows than lists would want, one part, more neighbours than rows."""
    vectors = unit(rows, 16, 3)
    parts = begin(tmp_path / "parts", vectors, units=(0, rows), k=500, parts=9)
    make(parts)
    assert parts.truth().positions.shape == (len(QUERIES), rows)
    finished(parts, tmp_path / "index")
    index = read_index(tmp_path / "index", OF)
    index.effort = index.most_effort
    assert sorted(index.search(QUERIES[:1], 500)[1][0].tolist()) == list(range(rows))


def test_a_part_that_is_there_is_not_made_again(parts: IndexParts, tmp_path: Path) -> None:
    make(parts, [1])
    assert parts.missing() == [0, 2]
    again = begin(tmp_path / "parts", torch.zeros(ROWS, 16))
    assert again.plan == parts.plan
    assert not again.add(1)


def test_a_part_that_a_living_process_makes_is_left_to_it(parts: IndexParts, tmp_path: Path) -> None:
    with lock(tmp_path / "parts" / ".part-00000.lock"):
        assert not parts.add(0)
    assert parts.add(0, wait=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"of": {**OF, "features": "bb"}}, 'expected of.features = "aa", found of.features = "bb"'),
        ({"kind": "sq8"}, 'expected kind = "ivf", found kind = "sq8"'),
        ({"parts": 2}, "expected parts = 3, found parts = 2"),
        ({"seed": 5, "k": 3}, "expected k = 10, seed = 0, found k = 3, seed = 5"),
        ({"units": (0, 800, *UNITS[2:])}, "expected units = "),
    ],
)
def test_the_folder_of_another_index_is_a_miss_by_name(
    changes: dict[str, Any], message: str, parts: IndexParts, tmp_path: Path
) -> None:
    assert parts.missing() == [0, 1, 2]
    with pytest.raises(KeyMismatchError, match=message + ".*or remove the folder"):
        begin(tmp_path / "parts", **changes)


def test_a_foreign_part_is_refused(parts: IndexParts, tmp_path: Path) -> None:
    other = begin(tmp_path / "other", seed=9)
    make(other, [1])
    make(parts, [0])
    for path in (tmp_path / "other").glob("part-*"):
        path.rename(tmp_path / "parts" / path.name)
    with pytest.raises(UserError, match=r"expected parts of the plan \w{12}…, found part-00001.json, a part of"):
        parts.missing()


@pytest.mark.parametrize("name", ["part-00001.faiss", "part-00001.safetensors"])
def test_a_flipped_byte_is_seen_before_anything_is_merged(name: str, parts: IndexParts, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    make(parts)
    whole = finished(parts, tmp_path / "whole")
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name}: expected the sha256 .*: only that part is redone"):
        parts.merge(tmp_path)
    assert not (tmp_path / ON_DISK).exists()
    (folder / name).unlink()
    assert parts.missing() == [1]
    make(parts)
    assert finished(parts, tmp_path / "index") == whole


def test_a_damaged_record_or_a_shorter_file_is_made_again(
    parts: IndexParts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "parts"
    make(parts)
    (folder / "part-00000.json").write_text("{}")
    (folder / "part-00002.faiss").write_bytes(b"short")
    assert parts.missing() == [0, 2]
    assert "expected a commit record, found other bytes" in caplog.text
    assert "found 5; its part is made again" in caplog.text
    with pytest.raises(UserError, match="expected 3 parts, found no part 0, 2; make what is missing"):
        parts.merge(tmp_path)


@pytest.mark.parametrize("name", ["trained.faiss", "queries.safetensors"])
def test_a_damaged_file_of_the_plan_stops_every_part(name: str, parts: IndexParts, tmp_path: Path) -> None:
    (tmp_path / "parts" / name).write_bytes(b"other")
    with pytest.raises(UserError, match=rf"{name}: expected the sha256 .* remove the folder"):
        make(parts, [0])


def test_a_damaged_plan(parts: IndexParts, tmp_path: Path) -> None:
    path = tmp_path / "parts" / PLAN
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(UserError, match=r"a plan that is what was written, found other bytes; remove the folder"):
        begin(tmp_path / "parts")
    assert json.loads(path.read_text())["wanted"]["seed"] == 1


def test_no_room(parts: IndexParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(parts)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(PipelineError, match=r"expected [\d,]+ free bytes for the merged lists, found 1,000; make room"):
        parts.merge(tmp_path)
    assert parts.missing() == []


def test_what_cannot_be_built_in_parts() -> None:
    with pytest.raises(UserError, match=r"built in parts \(ivf, sq8, ivfpq\), found flat"):
        wanted(kind="flat")
    with pytest.raises(UserError, match="--parts: expected 1 part or more, found 0"):
        wanted(parts=0)
    with pytest.raises(UserError, match="one of 1,600 rows that may take 230,400; take 3 times as many parts"):
        wanted().check_memory(100_000)


def test_nothing_is_left_of_the_parts_but_what_is_not_theirs(parts: IndexParts, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    make(parts)
    (folder / ".part-00000.faiss.0123456789abcdef.tmp").touch()
    (folder / "mine.txt").touch()
    parts.remove()
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    (folder / "mine.txt").unlink()
    parts.remove()
    assert not folder.exists()


def test_what_a_record_says(parts: IndexParts, tmp_path: Path) -> None:
    make(parts, [2])
    record = parts.record(2)
    assert record is not None
    assert set(record["files"]) == {"part-00002.faiss", "part-00002.safetensors"}
    assert record["seconds"] > 0
