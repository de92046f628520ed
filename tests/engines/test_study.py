"""`python -m examples.study --engine ray`, from raw data to the table of results: the numbers of `--engine local`."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.extract.building import IMAGE, TEXT, write_raw
from tests.sweep.conftest import QUICK

pytest.importorskip("ray", reason="Ray is not installed: pip install 'fewpairs[ray]'")
pytestmark = pytest.mark.slow

STUDY: dict[str, Any] = {
    "title": "Small",
    "encoders": {"eye": IMAGE, "ear": TEXT},
    "data": {},
    "dataset": "pairs",
    "seeds": [1, 42],
    "proposed": "cca",
    "methods": {"cca": {"settings": QUICK | {"dim": 3}}, "info_nce": {"settings": QUICK | {"dim": 3}}},
    "grids": {
        "main": {
            "about": "Which?",
            "encoders": [["eye", "ear"]],
            "pairs": [40, 80],
            "captions": [1, 2],
            "methods": ["cca", "info_nce"],
        }
    },
}


def results_of(folder: Path, engine: str) -> list[dict[str, str]]:
    """Do the study in a folder of its own and return its table."""
    write_raw(folder / "data" / "0_raw" / "pairs", images=200, captions=2, classes=())
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    done = subprocess.run(
        [sys.executable, "-m", "examples.study", "study.yaml", "--engine", engine, "--jobs", "2"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    table = folder / done.stdout.splitlines()[-1]
    with table.open(newline="", encoding="utf-8") as file:
        return [
            {name: value for name, value in row.items() if not name.startswith("seconds")}
            for row in csv.DictReader(file)
        ]


def test_a_study_has_the_same_table_on_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "ray").mkdir()
    local = results_of(tmp_path / "local", "local")
    assert len(local) == 2 * 2 * 2 * 2
    assert results_of(tmp_path / "ray", "ray") == local
