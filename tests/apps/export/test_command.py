"""`pipeline export`: what it prints, and that every mistake is one sentence with exit code 2."""

from pathlib import Path

import pytest

from tests.apps.export.building import make_run
from tests.commands.running import done, refused


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def test_table_and_json(run: Path, tmp_path: Path) -> None:
    out = done("export", run, "--out", tmp_path / "model").out
    assert "image.safetensors" in out
    assert "folder of seed 7, 3 dimensions" in out
    found = done("export", run, "--out", tmp_path / "model", "--json").json()
    assert (found["format"], found["seed"], found["dim"]) == ("folder", 7, 3)
    assert set(found["files"]) == {"README.md", "model.json", "image.safetensors", "text.safetensors"}


def test_mistakes_are_one_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model = tmp_path / "model"
    assert "expected a finished run's folder" in refused("export", tmp_path / "no", "--out", model)
    assert "--format: expected a known export format" in refused("export", run, "--out", model, "--format", "pickle")
    assert "one of the seeds 7" in refused("export", run, "--out", model, "--seed", 3)
    assert "found the file" in refused("export", run, "--out", tmp_path / "file")
    assert "expected a new folder" in refused("export", run, "--out", run)
    assert "in the report's folder metrics" in refused("export", run, "--out", model, "--report", tmp_path)
    assert "expected one of" not in refused("export", run, "--out", model, "--format", "sentence-transformers")
    assert not model.exists()
