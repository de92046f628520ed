"""Many workers on one store: the same content as one gives, whoever dies; what is seen of them meanwhile."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.progress import Update
from pipeline.store.events import read_events, summary
from pipeline.store.inspect import verify
from pipeline.store.reader import FeatureStore
from tests.conftest import ROOT
from tests.extract.building import IMAGE, write_raw

FORMATS = ("hdf5", "parquet")


def script(
    mode: str, raw: Path, out: Path, kind: str, number: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what the workers said, by index, and what the script said besides."""
    command = [sys.executable, "-m", "tests.extract.workers", mode, str(raw), str(out), kind, str(number)]
    environment = {**os.environ, "TINY_SLEEP": "0.01", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    workers = sorted((line for line in lines if "digest" in line), key=lambda line: int(line["index"]))
    return workers, [line for line in lines if "digest" not in line]


def alone(raw: Path, out: Path, kind: str) -> str:
    encoder = "tests.extract.beside:Filling"
    config = ExtractConfig(dataset=raw, encoder=encoder, out=out, shard_rows=4, batch_size=2, workers=1, format=kind)
    return extract(config).content_digest


def files(out: Path) -> dict[str, str]:
    return {file.name: file.sha256 for file in FeatureStore.open(out).manifest.shards}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("number", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_one_and_many_give_the_same(tmp_path: Path, kind: str, number: int) -> None:
    raw = write_raw(tmp_path / "raw", images=16 * number, captions=0)
    workers, _ = script("together", raw, tmp_path / "out", kind, number)
    assert [worker["index"] for worker in workers] == list(range(number))
    assert {worker["digest"] for worker in workers} == {alone(raw, tmp_path / "alone", kind)}
    assert files(tmp_path / "out") == files(tmp_path / "alone")
    assert sorted(shard for worker in workers for shard in worker["shards"]) == list(range(4 * number)), "each once"
    for worker in workers:
        assert worker["shards"][0] == 4 * worker["index"], "each begins with its own"
    assert verify(tmp_path / "out", deep=True) == []
    assert not [path.name for path in (tmp_path / "out").glob(".*") if path.name != ".events"]


@pytest.mark.parametrize("kind", [FORMATS[0], pytest.param(FORMATS[1], marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", ["killed", "elsewhere"])
@pytest.mark.parametrize("number", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_the_others_take_over_what_a_killed_worker_held(tmp_path: Path, kind: str, mode: str, number: int) -> None:
    raw, out = write_raw(tmp_path / "raw", images=32, captions=0), tmp_path / "out"
    workers, (death,) = script(mode, raw, out, kind, number)
    assert death["killed"], "in the middle of a shard"
    assert len(death["leases"]) > 0
    assert bool(death["held"]) == (mode == "elsewhere"), "this machine's kernel knows, others have to wait"
    assert len(workers) == number - 1
    assert {worker["digest"] for worker in workers} == {alone(raw, tmp_path / "alone", kind)}
    assert files(out) == files(tmp_path / "alone")
    assert verify(out, deep=True) == []
    assert sorted(event["shard"] for event in read_events(out) if event["event"] == "committed") == list(range(8))
    assert not list(out.glob(".*.lease"))


def test_a_killed_worker_that_is_started_again_alone_finishes(tmp_path: Path) -> None:
    raw, out = write_raw(tmp_path / "raw", images=24, captions=0), tmp_path / "out"
    _, (death,) = script("killed", raw, out, "hdf5", 2)
    assert death["killed"]
    for path in out.glob("00001-*"):
        path.unlink()
    config = ExtractConfig(dataset=raw, encoder="tests.extract.beside:Filling", out=out, batch_size=2, workers=1)
    again = extract(replace(config, worker_index=1, num_workers=2))
    assert again.computed_shards == 1
    assert again.content_digest == alone(raw, tmp_path / "alone", "hdf5")


def test_what_is_seen_while_two_work(tmp_path: Path) -> None:
    raw, out = write_raw(tmp_path / "raw", images=48, captions=0), tmp_path / "out"
    _, (seen,) = script("status", raw, out, "hdf5", 2)
    assert seen["working"] == [True, True]
    states = [shard["state"] for shard in seen["shards"]]
    whole = seen["summary"]
    assert not whole["finished"]
    assert (len(states), whole["shards"]) == (12, 12)
    assert states.count("done") == 4
    assert "missing" in states
    held = [shard for shard in seen["shards"] if shard["state"] == "leased"]
    names = {worker["worker"] for worker in whole["workers"] if worker["state"] == "alive"}
    assert held
    assert {shard["worker"] for shard in held} <= names | {None}
    assert all(datetime.fromisoformat(shard["since"]).tzinfo for shard in held if shard["worker"])
    assert whole["rate"] > 0
    assert whole["eta"] == pytest.approx((48 - whole["done_items"]) / whole["rate"])
    assert {worker["of"] for worker in whole["workers"]} == {2}
    after = summary(out)
    assert after.finished
    assert (after.rate, after.eta, after.done, after.leased) == (None, None, 12, 0)
    assert {worker.state for worker in after.workers} == {"finished"}


def test_events_of_a_run(tmp_path: Path) -> None:
    raw, out = write_raw(tmp_path / "raw", images=8, captions=0), tmp_path / "out"
    (raw / "images/i005.png").write_bytes(b"")
    config = ExtractConfig(dataset=raw, encoder=IMAGE, out=out, shard_rows=4, workers=1, max_rejected=0.2)
    result = extract(config)
    events = read_events(out)
    assert [event["event"] for event in events].count("claimed") == 2
    assert (events[0]["event"], events[-1]["event"]) == ("started", "finished")
    assert events[-1]["content_digest"] == result.content_digest
    committed = [event for event in events if event["event"] == "committed"]
    assert [(event["shard"], event["items"], event["rows"]) for event in committed] == [(0, 4, 4), (1, 4, 3)]
    assert [sum(event["rejected"].values()) for event in committed] == [0, 1]
    assert all(event["seconds"] >= 0 and len(event["layers"]) == 3 for event in committed)
    assert {(event["pid"], event["worker"]) for event in events} == {(os.getpid(), events[0]["worker"])}
    assert all(event["time"].endswith("+00:00") for event in events)
    assert sum(summary(out).rejected.values()) == 1
    before = {path: path.read_bytes() for path in (out / ".events").iterdir()}
    assert extract(config).computed_shards == 0
    assert {path: path.read_bytes() for path in (out / ".events").iterdir()} == before, "nothing to do, nothing to say"


def test_a_failure_is_an_event_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, out = write_raw(tmp_path / "raw", images=8, captions=0), tmp_path / "out"
    (raw / "images/i005.png").write_bytes(b"")
    strict = ExtractConfig(dataset=raw, encoder=IMAGE, out=out, shard_rows=4, workers=1)
    with pytest.raises(Exception, match=r"at most 5\.0% broken images"):
        extract(strict)
    monkeypatch.setattr("tests.extract.tiny_encoders.TinyImage.flat", lambda self, tensor: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division"):
        extract(strict)
    found = summary(out)
    assert found.rate is None
    assert sorted(found.failures.values()) == [1, 1]
    assert "ZeroDivisionError: division by zero" in found.failures
    assert any("at most 5.0% broken images" in reason for reason in found.failures)


def test_progress_counts_what_others_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, out = write_raw(tmp_path / "raw", images=32, captions=0), tmp_path / "out"
    monkeypatch.setenv("TINY_SLEEP", "0.02")
    first = ExtractConfig(dataset=raw, encoder=IMAGE, out=out, shard_rows=4, batch_size=2, workers=1, num_workers=2)
    told: list[Update] = []
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(extract, replace(first, worker_index=1))
        mine = extract(first, told.append)
        other.result()
    counts = [update.done for update in told if update.total]
    assert counts == sorted(counts)
    assert counts[-1] == 32
    before = set(counts[:2])  # the other may have committed while this one was getting ready
    assert told[-1].others in {32 - 4 * mine.computed_shards - count for count in before}
