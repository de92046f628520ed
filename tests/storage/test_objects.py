"""Requests below a URL: conditions, names that could do harm, stores that know no conditions."""

import hashlib
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.storage.contract import Content
from pipeline.storage.local import open_storage
from pipeline.storage.requests import Requests
from tests.storage.conftest import Machine
from tests.storage.objects_by_hand import get, names, put


@pytest.fixture(params=["memory", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Requests:
    return Requests(f"{request.getfixturevalue('bucket') if request.param == 's3' else f'memory:/{tmp_path}'}/folder")


class NoConditions:
    """fsspec's file system in memory, as a store that knows no conditional requests."""

    def __getattr__(self, name: str) -> Any:
        return getattr(fsspec.filesystem("memory"), name)

    def pipe_file(self, path: str, data: bytes, mode: str = "overwrite") -> None:
        if mode == "create":
            raise NotImplementedError
        fsspec.filesystem("memory").pipe_file(path, data)


def check_conditions(objects: Requests) -> None:
    assert objects.list() == {}
    assert objects.read("a") is None
    assert objects.create("a", b"one")
    assert objects.create("a", b"one"), "its own bytes: an answer that was lost"
    assert not objects.create("a", b"two")
    first = objects.stat("a")
    assert first is not None
    assert first == objects.list()["a"]
    assert objects.replace("a", b"three", first.token)
    assert not objects.replace("a", b"four", first.token)
    assert objects.read("a") == b"three"
    objects.remove(["a", "a"])
    assert objects.stat("a") is None
    assert not objects.replace("a", b"five", first.token)
    assert objects.read("a") is None


def test_conditions(objects: Requests) -> None:
    check_conditions(objects)


def test_a_store_without_conditions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.requests.filesystem", lambda protocol: NoConditions())
    check_conditions(Requests(f"memory:/{tmp_path}/folder"))


def test_names_that_leave_the_folder_are_not_listed(bucket: str, s3: str, machine: Machine, tmp_path: Path) -> None:
    for name in ("../out", "a/../../out", "b\\c", "fine/x", "a//b"):
        put(s3, f"{bucket}/folder/{name}", b"x")
    assert len(names(s3, f"{bucket}/folder")) == 5
    assert list(Requests(f"{bucket}/folder").list()) == ["fine/x"]
    storage = open_storage(f"{bucket}/folder")
    for look in (lambda: None, storage.list):
        look()
        storage.fetch(["../out"])
        with pytest.raises(FileNotFoundError, match="out"):
            storage.file("../out")
    assert not list((tmp_path / "caches").rglob("out"))


def test_a_large_file_goes_in_parts(bucket: str, s3: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(f"{bucket}/folder")
    data = bytes(range(256)) * (11 * 4096)
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, chunksize=None: 5 * 2**20)
    with storage.temporary("large") as temp:
        temp.write_bytes(data)
        storage.publish(temp, "large", Content(hashlib.sha256(data).hexdigest(), len(data)))
    assert get(s3, f"{bucket}/folder/large") == data
    there = storage.list()["large"]
    assert there.size == len(data)
    assert "-" in there.token, "an ETag of parts"
