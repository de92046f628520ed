"""Stores, runs, indexes and a data set that an older version wrote are opened, say the same, and are not rewritten."""

import hashlib
import json
import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

import tests.contract.tiny  # noqa: F401  # what was written names its encoders, and a file may not import them by itself
from tests.commands.running import done
from tests.contract import written
from tests.contract.making import CCA, DATA, IMAGE, REPORT, TEXT
from tests.contract.numbers import machine
from tests.contract.record import load

EXPECTED: dict[str, Any] = load("written")
NUMBERS: dict[str, Any] = load("numbers")


def files(folder: Path) -> dict[str, tuple[str, int]]:
    """Return digest and time of every file."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in found
    }


@pytest.fixture
def own(old: Path, tmp_path: Path) -> Path:
    """Return a copy that may be changed."""
    return Path(shutil.copytree(old, tmp_path / "own"))


def test_stores_give_the_same_digests_keys_and_values(old: Path) -> None:
    before = files(old)
    found = written.exact(old)
    assert sorted(found) == sorted(EXPECTED["exact"])
    for name, store in EXPECTED["exact"].items():
        assert found[name] == store, name
        assert not store["problems"]
    assert files(old) == before


def test_runs_and_indexes_give_the_same_vectors_and_hits(old: Path) -> None:
    before = files(old)
    found = written.close(old)
    for name, seeds in EXPECTED["close"]["embeddings"].items():
        assert sorted(found["embeddings"][name]) == sorted(seeds)
        for seed, rows in seeds.items():
            for row, other in zip(rows, found["embeddings"][name][seed], strict=True):
                assert other == pytest.approx(row, abs=1e-6), (name, seed)
    for name, hits in EXPECTED["close"]["search"].items():
        names, scores = zip(*found["search"][name], strict=True)
        assert list(names) == [image for image, _ in hits], name
        assert list(scores) == pytest.approx([score for _, score in hits], abs=1e-6), name
    assert files(old) == before


def test_an_extraction_finds_nothing_to_do(own: Path) -> None:
    """The same key comes of the same data set, encoder and settings: nobody's features are computed again."""
    before = files(own)
    with chdir(own):
        results = json.loads(done("extract", "--quiet", "--json").out)
        words = ("--dataset", DATA, "--encoder", "tests.contract.tiny:Pixels", "--out", written.HALF)
        again = done("extract", *words, "--device", "cpu", "--storage-dtype", "bf16", "--quiet", "--json")
    assert [result["computed_shards"] for result in (*results, json.loads(again.out))] == [0, 0, 0]
    kept = {name: value for name, value in files(own).items() if ".events" not in name}
    assert kept == before


def test_a_new_extraction_gives_the_same_content(own: Path) -> None:
    with chdir(own):
        for store, encoder in ((IMAGE, "Pixels"), (TEXT, "Words")):
            words = ("--dataset", DATA, "--encoder", f"tests.contract.tiny:{encoder}", "--out", "again", "--replace")
            found = json.loads(done("extract", *words, "--device", "cpu", "--quiet", "--json").out)
            name = "hdf5, float32" if store == IMAGE else "captions"
            assert found["content_digest"] == EXPECTED["exact"][name]["content_digest"]


def test_runs_are_measured_to_the_same_numbers(own: Path) -> None:
    """Old features and old projectors, evaluated now; exact where the numbers were written down, else to 1e-6."""
    close = machine() != NUMBERS["machine"]
    with chdir(own):
        done("evaluate", "--quiet")
        metrics = json.loads(Path(REPORT, "metrics.json").read_text(encoding="utf-8"))
    for run, expected in NUMBERS["metrics"].items():
        assert metrics[run] == (pytest.approx(expected, rel=0, abs=1e-6, nan_ok=True) if close else expected), run


def test_a_training_is_not_done_again(own: Path) -> None:
    """Runs of the same settings over the same features are resumed as finished."""
    before = files(own / CCA)
    with chdir(own):
        done("align", "--method", "cca", "--quiet")
    now = files(own / CCA)
    assert {name: digest for name, (digest, _) in now.items() if name.endswith((".safetensors", "image.json"))} == {
        name: digest for name, (digest, _) in before.items() if name.endswith((".safetensors", "image.json"))
    }
