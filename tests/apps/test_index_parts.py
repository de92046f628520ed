"""`pipeline index --parts`: one worker or several, killed or not, the same bytes; the recall that is said is true."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.apps import indexing
from pipeline.apps.config import SearchConfig
from pipeline.apps.indexing import Subject, build, in_turn, make_parts
from pipeline.apps.search import open_searcher
from pipeline.errors import KeyMismatchError, UserError
from pipeline.files import lock, read_signed
from pipeline.indexes.stored import read_index
from pipeline.runtime import Share
from pipeline.store import shards
from tests.apps.index_runs import ROWS, config, index_bytes, write_run
from tests.commands.running import done, refused

pytest.importorskip("faiss")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path)
    return tmp_path


def lines(*arguments: object) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.apps.index_processes", *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_one_worker_or_several_make_the_same_bytes(folder: Path) -> None:
    build(config(folder, parts=1))
    alone = index_bytes(folder / "index")
    for index in (2, 0, 1):
        made = make_parts(config(folder, parts=8, out=folder / "other"), Share(index=index, count=3))
        assert made.parts == 8
    assert made.missing == ()
    build(config(folder, parts=8, out=folder / "other"))
    assert index_bytes(folder / "other") == alone
    assert sorted(alone) == ["index.faiss", "index.ivfdata"]
    assert {path.name for path in folder.iterdir()} == {"image", "text", "run", "index", "other"}


@pytest.mark.parametrize("count", [4, pytest.param(12, marks=pytest.mark.slow)])
def test_workers_at_the_same_time_lose_and_double_nothing(folder: Path, count: int) -> None:
    assert [line["status"] for line in lines("beside", folder, count)] == [0] * count
    made = [json.loads((folder / f"worker-{index}.json").read_text()) for index in range(count)]
    assert sorted(number for each in made for number in each) == list(range(8))
    build(config(folder, parts=8))
    build(config(folder, parts=1, out=folder / "alone"))
    assert index_bytes(folder / "index") == index_bytes(folder / "alone")


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_every_step(folder: Path, every: int) -> None:
    whole, *deaths = lines("steps", folder, every)
    assert len(deaths) > 12
    for death in deaths:
        assert death["ended"] == 9, death
        result = death["result"]
        assert result["digest"] == whole["whole"]["digest"], death
        assert result["left"] == ["image", "index", "run", "text"], death
        after_the_end = death["step"] == "remove"
        assert result["made"] == (3 if after_the_end and not result["before"] else 3 - result["before"]), death
    assert {death["step"] for death in deaths if death["torn"]} >= {"write_faiss", "write_tensors", "merge_lists"}


def test_the_recall_that_is_said_is_true(folder: Path) -> None:
    """By hand: embeddings, a full sort, and the answers of the index at the effort that it was tuned to."""
    made = build(config(folder, recall=0.9))
    subject = Subject(config(folder))
    vectors = subject.gallery.read(np.arange(ROWS)).numpy()
    queries = subject.queries()[0][made["recall"]["tuned_on"] :]
    assert len(queries) == made["recall"]["queries"]
    best = np.argsort(-(queries.numpy() @ vectors.T), axis=1, kind="stable")[:, :5]
    found = read_index(folder / "index", subject.identity).search(queries, 5)[1].tolist()
    shares = [len(set(a) & set(b)) / 5 for a, b in zip(best.tolist(), found, strict=True)]
    assert made["recall"]["recall"] == pytest.approx(np.mean(shares), abs=1e-9)
    assert made["effort"]["nprobe"] < made["build"]["lists"]
    assert made["build"]["parts"] == 3
    assert len(made["build"]["seconds"]["parts"]) == 3


def test_the_same_lists_as_built_at_once(folder: Path) -> None:
    """The plain build draws the same sample; here all rows fit one block, so the vectors are the same to the bit."""
    build(config(folder, kind="ivf"))
    build(config(folder, kind="ivf", out=folder / "plain", parts=None))
    subject = Subject(config(folder))
    ours, plain = (read_index(folder / name, subject.identity) for name in ("index", "plain"))
    vectors = subject.gallery.read(np.arange(0, ROWS, 7))
    for effort in (1, 3):
        ours.effort = effort
        plain.effort = effort
        assert torch.equal(ours.search(vectors, 5)[1], plain.search(vectors, 5)[1])


def test_it_is_searched_wherever_it_lies(folder: Path) -> None:
    build(config(folder, recall=1.0))
    (folder / "index").rename(folder / "moved")
    vectors = torch.nn.functional.normalize(torch.randn(20, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    exact, ours = (
        open_searcher(SearchConfig(run=folder / "run")),
        open_searcher(SearchConfig(run=folder / "run", index=folder / "moved")),
    )
    ours.images.effort = ours.images.most_effort
    named = [[hit.image_id for hit in hits] for hits in exact.find_images(vectors, 3)]
    assert [[hit.image_id for hit in hits] for hits in ours.find_images(vectors, 3)] == named


def test_a_split_is_cut_at_the_shards_too(folder: Path) -> None:
    made = build(config(folder, split="test", parts=8))
    assert (made["rows"], made["build"]["parts"]) == (120, 8)
    with pytest.raises(KeyMismatchError, match='expected split = "test", found split = null'):
        open_searcher(SearchConfig(run=folder / "run", index=folder / "index")).find_images(torch.eye(4), 1)


def test_more_parts_than_shards_and_fewer_rows_than_lists_want(tmp_path: Path) -> None:
    write_run(tmp_path, rows=5, shard_rows=2)
    made = build(config(tmp_path, parts=50, k=40))
    assert (made["rows"], made["build"]["parts"], made["build"]["lists"]) == (5, 3, 1)
    assert (made["recall"]["k"], made["recall"]["recall"]) == (5, 1.0)


def test_other_features_cannot_join(folder: Path) -> None:
    make_parts(config(folder), Share(index=0, count=2))
    (folder / "other").mkdir()
    write_run(folder / "other", rows=ROWS + 1)
    stores = (folder / "other" / "image",)
    with pytest.raises(KeyMismatchError, match=r"expected of\.features = .*remove the folder .*index\.parts to start"):
        build(config(folder, image=stores))
    assert not (folder / "index").exists()


def test_only_one_process_merges(folder: Path) -> None:
    make_parts(config(folder), Share())
    with lock(folder / "index.parts" / ".merge.lock"), pytest.raises(UserError, match="parts that nobody is merging"):
        build(config(folder))
    assert build(config(folder))["rows"] == ROWS


def test_a_worker_reads_its_own_shards_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each first read of a shard is verified; a worker does not pay for those of the others."""
    make_parts(config(folder, parts=8), Share(index=0, count=8))
    (folder / "index.parts" / "part-00007.json").unlink()
    read: set[int] = set()
    view = shards.view_shard

    def noted(root: Any, shard: Any, *, verify: bool) -> Any:
        read.add(shard.index)
        return view(root, shard, verify=verify)

    monkeypatch.setattr("pipeline.store.reader.view_shard", noted)
    assert make_parts(config(folder, parts=8), Share(index=7, count=8)).made == (7,)
    assert read == {8}


@pytest.mark.parametrize(("parts", "count"), [(1, 1), (7, 3), (3, 7), (64, 16)])
def test_all_workers_together_take_everything_in_turn(parts: int, count: int) -> None:
    turns = [in_turn(parts, Share(index=index, count=count)) for index in range(count)]
    assert all(sorted(turn) == list(range(parts)) for turn in turns)
    first = [turn[: (index + 1) * parts // count - index * parts // count] for index, turn in enumerate(turns)]
    assert [number for own in first for number in own] == list(range(parts))


def test_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = folder / "run", folder / "index"
    words = ("index", run, "--out", out, "--parts", 4, "--k", 5)
    monkeypatch.setattr(indexing, "in_turn", lambda parts, share: range(share.index, parts, share.count))
    first = done(*words, "--worker-index", 0, "--num-workers", 2, "--json").json()
    assert first == {"parts": 4, "made": [0, 2], "missing": [1, 3], "folder": str(folder / "index.parts")}
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = done(*words).out
    assert "2 of 4 parts made here, 0 missing" in said
    assert "without a worker's number merges them" in said
    assert "ivf of 600 images" in done(*words, "--num-workers", 1).out
    monkeypatch.delenv("RANK")
    made = done(*words, "--json").json()  # an older index is replaced
    assert made == read_signed(out / "index.json", "an index")
    assert not (folder / "index.parts").exists()


def test_mistakes_are_one_sentence(folder: Path) -> None:
    words = ("index", folder / "run", "--out", folder / "index")
    assert "expected --parts with --worker-index" in refused(*words, "--worker-index", 1, "--num-workers", 2)
    assert "expected 1 part or more, found 0" in refused(*words, "--parts", 0)
    assert "built in parts (ivf, sq8, ivfpq), found hnsw" in refused(*words, "--parts", 2, "--kind", "hnsw")
    assert "together, found only --worker-index" in refused(*words, "--parts", 2, "--worker-index", 1)
    assert not (folder / "index.parts").exists()
