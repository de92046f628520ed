"""The reader: errors on opening, pickling, staging, batches."""

import errno
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DamagedStoreError, PipelineError, UnfinishedStoreError, UserError
from pipeline.files import dump_signed, load_signed
from pipeline.storage.contract import Storage
from pipeline.storage.local import LocalStorage
from pipeline.store import reader
from pipeline.store.inspect import verify
from pipeline.store.manifest import Manifest
from pipeline.store.reader import FeatureStore, gather, row_batches
from pipeline.store.writer import StoreWriter
from tests.store.building import LAYERS, computed, fill, header, samples, stored


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: expected a feature store's folder, found no such folder"):
        FeatureStore.open(tmp_path / "nowhere")


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a feature store, found a folder without store\.json"):
        FeatureStore.open(str(tmp_path))


def test_unfinished(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, header())
    with pytest.raises(UnfinishedStoreError, match="0 of 3 shards"):
        FeatureStore.open(tmp_path)
    for shard in writer.pending(LAYERS)[:2]:
        writer.commit(shard, *computed(shard))
    with pytest.raises(UnfinishedStoreError, match=r"2 of 3 shards; run `pipeline extract`"):
        FeatureStore.open(tmp_path)


@pytest.mark.parametrize("name", ["store.json", "manifest.json"])
def test_another_version_of_the_format(tmp_path: Path, name: str) -> None:
    fill(tmp_path, header())
    body = load_signed((tmp_path / name).read_bytes(), name, "store")
    (tmp_path / name).write_bytes(dump_signed({**body, "format": 99}))
    with pytest.raises(UserError, match=rf"{name}: expected a feature store of format 1, found format 99"):
        FeatureStore.open(tmp_path)


def test_a_header_that_is_not_the_manifests(tmp_path: Path) -> None:
    fill(tmp_path, header())
    (tmp_path / "store.json").write_bytes(dump_signed(header(shard_rows=11).to_json()))
    with pytest.raises(DamagedStoreError, match=r"store\.json with the manifest's header"):
        FeatureStore.open(tmp_path)


def test_samples_of_another_store(tmp_path: Path) -> None:
    fill(tmp_path / "a", header())
    StoreWriter(tmp_path / "a", header()).refresh_samples(samples(split="test"))
    fill(tmp_path / "b", header())
    (tmp_path / "a" / "samples.parquet").replace(tmp_path / "b" / "samples.parquet")
    for store in ("a", "b"):
        with pytest.raises(DamagedStoreError, match=r"samples\.parquet with sha256"):
            FeatureStore.open(tmp_path / store)


def test_opening_beside_a_refresh_that_comes_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, header())
    check = reader._check_samples
    writer = StoreWriter(tmp_path, header())

    def slow_check(root: Storage, manifest: Manifest) -> None:
        monkeypatch.setattr(reader, "_check_samples", check)
        writer.refresh_samples(samples(split="test"))
        check(root, manifest)

    monkeypatch.setattr(reader, "_check_samples", slow_check)
    assert set(FeatureStore.open(tmp_path).samples.split) == {"test"}


@pytest.mark.parametrize("stop", range(3))
def test_a_refresh_that_dies_leaves_the_old_samples_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    fill(tmp_path, header())
    put, done = LocalStorage.put, list[str]()

    def dying_put(self: LocalStorage, name: str, data: bytes) -> None:
        if len(done) == stop:
            raise OSError(errno.EIO, "made up")
        done.append(name)
        put(self, name, data)

    writer = StoreWriter(tmp_path, header())
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "put", dying_put)
        for split in ("test", "val"):
            with pytest.raises(PipelineError, match=r"expected to write samples\.parquet, found Input/output error"):
                writer.refresh_samples(samples(split=split))
            done.clear()
            store = FeatureStore.open(tmp_path)
            assert set(store.samples.split) <= ({"train"} if stop < 2 else {"test", "val"})
            assert verify(tmp_path, deep=True) == []
    writer.refresh_samples(samples(split="val"))
    assert set(FeatureStore.open(tmp_path).samples.split) == {"val"}
    assert FeatureStore.open(tmp_path).manifest.next_samples == ""
    data = (tmp_path / "samples.parquet").read_bytes()
    (tmp_path / "samples.parquet").write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(DamagedStoreError, match=r"samples\.parquet"):
        FeatureStore.open(tmp_path)
    with monkeypatch.context() as patch, suppress(PipelineError):
        patch.setattr(LocalStorage, "put", dying_put)
        done.clear()
        writer.refresh_samples(samples(split="test"))
    if stop < 2:
        with pytest.raises(DamagedStoreError, match=r"samples\.parquet"):
            FeatureStore.open(tmp_path)


def test_a_store_pickles_small_and_works_after(tmp_path: Path) -> None:
    fill(tmp_path, header(items=20_000, shard_rows=10_000))
    store = FeatureStore.open(tmp_path)
    next(store.batches("output", 100, shuffle=True))
    store.memmaps("a/b")
    data = pickle.dumps(store)
    assert len(data) < 10_000
    again = pickle.loads(data)
    np.testing.assert_array_equal(again.numpy("output"), stored("output", 20_000))
    assert again.ids == store.ids


def test_a_layer_too_large_for_memory_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, header())
    monkeypatch.setattr(reader, "_free_memory", lambda: 10)
    store = FeatureStore.open(tmp_path)
    seen = []
    for rows, batch in store.batches("a/b", 4, shuffle=True):
        np.testing.assert_array_equal(batch.numpy(), stored("a/b")[rows])
        seen += rows.tolist()
    assert sorted(seen) == list(range(22))


def test_staging_reads_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, header())
    store = FeatureStore.open(tmp_path)
    list(store.batches("output", 5, shuffle=True))
    read = store.numpy
    monkeypatch.setattr(store, "numpy", lambda name: pytest.fail("read twice"))
    list(store.batches("output", 5, shuffle=True, seed=1))
    store.release()
    monkeypatch.setattr(store, "numpy", read)
    np.testing.assert_array_equal(store.gather("output", np.array([3, 3, 0])).numpy(), stored("output")[[3, 3, 0]])


@pytest.mark.parametrize("file_format", ["hdf5", "parquet"])
@pytest.mark.parametrize(
    ("rows", "shards"), [([21, 0, 20, 20], {0, 2}), ([12], {1}), ([], set()), (list(range(22)), {0, 1, 2})]
)
def test_a_gather_opens_the_shards_of_its_rows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: str, rows: list[int], shards: set[int]
) -> None:
    fill(tmp_path, header(file_format))
    store = FeatureStore.open(tmp_path)
    assert store.shard_edges.tolist() == [0, 10, 19, 22]  # one item of the second is rejected
    opened: set[int] = set()
    view = FeatureStore._view

    def noted(self: FeatureStore, source: Any) -> Any:
        opened.add(source.index)
        return view(self, source)

    monkeypatch.setattr(FeatureStore, "_view", noted)
    at = np.array(rows, dtype=np.int64)
    np.testing.assert_array_equal(store.gather("a/b", at, keep=False).numpy(), stored("a/b")[at])
    assert opened == shards


def test_batches_do_not_write_through(tmp_path: Path) -> None:
    fill(tmp_path, header())
    store = FeatureStore.open(tmp_path)
    for shuffle in (False, True):
        for _, batch in store.batches("output", 100, shuffle=shuffle):
            batch.fill_(7)
    np.testing.assert_array_equal(store.gather("output", np.arange(22)).numpy(), stored("output"))
    np.testing.assert_array_equal(store.numpy("output"), stored("output"))
    assert not any(view.flags.writeable for view in store.memmaps("output"))


@given(st.integers(0, 50), st.integers(1, 60), st.booleans(), st.integers(0, 3), st.booleans())
def test_row_batches(rows: int, size: int, shuffle: bool, seed: int, drop_last: bool) -> None:
    batches = list(row_batches(rows, size, shuffle=shuffle, seed=seed, drop_last=drop_last))
    assert all(len(batch) == size for batch in batches[: None if drop_last else -1])
    flat = [int(row) for batch in batches for row in batch]
    assert len(set(flat)) == len(flat) == (rows - rows % size if drop_last else rows)
    assert shuffle or flat == list(range(len(flat)))
    again = row_batches(rows, size, shuffle=shuffle, seed=seed, drop_last=drop_last)
    assert flat == [int(row) for batch in again for row in batch]


def test_a_batch_of_nothing() -> None:
    with pytest.raises(UserError, match="a batch size of 1 or more, found 0"):
        next(row_batches(5, 0, shuffle=False, seed=0, drop_last=False))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.data())
def test_gather_over_parts(lengths: list[int], data: Any) -> None:
    whole = np.arange(sum(lengths) * 2, dtype=np.float32).reshape(-1, 2)
    parts = np.split(whole, np.cumsum(lengths)[:-1])
    rows = np.array(
        data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=9)) if len(whole) else [], dtype=np.int64
    )
    np.testing.assert_array_equal(gather(parts, rows), whole[rows])
