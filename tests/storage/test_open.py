"""Where a text or a path becomes a storage."""

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.storage.local import LocalStorage, open_recorded, open_storage
from pipeline.storage.requests import is_inside
from tests.storage.conftest import Machine


def test_folders_and_urls(machine: Machine, tmp_path: Path) -> None:
    root = open_storage("s3://bucket/a/b/")
    assert root == open_storage("s3://bucket/a/b")
    assert root.here.parent.stat().st_mode & 0o777 == 0o700
    assert str(root / "x" / "y") == "s3://bucket/a/b/x/y"
    assert root / "x" == open_storage("s3://bucket/a/b/x")
    assert (root.name, (root / "x").name) == ("b", "x")
    assert str(open_storage(tmp_path)) == str(open_storage(str(tmp_path))) == str(tmp_path)
    assert open_storage(tmp_path).name == tmp_path.name
    assert open_storage(Path()).name == Path().resolve().name
    assert open_storage(tmp_path / "x") == open_storage(tmp_path) / "x"
    local = open_storage(f"file://{tmp_path}")
    assert isinstance(local, LocalStorage)
    assert local == open_storage(tmp_path)


def test_what_a_record_may_name(machine: Machine) -> None:
    assert open_recorded("http://somewhere/raw") is None
    assert open_recorded("file:///etc") is None
    assert open_recorded("s3://bucket/a/b") == open_storage("s3://bucket/a/b")


def test_two_addresses_share_no_cache(machine: Machine) -> None:
    assert open_storage("s3://bucket/a").here != open_storage("s3://bucket/b").here


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "://x", "s3://b/../x", "s3://b//x", "simplecache::s3://b/x"])
def test_what_is_no_url_of_a_folder(url: str, machine: Machine) -> None:
    with pytest.raises(UserError, match="expected the URL of a folder, such as s3://bucket/features/flickr8k/vit"):
        open_storage(url)


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", ".", "..", "a/..", "a\\b", "a\0"])
def test_what_is_not_inside(name: str) -> None:
    assert not is_inside(name)
    assert is_inside("a/b.c/.d")
