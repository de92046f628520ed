"""Nodes and drivers are killed on a cluster of several processes; nothing is lost or doubled."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines.ray_engine import IMAGES_AT_ONCE
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.store.reader import FeatureStore
from tests.conftest import ROOT
from tests.engines.recording import RECORD
from tests.extract.building import IMAGE, write_raw

pytest.importorskip("ray", reason="Ray is not installed: pip install 'fewpairs[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SHARDS, ROWS, FEW = 200, 4, 240
OWN = """from tests.engines.recording import Recording, RecordingAll


class Mine(Recording):
    pass


class MineAll(RecordingAll):
    pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a working folder with a data set and an encoder of the user's own."""
    place = tmp_path_factory.mktemp("n")
    write_raw(place / "raw", images=SHARDS * ROWS, captions=0)
    write_raw(place / "few", images=FEW, captions=0)
    (place / "mine.py").write_text(OWN)
    return place


@pytest.fixture(scope="module")
def answer(folder: Path) -> dict[str, Any]:
    own_network = [str(shutil.which("unshare")), "--net"]
    if subprocess.run([*own_network, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a network of its own (unshare --net) is not permitted here; Ray would use another address")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    patient = {"RAY_raylet_start_wait_time_s": "120"}  # where a machine is busy, nodes take long to begin
    environment = {**os.environ, **patient, RECORD: str(folder / "record"), "TINY_SLEEP": "0.1", "PYTHONPATH": path}
    done = subprocess.run(
        [*own_network, sys.executable, "-m", "tests.engines.nodes", str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.log")))
    assert done.returncode == 0, f"{done.stderr}\n{logs}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_it_was_killed_in_the_middle(answer: dict[str, Any]) -> None:
    assert answer["workers"] == 2
    assert 20 <= answer["at_node_kill"] < answer["at_driver_kill"] <= answer["before"] < SHARDS


def test_the_next_driver_does_what_is_left(answer: dict[str, Any]) -> None:
    assert answer["result"]["code"] == 0
    assert answer["result"]["computed_shards"] == SHARDS - answer["before"]
    assert answer["result"]["skipped_shards"] == answer["before"]
    assert answer["after"] == SHARDS


def test_nothing_is_lost_or_doubled(answer: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    alone = extract(
        ExtractConfig(dataset=folder / "raw", encoder=IMAGE, out=tmp_path / "one", shard_rows=ROWS, batch_size=2)
    )
    store = FeatureStore.open(folder / "out")
    assert store.content_digest == answer["result"]["content_digest"] == alone.content_digest
    assert store.ids == FeatureStore.open(tmp_path / "one").ids
    assert len(set(store.ids)) == SHARDS * ROWS


def test_only_what_a_lost_worker_was_at_is_computed_twice(answer: dict[str, Any]) -> None:
    rows = sum(int(word) for _, word in answer["record"] if word != "load")
    lost = 2  # the node's worker and the driver's other one, each with a shard at work and one being written
    assert SHARDS * ROWS <= rows <= (SHARDS + 2 * lost) * ROWS


def test_a_node_that_only_decodes_may_be_killed(answer: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    found = answer["decoding"]
    assert found["result"]["code"] == 0
    encoded = {process for process, word in found["record"] if word.isdecimal()}
    prepared = Counter(process for process, word in found["record"] if word == "prepare")
    assert len(encoded) == 1
    assert found["decoder"] not in encoded
    assert prepared[found["decoder"]] >= 8
    assert FEW <= sum(prepared.values()) <= FEW + 2 * IMAGES_AT_ONCE
    alone = ExtractConfig(dataset=folder / "few", encoder=IMAGE, out=tmp_path / "one", shard_rows=4, batch_size=2)
    assert found["result"]["content_digest"] == extract(alone).content_digest
