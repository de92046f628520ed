"""Weights in parts: checked parts become one folder, once; nothing leaves it."""

import io
import zipfile
from pathlib import Path

import pytest

from pipeline.encoders import packages
from pipeline.encoders.packages import Package, PackagedFile
from pipeline.errors import UserError


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as pack:
        for name, content in members.items():
            pack.writestr(name, content)
    return buffer.getvalue()


def in_parts(folder: Path, content: bytes, count: int = 3) -> Package:
    """Return a package whose archive lies in a folder, in parts."""
    size = -(-len(content) // count)
    for number in range(count):
        (folder / f"part.{number}").write_bytes(content[number * size : (number + 1) * size])
    sha256 = "ab" * 32
    parts = tuple(PackagedFile(distribution="d==1", file=f"part.{number}", sha256=sha256) for number in range(count))
    return Package(distribution="d==1", file="a", sha256=sha256, licence="", architecture="", parts=parts)


@pytest.fixture(autouse=True)
def _parts_lie_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_installed", lambda name, part, install: tmp_path / part.file)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fewpairs"


def test_parts_become_one_folder_once(tmp_path: Path, cache: Path) -> None:
    weights = bytes(range(256)) * 99
    package = in_parts(tmp_path, archive({"name/model.bin": weights, "name/1_Pooling/config.json": b"{}"}))
    place = packages._unpacked("name", package)
    assert place == cache / "name-abababababab"
    assert (place / "model.bin").read_bytes() == weights
    assert (place / "1_Pooling" / "config.json").read_bytes() == b"{}"
    assert [path.name for path in cache.iterdir()] == [place.name]  # nothing temporary is left
    for number in range(3):
        (tmp_path / f"part.{number}").unlink()
    assert packages._unpacked("name", package) == place


def test_a_faster_process_wins(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = in_parts(tmp_path, archive({"name/a": b"1", "name/b": b"2"}))

    def while_another_finishes(name: str, part: PackagedFile, install: str) -> Path:
        (cache / "name-abababababab").mkdir(parents=True, exist_ok=True)
        (cache / "name-abababababab" / "theirs").touch()
        return tmp_path / part.file

    monkeypatch.setattr(packages, "_installed", while_another_finishes)
    place = packages._unpacked("name", package)
    assert [path.name for path in place.iterdir()] == ["theirs"]


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "a\\..\\outside"])
def test_a_path_that_leaves_the_folder_is_refused(name: str, tmp_path: Path, cache: Path) -> None:
    package = in_parts(tmp_path, archive({"name/a": b"1", name: b"2"}))
    with pytest.raises(UserError, match="expected paths inside the archive, found"):
        packages._unpacked("name", package)
    assert not list(tmp_path.rglob("outside"))
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    package = in_parts(tmp_path, archive({"name/a": b"1"}))
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        packages._unpacked("name", package)
