"""Lists on the disk: the bytes of faiss's own merge, in a folder that may be moved, read without being loaded."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.indexes.index import INDEXES
from pipeline.indexes.stored import ON_DISK, merge_lists, read_mapped
from tests.indexes.test_kinds import unit

faiss: Any = pytest.importorskip("faiss")
ROOT = Path(__file__).resolve().parents[2]
VECTORS, QUERIES = unit(2000, 16, 0).numpy(), unit(20, 16, 1).numpy()


def trained(kind: str = "ivf") -> Any:
    empty = INDEXES[kind].empty(16, 2000)
    empty.train(VECTORS)
    return empty


def write_parts(folder: Path, empty: Any, edges: tuple[int, ...]) -> list[Path]:
    """Write a part for each two edges; two equal ones make a part without rows."""
    paths: list[Path] = []
    for start, stop in pairwise(edges):
        part = faiss.clone_index(empty)
        part.add_with_ids(VECTORS[start:stop], np.arange(start, stop))
        paths.append(folder / f"{len(paths)}.faiss")
        faiss.write_index(part, str(paths[-1]))
    return paths


@pytest.mark.parametrize("kind", ["ivf", "sq8", "ivfpq"])
@pytest.mark.parametrize("edges", [(0, 2000), (0, 700, 700, 1999, 2000), (0, 3)])
def test_the_bytes_are_those_of_faiss(kind: str, edges: tuple[int, ...], tmp_path: Path) -> None:
    from faiss.contrib.ondisk import merge_ondisk

    empty = trained(kind)
    paths = write_parts(tmp_path, empty, edges)
    theirs, ours = faiss.clone_index(empty), faiss.clone_index(empty)
    merge_ondisk(theirs, [str(path) for path in paths], str(tmp_path / "theirs"))
    merge_lists(ours, paths, tmp_path / "ours")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    theirs.nprobe = ours.nprobe = 5
    for expected, found in zip(theirs.search(QUERIES, 7), ours.search(QUERIES, 7), strict=True):
        np.testing.assert_array_equal(expected, found)


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Faiss's own merge and its flag for moved folders both print on standard output, which `--json` owns."""
    empty = trained()
    merge_lists(empty, write_parts(tmp_path, empty, (0, 500, 2000)), tmp_path / ON_DISK)
    faiss.write_index(empty, str(tmp_path / "index.faiss"))
    read_mapped(tmp_path / "index.faiss")
    assert capfd.readouterr() == ("", "")


def test_the_folder_may_be_moved_and_read_only(tmp_path: Path) -> None:
    empty = trained()
    (tmp_path / "here").mkdir()
    merge_lists(empty, write_parts(tmp_path, empty, (0, 500, 2000)), tmp_path / "here" / ON_DISK)
    faiss.write_index(empty, str(tmp_path / "here" / "index.faiss"))
    assert str(tmp_path).encode() not in (tmp_path / "here" / "index.faiss").read_bytes()
    expected = empty.search(QUERIES, 7)[1]
    (tmp_path / "here" / ON_DISK).chmod(0o444)
    (tmp_path / "here").rename(tmp_path / "there")
    found = read_mapped(tmp_path / "there" / "index.faiss")
    assert isinstance(faiss.downcast_InvertedLists(found.invlists), faiss.OnDiskInvertedLists)
    np.testing.assert_array_equal(found.search(QUERIES, 7)[1], expected)


def test_lists_without_rows(tmp_path: Path) -> None:
    empty = trained()
    merge_lists(empty, write_parts(tmp_path, empty, (0, 0)), tmp_path / ON_DISK)
    faiss.write_index(empty, str(tmp_path / "index.faiss"))
    assert read_mapped(tmp_path / "index.faiss").search(QUERIES, 2)[1].max() == -1


def test_a_part_that_ends_too_soon(tmp_path: Path) -> None:
    empty = trained()
    (path,) = write_parts(tmp_path, empty, (0, 2000))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RuntimeError, match="Error in"):
        merge_lists(empty, [path], tmp_path / ON_DISK)


def test_data_of_another_size_is_never_mapped(tmp_path: Path) -> None:
    empty = trained()
    merge_lists(empty, write_parts(tmp_path, empty, (0, 2000)), tmp_path / ON_DISK)
    faiss.write_index(empty, str(tmp_path / "index.faiss"))
    (tmp_path / ON_DISK).write_bytes((tmp_path / ON_DISK).read_bytes()[:-8])
    with pytest.raises(RuntimeError, match=r"lists of 144000 bytes, and 143992 bytes in index\.ivfdata"):
        read_mapped(tmp_path / "index.faiss")
    faiss.write_index(faiss.IndexFlatIP(16), str(tmp_path / "index.faiss"))
    with pytest.raises(RuntimeError, match="not in a file of their own"):
        read_mapped(tmp_path / "index.faiss")


def test_a_searching_process_holds_a_part_of_the_index(tmp_path: Path) -> None:
    """200,000 × 64: 53 MB, each search in a process of its own; the control has loaded every list.

    The kernel maps up to 2 MB of the page cache around each list that is looked into: pages that it can take back.
    """
    run = [sys.executable, "-m", "tests.indexes.searching", str(tmp_path)]
    (made,) = _lines([*run, "build"])
    assert made["bytes"] == 200_000 * (64 * 4 + 8)
    (mapped,), (loaded,) = _lines([*run, "mapped"]), _lines([*run, "loaded"])
    assert loaded["found"] == mapped["found"]
    assert loaded["own"] > made["bytes"] / 2
    assert mapped["own"] < made["bytes"] / 20
    assert mapped["resident"] < made["bytes"] / 4


def _lines(command: list[str]) -> list[dict[str, Any]]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
