"""Looking into stores: ls, du, status, diff, gc, replace."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.store.cleaning import gc, replace_store
from pipeline.store.events import status
from pipeline.store.inspect import diff, du, ls, verify
from pipeline.store.writer import StoreWriter
from tests.store.building import LAYERS, WIDTHS, computed, fill, header, sample_id, samples


def test_ls_is_json_and_complete(tmp_path: Path) -> None:
    manifest = fill(tmp_path, header())
    fill(tmp_path / "classes", header(items=12), ["output"])
    data = json.loads(json.dumps(ls(tmp_path)))
    assert (data["rows"], data["items"], data["rejected"], data["shards"], data["files"]) == (22, 23, 1, 3, 3)
    assert [(layer["name"], layer["width"], layer["dtype"]) for layer in data["layers"]] == [
        (name, WIDTHS[name], "float16") for name in LAYERS
    ]
    assert data["key"] == header().key.to_json()
    assert data["key_digest"] == header().key.digest()
    assert data["content_digest"] == manifest.content_digest
    assert data["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("*.h5"))
    assert data["splits"] == {"train": 22}
    assert data["provenance"]["spec"] == "toy"
    assert data["classes"]["rows"] == 11


def test_du_adds_up(tmp_path: Path) -> None:
    fill(tmp_path, header("parquet"))
    sizes = du(tmp_path)
    assert sizes["total"] == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert sizes["total"] == sizes["shards"] + sizes["tables"]
    assert sizes["shards"] == sum(path.stat().st_size for path in tmp_path.glob("0*.parquet"))
    assert sizes["layer:a/b"] == 22 * 5 * 2


def test_status_of_an_unfinished_store(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, header())
    shard = writer.pending(LAYERS)[1]
    writer.commit(shard, *computed(shard))
    with writer.claim(2):
        states = status(tmp_path)
    assert [(each.state, each.start, each.stop) for each in states] == [
        ("missing", 0, 10), ("done", 10, 20), ("leased", 20, 23),
    ]  # fmt: skip
    assert states[1].layers == LAYERS
    with pytest.raises(UserError, match=r"expected a feature store, found no store\.json"):
        status(tmp_path / "nowhere")


def test_equal_stores_do_not_differ(tmp_path: Path) -> None:
    fill(tmp_path / "a", header())
    fill(tmp_path / "b", header("parquet", shard_rows=4))
    assert diff(tmp_path / "a", tmp_path / "b") == []


def test_diff_names_keys_layers_rows_and_versions(tmp_path: Path) -> None:
    fill(tmp_path / "a", header(), ["a/b", "output"])
    other = header(items=10)
    writer = StoreWriter(tmp_path / "b", replace(other, key=replace(other.key, pooling="cls")))
    for shard in writer.work(["output", "blocks.0"]):
        ids = [sample_id(item) for item in range(10)]
        writer.commit(shard, ids, {name: np.ones((10, 3), np.float16) for name in shard.layers})
    writer.finish(samples(10), {"spec": "toy", "torch": "2.9"})
    assert diff(tmp_path / "a", tmp_path / "b") == [
        'key: pooling is "auto" in the first and "cls" in the second',
        "rows: 22 in the first and 10 in the second",
        "ids: 12 only in the first (bild-12, bild-15, bild-18, …)",
        "layer a/b: only in the first",
        "layer blocks.0: only in the second",
        "layer output: 2 float16 in the first and 3 float16 in the second",
        "provenance: torch is None in the first and '2.9' in the second",
    ]


def test_diff_sees_other_values_and_another_order(tmp_path: Path) -> None:
    for name, order, value in (("a", 1, 0), ("b", 1, 1), ("c", -1, 0)):
        writer = StoreWriter(tmp_path / name, header(items=5, shard_rows=5))
        ids = samples(5).sample_id[::order]
        for shard in writer.work(["output"]):
            writer.commit(shard, ids, {"output": np.full((5, 2), value, np.float16)})
        writer.finish(samples(5).take(range(5)[::order]), {})
    assert diff(tmp_path / "a", tmp_path / "b") == ["layer output: other values for the same ids"]
    assert diff(tmp_path / "a", tmp_path / "c") == ["ids: the same ids in another order"]


def test_gc_lists_first_and_removes_only_when_asked(tmp_path: Path) -> None:
    fill(tmp_path, header(), ["output"])
    writer = StoreWriter(tmp_path, header())
    shard = writer.pending(["a/b"])[0]
    writer.commit(shard, *computed(shard))
    stale = [".00000-00000000.h5.0123456789abcdef.tmp", ".00009.lock"]
    for name in stale:
        (tmp_path / name).write_bytes(b"xyz")
    (tmp_path / "notes.txt").write_text("mine")
    with writer.claim(1):
        assert {each.name for each in gc(tmp_path)} == set(stale)
    assert {each.name for each in gc(tmp_path)} == set(stale), "its writer lives"
    del writer
    found = gc(tmp_path)
    assert {each.name for each in found} > set(stale)
    assert {each.reason for each in found} == {
        "temp file of a dead process", "lock file of a dead process", "not in the manifest",
    }  # fmt: skip
    assert len(found) == 4
    assert all((tmp_path / each.name).stat().st_size == each.bytes for each in found)
    assert gc(tmp_path, delete=True) == found
    assert gc(tmp_path) == []
    assert not any((tmp_path / each.name).exists() for each in found)
    assert (tmp_path / "notes.txt").exists()
    assert verify(tmp_path, deep=True) == []


def test_gc_leaves_an_unfinished_store_its_shards(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, header())
    shard = writer.pending(LAYERS)[0]
    writer.commit(shard, *computed(shard))
    assert gc(tmp_path, delete=True) == []
    assert len(writer.pending(LAYERS)) == 2
    with pytest.raises(UserError, match="expected a feature store"):
        gc(tmp_path / "nowhere")


def test_replace_removes_the_store_alone(tmp_path: Path) -> None:
    fill(tmp_path, header())
    fill(tmp_path / "classes", header())
    mine = [tmp_path / "notes.txt", tmp_path / "00000-backup.h5", tmp_path / "other" / "store.json"]
    mine[2].parent.mkdir()
    for path in mine:
        path.write_text("mine")
    removed = replace_store(tmp_path)
    assert len(removed) == 2 * (3 * 2 + 4)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(mine)
    assert not (tmp_path / "classes").exists()


def test_replace_removes_an_empty_folder_and_unfinished_stores(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "store", header())
    shard = writer.pending(LAYERS)[0]
    writer.commit(shard, *computed(shard))
    del writer
    (tmp_path / "store" / "store.json").unlink()
    assert len(replace_store(tmp_path / "store")) == 2
    assert not (tmp_path / "store").exists()
    assert replace_store(tmp_path / "store") == []


def test_replace_refuses_what_is_no_store(tmp_path: Path) -> None:
    for name in ("store.json", "manifest.json"):
        (tmp_path / name).write_text('{"mine": true}')
    with pytest.raises(UserError, match=r"expected a feature store to replace, found files named like"):
        replace_store(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_replace_does_not_follow_links(tmp_path: Path) -> None:
    fill(tmp_path / "store", header())
    target = tmp_path / "precious.parquet"
    (tmp_path / "store" / "samples.parquet").rename(target)
    (tmp_path / "store" / "samples.parquet").symlink_to(target)
    replace_store(tmp_path / "store")
    assert target.exists()


def test_replace_refuses_while_somebody_writes(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, header())
    writer.pending(LAYERS)
    with writer.claim(1), pytest.raises(UserError, match=r"found \.00001\.lock held by a live process"):
        replace_store(tmp_path)
    assert (tmp_path / "store.json").exists()
