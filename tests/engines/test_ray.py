"""The engine `ray` gives what one process gives: the same bytes, digits and errors, whatever dies on the way."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines.ray_engine import IMAGES_AT_ONCE
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.store.reader import FeatureStore
from pipeline.sweep.run import sweep
from tests.align.conftest import Stores
from tests.conftest import ROOT
from tests.engines.processes import WORKER, alive, below, committed, named, until
from tests.engines.recording import RECORD
from tests.extract.building import IMAGE, write_raw
from tests.sweep.conftest import MakeSweep, _one_thread, class_set, make_stores, make_sweep, stores

__all__ = ["_one_thread", "class_set", "make_stores", "make_sweep", "stores"]

pytest.importorskip("ray", reason="Ray is not installed: pip install 'fewpairs[ray]'")

IMAGES, SHARDS, MANY = 48, 12, 240
Ask = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a raw data set."""
    place = tmp_path_factory.mktemp("ray")
    write_raw(place / "raw", images=IMAGES, captions=0)
    write_raw(place / "many", images=MANY, captions=0)
    return place


@pytest.fixture(scope="module")
def ask(folder: Path, stores: Stores) -> Ask:
    """Return what asks a process with a local Ray."""

    def run(which: str) -> dict[str, Any]:
        words = ["-m", "tests.engines.on_local_ray", which, *map(str, (folder, stores.image, stores.text))]
        done = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, RECORD: str(folder / which)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


@pytest.fixture(scope="module")
def quick(ask: Ask) -> dict[str, Any]:
    return ask("quick")


@pytest.fixture(scope="module")
def whole(ask: Ask) -> dict[str, Any]:
    return ask("whole")


@pytest.fixture(scope="module")
def alone(folder: Path) -> FeatureStore:
    """Return the store that one process makes."""
    config = ExtractConfig(dataset=folder / "raw", encoder=IMAGE, out=folder / "one", shard_rows=4, batch_size=2)
    extract(config)
    return FeatureStore.open(config.out)


def test_a_worker_that_is_killed_costs_nothing(quick: dict[str, Any], folder: Path, alone: FeatureStore) -> None:
    found = quick["extract"]
    assert found["killed"] == 1
    assert (found["digest"], found["rows"]) == (alone.content_digest, IMAGES)
    assert sum(found["shards"]) == found["committed"] == SHARDS
    assert FeatureStore.open(folder / "out").ids == alone.ids


def test_an_encoder_is_loaded_once_a_worker_and_little_is_done_twice(quick: dict[str, Any]) -> None:
    lines = quick["extract"]["record"]
    loads = Counter(process for process, word in lines if word == "load")
    assert set(loads.values()) == {1}
    assert len(loads) in (2, 3)  # two workers, and one in place of the killed one, which may come too late
    rows = sum(int(word) for _, word in lines if word != "load")
    twice = 2 * 8  # the first rows of a new store, eight at most, are encoded twice before the work
    assert IMAGES <= rows <= IMAGES + 2 * 4 + twice  # the killed worker had two shards: one at work, one being written


def test_decoders_change_no_byte_and_may_die(quick: dict[str, Any], folder: Path) -> None:
    found = quick["decode"]
    (killed,) = found["killed"]
    encoders = {process for process, word in found["record"] if word.isdecimal()}
    prepared = Counter(process for process, word in found["record"] if word == "prepare")
    assert len(encoders) == 1
    assert killed not in encoders
    assert prepared[killed] >= 8
    assert len(prepared) >= 2, "the encoder's own CPU decodes, too"
    assert MANY <= sum(prepared.values()) <= MANY + IMAGES_AT_ONCE * 2  # what the killed one was at is done again
    encoded = sum(int(word) for _, word in found["record"] if word.isdecimal())
    assert (encoded, found["rows"]) == (MANY + 2 * 2, MANY), "the first batch of a new store twice, before the work"
    alone = ExtractConfig(dataset=folder / "many", encoder=IMAGE, out=folder / "many-one", shard_rows=4, batch_size=2)
    assert found["digest"] == extract(alone).content_digest


def test_progress_of_all_workers_is_one_count(quick: dict[str, Any]) -> None:
    counts = quick["extract"]["counts"]
    assert 0 < max(counts) <= IMAGES
    assert any("48 images × 3 layers" in sentence for sentence in quick["extract"]["said"])


def test_a_sweep_has_the_same_digits(quick: dict[str, Any], make_sweep: MakeSweep) -> None:
    config = make_sweep("plain")
    plain = sweep(replace(config, classes=()))
    numbers = [{name: value for name, value in each.items() if name != "seconds"} for each in plain]
    assert len(numbers) == 8
    assert [without_format(each) for each in quick["sweep"]["results"]] == [
        without_format(each) for each in json.loads(json.dumps(numbers))
    ]


def without_format(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "format"}


def test_an_item_whose_worker_died_is_done_by_another(quick: dict[str, Any]) -> None:
    assert quick["square"] == {"found": [9, 16, 25]}


def test_an_error_keeps_its_type_and_its_exit_code(quick: dict[str, Any]) -> None:
    assert quick["mismatch"] == {
        "type": "KeyMismatchError",
        "code": 2,
        "sentence": "store 3: expected pooling = cls, found pooling = mean; take another",
    }


@pytest.mark.slow
def test_another_key_is_refused_and_replaced_by_one(whole: dict[str, Any], alone: FeatureStore) -> None:
    found = whole["other key"]
    assert (found["type"], found["code"]) == ("KeyMismatchError", 2)
    assert "start over with --replace" in found["sentence"]
    assert whole["first"] == whole["replaced"] == alone.content_digest  # the same values under another key


@pytest.mark.slow
def test_a_finished_store_is_found(whole: dict[str, Any]) -> None:
    assert "nothing to do, 48 images are there" in whole["again"]


@pytest.mark.slow
def test_a_dry_run_is_asked_of_a_worker(whole: dict[str, Any], folder: Path) -> None:
    assert "still to do: 48 rows" in whole["dry"]
    assert "expected time" in whole["dry"]
    assert not (folder / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "kind", "code", "words"),
    [
        ("divide", "PipelineError", 1, "expected work that ends, found ZeroDivisionError: division by zero"),
        ("missing", "FileNotFoundError", None, "No such file or directory: '/nowhere/"),
        ("die", "PipelineError", 1, "expected workers that live, found 4 that died"),
    ],
)
def test_failures_come_out_as_they_are(
    whole: dict[str, Any], work: str, kind: str, code: int | None, words: str
) -> None:
    found = whole[work]
    assert (found["type"], found.get("code")) == (kind, code)
    assert words in found["sentence"]


@pytest.mark.slow
def test_ctrl_c_ends_all_of_it(folder: Path) -> None:
    out = folder / "interrupted"
    words = ["--dataset", folder / "raw", "--encoder", IMAGE, "--out", out, "--shard-rows", 4, "--batch-size", 2]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "extract", *map(str, words), "--engine", "ray", "--workers", "1"],
        cwd=ROOT,
        env={**os.environ, "TINY_SLEEP": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until(lambda: committed(out) >= 1, "a shard")
    started = below(process.pid)
    assert len(named(process.pid, WORKER)) == 2
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, errors = process.communicate()
    assert (process.returncode, said) == (130, "")
    assert "Interrupted: what was finished stays" in errors
    assert "Traceback" not in errors
    until(lambda: not any(alive(each) for each in started), "that all processes of Ray end")
    assert committed(out) < SHARDS
