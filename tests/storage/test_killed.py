"""Killed at any request, a store at a URL is whole or unfinished, never wrong; and machines beside each other."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.storage import leases
from pipeline.store.events import status
from tests.storage.conftest import Machine
from tests.storage.objects_by_hand import names
from tests.store.building import LAYERS, fill, header, stored

ROOT = Path(__file__).resolve().parents[2]


def start(mode: str, url: str, cache: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.storage.processes", mode, url]
    environment = {**os.environ, "FEWPAIRS_CACHE": str(cache)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def lines(process: "subprocess.Popen[str]") -> list[dict[str, Any]]:
    out, err = process.communicate()
    assert process.returncode == 0, err
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def digest(tmp_path: Path) -> str:
    return fill(tmp_path / "whole", header()).content_digest


STEPS = [
    "create",  # store.json
    "create",  # the lease
    "upload",  # the shard
    "write",  # its record
    "remove",  # the lease
    "write",  # samples.parquet
    "write",  # rejected.csv
    "create",  # manifest.json
]


@pytest.mark.parametrize("steps", ["some", pytest.param("all", marks=pytest.mark.slow)])
def test_killed_at_a_request(bucket: str, tmp_path: Path, digest: str, steps: str) -> None:
    first, *deaths = lines(start(steps, f"{bucket}/store", tmp_path / "cache"))
    assert first == {"names": STEPS}
    assert len(deaths) == (4 if steps == "some" else 2 * len(STEPS))
    for number, death in enumerate(deaths):
        assert death["ended"] == 9, death
        result = death["result"]
        assert result["digest"] == digest, death
        assert result["values"] == [stored(name).tobytes().hex() for name in LAYERS]
        whole = number == len(deaths) - 1  # after the manifest, and only then
        assert (result["before"] == "whole") == whole, death
        assert result["before"] in ("whole", "UserError", "UnfinishedStoreError"), death


def test_machines_beside_each_other(bucket: str, s3: str, tmp_path: Path, digest: str) -> None:
    running = [start("beside", f"{bucket}/store", tmp_path / f"cache {number}") for number in range(2)]
    results = [lines(process)[0] for process in running]
    assert sorted(index for result in results for index in result["mine"]) == [0, 1, 2, 3]
    assert {result["digest"] for result in results} == {digest}
    assert len(names(s3, f"{bucket}/store")) == 4 + 2 * 4


def test_what_a_killed_machine_held_is_taken_over(
    bucket: str, tmp_path: Path, machine: Machine, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = start("hang", f"{bucket}/store", tmp_path / "cache")
    assert held.stdout is not None
    assert json.loads(held.stdout.readline()) == {"claimed": 0}
    held.kill()
    held.communicate()
    url = f"{bucket}/store"
    assert [shard.state for shard in status(url)] == ["leased", "missing", "missing", "missing"]
    assert (status(url)[0].worker or "").split("-")[-2] == str(held.pid), "anybody sees who holds it"
    moments = itertools.count(0, 1000)
    monkeypatch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: float(next(moments))))
    assert fill(url, header(shard_rows=6)).content_digest == digest
