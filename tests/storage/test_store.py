"""A store at a URL: written by one machine, read and gone on with by another; nothing but objects between them."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from pipeline.errors import DamagedStoreError, UnfinishedStoreError, UserError
from pipeline.storage.contract import Storage, Stored
from pipeline.storage.local import open_storage
from pipeline.storage.objects import ObjectStorage
from pipeline.store.cleaning import gc, replace_store
from pipeline.store.events import status
from pipeline.store.inspect import diff, du, ls, verify
from pipeline.store.reader import FeatureStore
from pipeline.store.writer import StoreWriter
from tests.storage.conftest import Machine
from tests.storage.objects_by_hand import delete, get, names, put
from tests.store.building import LAYERS, computed, fill, header, samples, stored
from tests.store.conformance import FormatSuite


class StoreSuite(FormatSuite):
    """What every store must do, at a URL; what a single file must do is no matter of the place."""

    name: ClassVar[str] = "hdf5"
    test_a_shard_gives_back_what_it_got: ClassVar[Any] = None
    test_awkward_layer_names: ClassVar[Any] = None
    test_very_wide_rows: ClassVar[Any] = None
    test_equal_input_gives_equal_bytes: ClassVar[Any] = None
    test_a_layer_that_is_not_there: ClassVar[Any] = None
    test_a_file_that_ends_early: ClassVar[Any] = None
    test_a_missing_or_cut_shard_is_redone_alone: ClassVar[Any] = None  # objects are cut below, not files


class TestInMemory(StoreSuite):
    @pytest.fixture
    def tmp_path(self, tmp_path: Path, machine: Machine) -> Storage:
        return open_storage(f"memory://{tmp_path.as_posix().strip('/')}/store")


@pytest.mark.slow
class TestOnS3(StoreSuite):
    @pytest.fixture
    def tmp_path(self, bucket: str, machine: Machine) -> Storage:
        return open_storage(f"{bucket}/some/folder")


@pytest.fixture
def url(bucket: str, machine: Machine) -> str:
    return f"{bucket}/features/toy"


@pytest.fixture
def digest(tmp_path: Path) -> str:
    """Return the content digest of the same store in a folder."""
    return fill(tmp_path / "local", header()).content_digest


def test_another_machine_reads_it(url: str, s3: str, machine: Machine, digest: str) -> None:
    assert fill(url, header()).content_digest == digest
    there = names(s3, url)
    assert [name for name in there if not name.startswith("0")] == [
        "manifest.json",
        "rejected.csv",
        "samples.parquet",
        "store.json",
    ]
    assert len(there) == 10
    machine("second")
    store = FeatureStore.open(url)
    assert store.content_digest == digest
    assert not list(store.root.here.glob("*.h5"))
    for layer in LAYERS:
        np.testing.assert_array_equal(store.numpy(layer), stored(layer))
    assert len(list(store.root.here.glob("*.h5"))) == 3
    assert verify(store.root, deep=True) == []


def test_only_the_files_of_a_layer_are_brought(url: str, machine: Machine) -> None:
    fill(url, header(), ["output"])
    fill(url, header())
    machine("second")
    store = FeatureStore.open(url)
    np.testing.assert_array_equal(np.concatenate(store.memmaps("output")), stored("output"))
    wanted = {shard.name for shard in store.manifest.shards if shard.layer("output")}
    assert {path.name for path in store.root.here.glob("*.h5")} == wanted
    assert len(wanted) == 3 < len(store.manifest.shards)


def test_the_remote_store_is_looked_at_on_each_open(url: str, machine: Machine) -> None:
    first = machine("first")
    fill(url, header(), ["output"])
    assert [layer.name for layer in FeatureStore.open(url).layers] == ["output"]
    machine("second")
    fill(url, header())
    assert machine("first") == first
    assert [layer.name for layer in FeatureStore.open(url).layers] == list(LAYERS)


def test_a_store_that_is_gone_is_not_read_from_the_cache(url: str, s3: str, machine: Machine) -> None:
    fill(url, header())
    for name in names(s3, url):
        delete(s3, f"{url}/{name}")
    with pytest.raises(UserError, match=r"expected a feature store, found a folder without store.json"):
        FeatureStore.open(url)


def test_a_store_of_another_key_in_its_place_is_what_is_read(url: str, s3: str, machine: Machine) -> None:
    machine("first")
    fill(url, header())
    FeatureStore.open(url).numpy("output")
    for name in names(s3, url):
        delete(s3, f"{url}/{name}")
    machine("second")
    fill(url, header(dtype="float32"))
    machine("first")
    np.testing.assert_array_equal(FeatureStore.open(url).numpy("output"), stored("output", dtype="float32"))


@pytest.mark.parametrize("cached", [True, False])
def test_a_changed_byte_is_named(url: str, s3: str, machine: Machine, cached: bool) -> None:
    manifest = fill(url, header())
    name = manifest.shards[1].name
    data = bytearray(get(s3, f"{url}/{name}"))
    data[len(data) // 2] ^= 1
    put(s3, f"{url}/{name}", bytes(data))
    if not cached:
        machine("second")
        with pytest.raises(DamagedStoreError, match=rf"^{url}: expected {name} with sha256 .*, found sha256"):
            FeatureStore.open(url).numpy("output")
    problems = verify(url, deep=True)
    assert [problem.file for problem in problems] == [name]
    assert name in problems[0].sentence


def test_a_cut_or_missing_object_is_redone_alone(url: str, s3: str, machine: Machine, digest: str) -> None:
    manifest = fill(url, header())
    cut, gone = manifest.shards[0].name, manifest.shards[2].name
    whole = get(s3, f"{url}/{cut}")
    put(s3, f"{url}/{cut}", whole[:-1])
    delete(s3, f"{url}/{gone}")
    machine("second")
    with pytest.raises(DamagedStoreError, match=rf"{cut} with {len(whole)} bytes, found {len(whole) - 1} bytes"):
        FeatureStore.open(url)
    writer = StoreWriter(url, header())
    assert [shard.index for shard in writer.pending(LAYERS)] == [0, 2]
    assert fill(url, header()).content_digest == digest
    assert get(s3, f"{url}/{cut}") == whole


def test_a_changed_manifest_is_named(url: str, s3: str, machine: Machine) -> None:
    fill(url, header())
    put(s3, f"{url}/manifest.json", get(s3, f"{url}/manifest.json").replace(b"toy", b"boy"))
    with pytest.raises(DamagedStoreError, match=r"manifest.json with the digest that it carries, found other bytes"):
        FeatureStore.open(url)


def test_another_machine_goes_on(url: str, machine: Machine, digest: str) -> None:
    writer = StoreWriter(url, header())
    first = writer.pending(LAYERS)[0]
    writer.commit(first, *computed(first))
    machine("second")
    with pytest.raises(UnfinishedStoreError, match="1 of 3 shards"):
        FeatureStore.open(url)
    assert [shard.state for shard in status(url)] == ["done", "missing", "missing"]
    other = StoreWriter(url, header())
    assert [shard.index for shard in other.pending(LAYERS)] == [1, 2]
    assert fill(url, header()).content_digest == digest


def test_two_that_finish_at_once_agree(url: str, machine: Machine, digest: str, monkeypatch: Any) -> None:
    """The second writes its manifest while the first is about to: the first looks again and keeps that one."""
    machine("first")
    writer = StoreWriter(url, header())
    for shard in writer.work(LAYERS):
        writer.commit(shard, *computed(shard))
    original = ObjectStorage.put_over
    there: list[str] = []

    def overtaken(self: ObjectStorage, name: str, data: bytes, seen: Stored | None) -> bool:
        if not there:
            there.append(name)  # the second machine writes its own without this
            machine("second")
            fill(url, header())
            machine("first")
        return original(self, name, data, seen)

    monkeypatch.setattr(ObjectStorage, "put_over", overtaken)
    manifest = writer.finish(samples(), {"spec": "slower"})
    assert manifest.content_digest == digest
    assert manifest.provenance["spec"] == "toy"  # the content is the same: what was there first stays
    machine("second")
    assert FeatureStore.open(url).manifest == manifest


def test_two_headers_agree_on_the_first(url: str, machine: Machine) -> None:
    first = StoreWriter(url, header(shard_rows=10))
    machine("second")
    second = StoreWriter(url, header(shard_rows=4))
    assert second.header == first.header


def test_what_is_in_a_store_is_said_of_a_url(url: str, tmp_path: Path, machine: Machine) -> None:
    manifest = fill(url, header())
    machine("second")
    found = ls(url)
    assert found["path"] == url
    assert found["bytes"] == manifest.bytes
    fill(tmp_path / "here", header())
    assert diff(url, tmp_path / "here") == []
    assert du(url) == du(tmp_path / "here") | {"total": du(url)["total"], "tables": du(url)["tables"]}
    with pytest.raises(UserError, match=rf"^{url}: expected a folder to clean, found a URL; remove objects with"):
        gc(url)


def test_a_store_is_replaced_and_nothing_else(url: str, s3: str, machine: Machine) -> None:
    fill(url, header())
    fill(f"{url}/classes", header())
    for name in ("notes.txt", "other/manifest.json"):
        put(s3, f"{url}/{name}", b"not ours")
    machine("second")
    put(s3, f"{url}/.00001.lease", b"{}")
    with pytest.raises(UserError, match=r"expected a store that nobody writes, found the lease .00001.lease"):
        replace_store(url)
    delete(s3, f"{url}/.00001.lease")
    assert replace_store(url)
    assert names(s3, url) == ["notes.txt", "other/manifest.json"]
    assert fill(url, header(dtype="float32")).header.key.storage_dtype == "float32"


def test_without_a_network_the_cache_is_read_if_that_is_wanted(
    url: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(url, header(), ["output"])
    machine("second")
    FeatureStore.open(url).numpy("output")
    monkeypatch.setenv("FEWPAIRS_OFFLINE", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    np.testing.assert_array_equal(FeatureStore.open(url).numpy("output"), stored("output"))
    with pytest.raises(UserError, match="expected a network to write this to, found FEWPAIRS_OFFLINE"):
        fill(url, header())
