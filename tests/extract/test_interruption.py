"""Killed anywhere, the next run computes only what is missing and ends with the same bytes; two runs share the work."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import KeyMismatchError, UserError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.store.reader import FeatureStore
from pipeline.store.writer import StoreWriter
from tests.conftest import ROOT
from tests.extract.building import IMAGE, write_raw

FORMATS = ("hdf5", "parquet")
ENVIRONMENT = {**os.environ, "TINY_SLEEP": "0.02", "OMP_NUM_THREADS": "1"}


def kill(tmp_path: Path, kind: str, seed: int, kills: int) -> None:
    raw, out = write_raw(tmp_path / "raw", images=32, captions=0), tmp_path / "out"
    command = [sys.executable, "-m", "tests.extract.killing", str(raw), str(out), kind, str(seed), str(kills)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole, *killed = map(json.loads, done.stdout.splitlines())
    assert sum(line["kills"] for line in killed) == kills
    for line in killed:
        assert line["status"] == 0, f"{line}\n{done.stderr}"
        assert line["digest"] == whole["digest"]
        assert line["computed"] == 8 - line["before"]
        assert line["after"] == 8
    assert any(0 < line["before"] < 8 for line in killed), "some were killed in the middle"
    store = FeatureStore.open(out)
    assert store.content_digest == whole["digest"]
    assert not list(out.glob(".*.tmp")), "what dead writers left is swept"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_killed_run_is_gone_on_with(tmp_path: Path, kind: str) -> None:
    kill(tmp_path, kind, seed=1, kills=8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
def test_two_hundred_kills(tmp_path: Path, kind: str) -> None:
    kill(tmp_path, kind, seed=2, kills=200)


RUN = """
import sys
from pathlib import Path
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
raw, out, encoder = sys.argv[1:]
config = ExtractConfig(dataset=Path(raw), encoder=encoder, out=Path(out), shard_rows=2, batch_size=2)
sys.stdout.write(f"{extract(config).computed_shards}")
"""


def test_two_runs_on_one_store_neither_lose_nor_double_a_shard(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", images=40, captions=0)
    command = [sys.executable, "-c", RUN, str(raw), str(tmp_path / "out"), IMAGE]
    runs = [
        subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [run.communicate(timeout=300) for run in runs]
    assert all(run.returncode == 0 for run in runs), answers
    assert sum(int(out) for out, _ in answers) == 20
    alone = extract(ExtractConfig(dataset=raw, encoder=IMAGE, out=tmp_path / "alone"))
    assert FeatureStore.open(tmp_path / "out").content_digest == alone.content_digest


def test_what_failed_without_a_row_blocks_no_other_try(tmp_path: Path) -> None:
    """All pictures are broken; they are mended and asked for in another number format, into the same folder."""
    raw, out = write_raw(tmp_path / "raw", images=8, captions=0), tmp_path / "out"
    config = ExtractConfig(dataset=raw, encoder=IMAGE, out=out, shard_rows=4)
    whole = {path: path.read_bytes() for path in (raw / "images").iterdir()}
    for path in whole:
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match=r"at most 5.0% broken images, found \d of 8"):
        extract(config)
    for path, data in whole.items():
        path.write_bytes(data)
    mended = dataclasses.replace(config, storage_dtype="fp16")
    assert extract(mended).rows == 8
    assert FeatureStore.open(out).key.storage_dtype == "float16"
    with pytest.raises(KeyMismatchError, match="start over with --replace"):
        extract(config)  # this one has rows


def test_a_store_with_a_row_is_kept_from_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, out = write_raw(tmp_path / "raw", images=8, captions=0), tmp_path / "out"
    config = ExtractConfig(dataset=raw, encoder=IMAGE, out=out, shard_rows=4)
    finish = StoreWriter.finish

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StoreWriter, "finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
        extract(config)
    monkeypatch.setattr(StoreWriter, "finish", finish)
    with pytest.raises(KeyMismatchError, match="start over with --replace"):
        extract(dataclasses.replace(config, storage_dtype="fp16"))
    assert extract(config).computed_shards == 0
