"""Objects below a URL: conditions, names that could do harm, stores that know no conditions."""

from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.errors import UserError
from pipeline.remote.binding import address, addressed, bind, bind_recorded, bound, name_of
from pipeline.remote.mirror import mirror_of
from pipeline.remote.objects import Objects, is_inside
from tests.remote.conftest import Machine
from tests.remote.objects_by_hand import get, names, put


@pytest.fixture(params=["memory", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    return Objects(f"{request.getfixturevalue('bucket') if request.param == 's3' else f'memory:/{tmp_path}'}/folder")


class NoConditions:
    """fsspec's file system in memory, as a store that knows no conditional requests."""

    def __getattr__(self, name: str) -> Any:
        return getattr(fsspec.filesystem("memory"), name)

    def pipe_file(self, path: str, data: bytes, mode: str = "overwrite") -> None:
        if mode == "create":
            raise NotImplementedError
        fsspec.filesystem("memory").pipe_file(path, data)


def check_conditions(objects: Objects) -> None:
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


def test_conditions(objects: Objects) -> None:
    check_conditions(objects)


def test_a_store_without_conditions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.remote.objects.filesystem", lambda protocol: NoConditions())
    check_conditions(Objects(f"memory:/{tmp_path}/folder"))


def test_names_that_leave_the_folder_are_not_listed(bucket: str, s3: str, machine: Machine, tmp_path: Path) -> None:
    for name in ("../out", "a/../../out", "b\\c", "fine/x", "a//b"):
        put(s3, f"{bucket}/folder/{name}", b"x")
    assert len(names(s3, f"{bucket}/folder")) == 5
    assert list(Objects(f"{bucket}/folder").list()) == ["fine/x"]
    mirror = mirror_of(bind(f"{bucket}/folder"))
    assert mirror is not None
    mirror.bring("../out")
    assert not list((tmp_path / "caches").rglob("out"))


def test_a_large_file_goes_in_parts(bucket: str, s3: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bind(f"{bucket}/folder")
    data = bytes(range(256)) * (11 * 4096)
    (folder / "large").write_bytes(data)
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, chunksize=None: 5 * 2**20)
    mirror = mirror_of(folder)
    assert mirror is not None
    mirror.upload("large")
    assert get(s3, f"{bucket}/folder/large") == data
    assert mirror.size("large") == len(data)
    assert "-" in mirror.seen()["large"].token, "an ETag of parts"


def test_paths_and_urls(machine: Machine, tmp_path: Path) -> None:
    root = bind("s3://bucket/a/b/")
    assert root == bind("s3://bucket/a/b")
    assert root.parent.stat().st_mode & 0o777 == 0o700
    assert bound(root / "x" / "y") == (root, "x/y")
    assert address(root / "x") == "s3://bucket/a/b/x"
    assert address(tmp_path) == str(tmp_path)
    assert (name_of(root), name_of(tmp_path)) == ("b", tmp_path.name)
    assert addressed(f"{root}/x: expected {tmp_path}") == f"s3://bucket/a/b/x: expected {tmp_path}"
    assert bind(f"file://{tmp_path}") == tmp_path
    assert bind_recorded("http://somewhere/raw") is None
    assert bind_recorded("s3://bucket/a/b") == root


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "://x", "s3://b/../x", "s3://b//x", "simplecache::s3://b/x"])
def test_what_is_no_url_of_a_folder(url: str, machine: Machine) -> None:
    with pytest.raises(UserError, match="expected the URL of a folder, such as s3://bucket/features/flickr8k/vit"):
        bind(url)


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", ".", "..", "a/..", "a\\b", "a\0"])
def test_what_is_not_inside(name: str) -> None:
    assert not is_inside(name)
    assert is_inside("a/b.c/.d")
