"""Killed anywhere, a store is whole or unfinished, never wrong; so too without room and with many writers at once."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.store.inspect import verify
from pipeline.store.reader import FeatureStore
from tests.store.building import ITEMS, LAYERS, fill, header, stored

ROOT = Path(__file__).resolve().parents[2]
FORMATS = ["hdf5", "parquet"]


def start(*arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.store.processes", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines(process: "subprocess.Popen[str]") -> list[dict[str, Any]]:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the content digest of a store that nobody disturbed."""
    return fill(tmp_path_factory.mktemp("whole") / "store", header()).content_digest


@pytest.fixture
def quick() -> Iterator[Path]:
    """Return a folder in memory where there is one: hundreds of fsyncs cost nothing there."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("rows", [ITEMS, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_every_step(quick: Path, file_format: str, rows: int, whole: str) -> None:
    deaths = lines(start("steps", quick / "store", file_format, rows))
    steps = {death["step"] for death in deaths}
    assert steps >= {
        "retire",
        "write_shard",
        "verify_shard",
        "temp_file",
        "write_bytes",
        "sync_file",
        "publish",
        "finish",
    }
    assert len(deaths) > 40
    everything = sorted((index, name) for index in range(-(-ITEMS // rows)) for name in LAYERS)
    for death in deaths:
        assert death["ended"] == 9, death
        result = death["result"]
        assert isinstance(result, dict), death
        assert result["digest"] == whole, death
        assert result["values"] == [stored(name).tobytes().hex() for name in LAYERS]
        assert result["left"] == [], death
        assert sorted(map(tuple, result["done"] + result["redone"])) == everything, death


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("times", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path: Path, file_format: str, times: int, whole: str) -> None:
    kills, end = lines(start("moments", tmp_path / "store", file_format, times))
    assert kills == {"killed": times}
    assert end == {"digest": whole, "left": []}
    assert verify(tmp_path / "store", deep=True) == []


@pytest.mark.parametrize("file_format", FORMATS)
def test_no_room_on_the_disk(tmp_path: Path, file_format: str) -> None:
    error, rest = lines(start("room", tmp_path / "store", file_format))
    assert error["code"] == 1
    assert "expected to write 00001-" in error["sentence"]
    assert "found File too large; " in error["sentence"]
    assert "GB are free; make room" in error["sentence"]
    assert "\n" not in error["sentence"]
    assert rest["left"] == ["store.json"]


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("count", [2, 4])
def test_processes_beside_each_other(tmp_path: Path, file_format: str, count: int, whole: str) -> None:
    running = [start("beside", tmp_path / "store", file_format) for _ in range(count)]
    outputs = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0] * count, outputs
    results = [json.loads(out) for out, _ in outputs]
    shards = sorted(index for result in results for index in result["mine"])
    assert shards == list(range(-(-ITEMS // 2)))
    assert {result["digest"] for result in results} == {whole}
    assert verify(tmp_path / "store", deep=True) == []
    assert FeatureStore.open(tmp_path / "store").content_digest == whole
    assert list((tmp_path / "store").glob(".*")) == []
