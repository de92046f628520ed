"""`--engine ray` on a data set and a store at a URL; every worker has a cache of its own, as other machines do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.store.reader import FeatureStore
from tests.conftest import ROOT
from tests.extract.building import IMAGE, TEXT, write_raw
from tests.storage.conftest import Machine
from tests.storage.objects_by_hand import put

pytest.importorskip("ray", reason="Ray is not installed: pip install 'fewpairs[ray]'")
pytestmark = pytest.mark.slow

IMAGES = 24
OWN_CACHE = """import os, sys
if any("default_worker.py" in word for word in sys.orig_argv):
    os.environ["FEWPAIRS_CACHE"] = os.path.join(os.environ["CACHES_OF_WORKERS"], str(os.getpid()))
"""


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder where each worker that Ray starts gets a cache of its own."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(OWN_CACHE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), str(ROOT)]))
    monkeypatch.setenv("CACHES_OF_WORKERS", str(tmp_path / "workers"))
    (tmp_path / "workers").mkdir()
    return tmp_path / "workers"


@pytest.fixture
def raw(tmp_path: Path, bucket: str, s3: str) -> Path:
    """Return a data set that lies at `bucket/raw`, too."""
    root = write_raw(tmp_path / "raw", images=IMAGES, captions=1)
    for path in root.rglob("*"):
        if path.is_file():
            put(s3, f"{bucket}/raw/{path.relative_to(root).as_posix()}", path.read_bytes())
    return root


def ran(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pipeline.cli", "extract", *words, "--engine", "ray", "--workers", "1"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def result_of(*words: str) -> dict[str, Any]:
    done = ran(*words, "--json", "--shard-rows", "4", "--batch-size", "2")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("decoders", [(), ("--decode-cpus", "1")])
def test_the_same_store_as_one_process_makes_in_a_folder(
    decoders: tuple[str, ...], tmp_path: Path, raw: Path, bucket: str, machine: Machine, caches: Path
) -> None:
    machine("driver")
    out = f"{bucket}/features"
    found = result_of("--dataset", f"{bucket}/raw", "--encoder", IMAGE, "--out", out, *decoders)
    alone = extract(ExtractConfig(dataset=raw, encoder=IMAGE, out=tmp_path / "one", shard_rows=4, batch_size=2))
    machine("another")
    store = FeatureStore.open(out)
    assert (found["path"], found["rows"]) == (out, IMAGES)
    assert found["content_digest"] == store.content_digest == alone.content_digest
    assert any(caches.iterdir())
    again = result_of("--dataset", f"{bucket}/raw", "--encoder", IMAGE, "--out", out, *decoders)
    assert (again["computed_shards"], again["content_digest"]) == (0, alone.content_digest)


def test_texts_and_their_classes(tmp_path: Path, raw: Path, bucket: str, machine: Machine, caches: Path) -> None:
    machine("driver")
    out = f"{bucket}/texts"
    found = result_of("--dataset", f"{bucket}/raw", "--encoder", TEXT, "--out", out)
    alone = extract(ExtractConfig(dataset=raw, encoder=TEXT, out=tmp_path / "one", shard_rows=4, batch_size=2))
    assert alone.classes is not None
    assert (found["path"], found["classes"]["path"]) == (out, f"{out}/classes")
    assert found["content_digest"] == alone.content_digest
    assert found["classes"]["content_digest"] == alone.classes.content_digest


def test_an_error_in_a_worker_says_the_url(raw: Path, bucket: str, s3: str, machine: Machine, caches: Path) -> None:
    machine("driver")
    for path in (raw / "images").iterdir():
        put(s3, f"{bucket}/raw/images/{path.name}", b"no picture")
    done = ran("--dataset", f"{bucket}/raw", "--encoder", IMAGE, "--out", f"{bucket}/features", "--quiet")
    assert done.returncode == 2, done.stderr
    assert f"{bucket}/features/rejected.csv: expected at most 5.0% broken images, found" in done.stderr
    assert str(caches) not in done.stderr
