"""Any flipped byte anywhere is found by a deep check, and never read as if it were sound."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DamagedStoreError, PipelineError, UserError
from pipeline.store.inspect import verify
from pipeline.store.reader import FeatureStore
from tests.store.building import LAYERS, fill, header, samples, stored

FILES = ["shard", "record", "samples.parquet", "rejected.csv", "manifest.json", "store.json"]


def victim(store: Path, kind: str, file_format: str) -> Path:
    suffix = {"shard": {"hdf5": ".h5", "parquet": ".parquet"}[file_format], "record": ".json"}.get(kind)
    return sorted(store.glob(f"00001-*{suffix}"))[0] if suffix else store / kind


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x41
    path.write_bytes(data)


def read_all(store: Path) -> None:
    """Read everything; what is read must be what was stored."""
    opened = FeatureStore.open(store)
    assert opened.samples == samples().take(item for item in range(23) if item != 11)
    for name in LAYERS:
        np.testing.assert_array_equal(opened.numpy(name), stored(name))
        np.testing.assert_array_equal(np.concatenate(FeatureStore.open(store).memmaps(name)), stored(name))


@pytest.mark.parametrize("file_format", ["hdf5", "parquet"])
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("places", [20, pytest.param(2000, marks=pytest.mark.slow)])
def test_flipped_bytes(tmp_path: Path, kind: str, file_format: str, places: int) -> None:
    store = tmp_path / "store"
    fill(store, header(file_format))
    assert verify(store, deep=True) == []
    path = victim(store, kind, file_format)
    size = path.stat().st_size
    seen = set()
    for place in [*range(0, size, max(1, size // places)), size - 1]:
        flip(path, place)
        problems = verify(store, deep=True)
        assert path.name in {problem.file for problem in problems}, place
        try:
            read_all(store)
        except UserError as error:
            seen.add(type(error))
        flip(path, place)
    assert verify(store, deep=True) == []
    assert seen <= {DamagedStoreError}
    if kind not in ("record", "rejected.csv"):
        assert seen == {DamagedStoreError}


@pytest.mark.parametrize("file_format", ["hdf5", "parquet"])
def test_a_flipped_value_is_never_read(tmp_path: Path, file_format: str) -> None:
    fill(tmp_path, header(file_format))
    path = victim(tmp_path, "shard", file_format)
    place = path.read_bytes().index(stored("a/b")[10:12].tobytes())
    flip(path, place + 3)
    assert verify(tmp_path) == []
    assert [problem.file for problem in verify(tmp_path, deep=True)] == [path.name]
    store = FeatureStore.open(tmp_path)
    for read in (store.numpy, store.read, store.memmaps, lambda name: next(store.batches(name, 4, shuffle=True))):
        with pytest.raises(DamagedStoreError, match=rf"{path.name} with layer a/b .*found xxh3"):
            read("a/b")
    np.testing.assert_array_equal(store.numpy("output"), stored("output"))


@pytest.mark.parametrize("kind", FILES)
def test_the_cheap_check_finds_missing_and_cut_files(tmp_path: Path, kind: str) -> None:
    if kind in ("samples.parquet", "rejected.csv"):
        pytest.skip("side tables are read by the deep check and by open")
    store = tmp_path / "store"
    fill(store, header())
    path = victim(store, kind, "hdf5")
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    assert [problem.file for problem in verify(store)] == [path.name]
    path.unlink()
    if kind == "manifest.json":
        with pytest.raises(PipelineError, match="3 of 3 shards"):
            verify(store)
    else:
        assert [problem.file for problem in verify(store)] == [path.name]


def test_shards_of_another_store_are_found(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    fill(one, header())
    fill(two, header(dtype="float32"))
    for path in two.glob("00000-*"):
        shutil.copy(path, one / path.name)
    assert verify(one) != []
    with pytest.raises(DamagedStoreError, match=r"00000-.*\.h5 with "):
        read_all(one)


def test_a_damaged_class_store_is_named(tmp_path: Path) -> None:
    fill(tmp_path, header())
    fill(tmp_path / "classes", header())
    assert verify(tmp_path, deep=True) == []
    path = victim(tmp_path / "classes", "shard", "hdf5")
    flip(path, 0)
    assert [problem.file for problem in verify(tmp_path, deep=True)] == [f"classes/{path.name}"]
    (tmp_path / "classes" / "manifest.json").unlink()
    assert [problem.file for problem in verify(tmp_path)] == ["classes/manifest.json"]
