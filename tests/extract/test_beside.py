"""Several extractions on one store, and disks that fail in the middle of one: nothing lost, doubled or half there."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.storage.local import LocalStorage
from pipeline.store.inspect import verify
from pipeline.store.reader import FeatureStore
from tests.conftest import ROOT
from tests.extract.building import IMAGE, write_raw

FORMATS = ("hdf5", "parquet")


def script(mode: str, raw: Path, out: Path, kind: str, number: int, sleep: float = 0.0) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.extract.beside", mode, str(raw), str(out), kind, str(number)]
    environment = {**os.environ, "TINY_SLEEP": str(sleep), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def config(raw: Path, out: Path, kind: str = "hdf5") -> ExtractConfig:
    return ExtractConfig(dataset=raw, encoder=IMAGE, out=out, shard_rows=4, batch_size=2, workers=1, format=kind)


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if path.name != ".events")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("count", [2, 4])
def test_runs_beside_each_other(tmp_path: Path, kind: str, count: int) -> None:
    raw = write_raw(tmp_path / "raw", images=48, captions=0)
    answers = script("beside", raw, tmp_path / "out", kind, count, sleep=0.02)
    assert len(answers) == count
    assert sorted(index for answer in answers for index in answer["committed"]) == list(range(12)), "each once"
    assert sum(answer["computed"] for answer in answers) == 12
    assert all(answer["computed"] > 0 for answer in answers), "the work was shared"
    alone = extract(config(raw, tmp_path / "alone", kind))
    assert verify(tmp_path / "out", deep=True) == []
    assert names(tmp_path / "out") == names(tmp_path / "alone")
    store, whole = FeatureStore.open(tmp_path / "out"), FeatureStore.open(tmp_path / "alone")
    assert (store.ids, store.rows) == (whole.ids, 48)
    assert [file.sha256 for file in store.manifest.shards] == [file.sha256 for file in whole.manifest.shards]
    assert [layer.digest for layer in store.layers] == [layer.digest for layer in whole.layers]
    assert {answer["digest"] for answer in answers} == {alone.content_digest}


@pytest.mark.parametrize("kind", FORMATS)
def test_no_room_in_the_middle(tmp_path: Path, kind: str) -> None:
    raw = write_raw(tmp_path / "raw", images=24, captions=0)
    stopped, rerun = script("room", raw, tmp_path / "out", kind, 0)
    assert stopped["code"] == 1
    assert "expected to write 0" in stopped["error"]
    assert "found File too large" in stopped["error"]
    assert "what is committed stays" in stopped["error"]
    before = stopped["committed"]
    assert 0 < len(before) < 6
    assert "manifest.json" not in stopped["left"]
    assert len(stopped["left"]) == 1 + 2 * len(before), "header, shards and records, and nothing of the next"
    assert sorted(before + rerun["committed"]) == list(range(6)), "only what was missing is computed"
    assert rerun["digest"] == extract(config(raw, tmp_path / "whole")).content_digest
    assert verify(tmp_path / "out", deep=True) == []


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("number", [errno.EBADF, errno.ESTALE, errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, number: int
) -> None:
    raw = write_raw(tmp_path / "raw", images=24, captions=0)
    sync, synced = os.fsync, list[int]()

    def failing(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 11:  # four a commit: in the middle of the third
            if number != errno.EBADF:
                raise OSError(number, os.strerror(number))
            os.close(os.dup(descriptor))
            sync(10**6)  # the handle is lost: the system says so itself
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.files.os.fsync", failing)
        with pytest.raises(
            PipelineError, match=rf"expected to write 00002-.*, found {os.strerror(number)}; .* run again"
        ):
            extract(config(raw, tmp_path / "out", kind))
    left = names(tmp_path / "out")
    assert len([name for name in left if name.startswith("0") and name.endswith(".json")]) == 2
    assert not [name for name in left if name.startswith(".")]
    again = extract(config(raw, tmp_path / "out", kind))
    assert (again.computed_shards, again.skipped_shards) == (4, 2)
    assert again.content_digest == extract(config(raw, tmp_path / "whole")).content_digest
    assert verify(tmp_path / "out", deep=True) == []


@pytest.mark.parametrize("name", ["store.json", "samples.parquet", "rejected.csv", "manifest.json"])
def test_no_room_for_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    raw = write_raw(tmp_path / "raw", images=8, captions=0)
    put, put_new = LocalStorage.put, LocalStorage.put_new

    def full(self: LocalStorage, file: str, data: bytes) -> None:
        if file == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(self, file, data)

    def full_too(self: LocalStorage, file: str, data: bytes) -> bool:
        if file == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return put_new(self, file, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "put", full)
        patch.setattr(LocalStorage, "put_new", full_too)
        with pytest.raises(PipelineError, match=r"No space left on device; .* GB are free; make room"):
            extract(config(raw, tmp_path / "out"))
    assert not (tmp_path / "out" / "manifest.json").exists()
    again = extract(config(raw, tmp_path / "out"))
    assert again.computed_shards == (2 if name == "store.json" else 0)
    assert verify(tmp_path / "out", deep=True) == []
