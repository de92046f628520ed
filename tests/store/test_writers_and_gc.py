"""While a writer lives, between two of its shards too, nobody collects or replaces its store."""

import threading
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.storage.contract import Storage
from pipeline.store import cleaning
from pipeline.store.cleaning import gc, replace_store
from pipeline.store.inspect import verify
from pipeline.store.reader import FeatureStore
from pipeline.store.writer import StoreWriter
from tests.store.building import LAYERS, computed, fill, header, samples


def test_gc_between_two_shards_of_more_layers(tmp_path: Path) -> None:
    fill(tmp_path, header(), LAYERS[:1])
    writer = StoreWriter(tmp_path, header())
    for shard in writer.pending(LAYERS):
        writer.commit(shard, *computed(shard))
        assert gc(tmp_path, delete=True) == [], "its shards are in no manifest yet"
        with pytest.raises(UserError, match=r"expected a store that nobody writes, found store\.json held by a live"):
            replace_store(tmp_path)
    writer.finish(samples(), {})
    assert verify(tmp_path, deep=True) == []
    assert len(FeatureStore.open(tmp_path).layers) == len(LAYERS)
    del writer
    assert gc(tmp_path, delete=True) == []


def test_gc_never_takes_what_a_writer_has_just_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were in no manifest when gc looked are in one when it deletes: it looks and deletes under one lock."""
    fill(tmp_path, header(), LAYERS[:1])
    writer = StoreWriter(tmp_path, header())
    for shard in writer.pending(LAYERS):
        writer.commit(shard, *computed(shard))
    del writer
    find, looked, waits = cleaning._find, threading.Event(), list[bool]()

    def slow_find(path: Storage, *, idle: bool) -> list[cleaning.Garbage]:
        found = find(path, idle=idle)
        looked.set()
        finishing.join(0.3)
        waits.append(finishing.is_alive())
        return found

    def finish() -> None:
        looked.wait(120)
        fill(tmp_path, header())

    finishing = threading.Thread(target=finish)
    finishing.start()
    monkeypatch.setattr(cleaning, "_find", slow_find)
    removed = gc(tmp_path, delete=True)
    finishing.join(120)
    assert not finishing.is_alive()
    assert waits == [True], "it waited"
    assert removed != []
    assert verify(tmp_path, deep=True) == []
    assert len(FeatureStore.open(tmp_path).layers) == len(LAYERS)


def test_a_writer_that_waited_for_a_replacement_begins_anew(tmp_path: Path) -> None:
    root = tmp_path / "store"
    fill(root, header())
    replace_store(root)
    assert not root.exists()
    assert fill(root, header()).rows == 22


def test_writers_share_and_leave_no_file(tmp_path: Path) -> None:
    writers = [StoreWriter(tmp_path, header()) for _ in range(3)]
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]
    for writer in writers:
        assert len(writer.pending(LAYERS)) == 3
