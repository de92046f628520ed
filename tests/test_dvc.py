"""docs/dvc.md done with git and DVC, on drawn shapes and two tiny encoders: experiments, a remote, one encoder."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands.encoders import PIXELS, WORDS
from tests.commands.project import make_source, snapshot
from tests.documented import FENCE, ROOT

PAGE = (ROOT / "docs" / "dvc.md").read_text(encoding="utf-8")
RECALL = "image_retrieval_recall@1"
EXPERIMENT = "dvc exp run -S align.method=structure"
# The page speaks of the default data set and encoders; here they are smaller.
HERE = {"openmoji": "shapes", "efficientnet-lite0": "pixels", "all-minilm-l6-v2": "words"}

pytestmark = pytest.mark.slow
pytest.importorskip("dvc")


def commands(title: str) -> list[str]:
    """Return the commands of a section of the page, with the names of this project in them."""
    text = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    for name, ours in HERE.items():
        text = text.replace(name, ours)
    return [line.split("  #")[0] for kind, body in FENCE.findall(text) if kind == "sh" for line in body.splitlines()]


def run(folder: Path, *words: str, check: bool = True) -> str:
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": binaries, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    names = {f"GIT_{who}_{what}": "tests@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    result = subprocess.run(
        words, cwd=folder, env={**os.environ, **own, **names}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0 or not check, f"{words}\n{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


def params() -> dict[str, Any]:
    """Return the repository's params.yaml with a smaller data set, smaller encoders and shorter trainings."""
    own: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    align = own["align"] | {"dataset": "shapes", "method": "cca", "seeds": [1], "device": "cpu"}
    return own | {
        "image_encoder": "pixels",
        "text_encoder": "words",
        "encoders": {"pixels": PIXELS, "words": WORDS},
        "datasets": ["shapes"],
        "data": {"shapes": "import ../source/shapes.csv"},
        "extract": {"layers": "all", "device": "cpu"},
        "methods": ["cca"],
        "align": align | {"settings": {"dim": 8, "training": {"max_steps": 20}}, "layers": "last"},
        "evaluate": {"split": "test", "zero_shot": ["shapes"], "bootstrap": 100, "examples": 2, "probes": False},
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkout in miniature, everything run once and committed."""
    folder = tmp_path_factory.mktemp("dvc") / "project"
    folder.mkdir()
    make_source(folder.parent / "source")
    for name in ("pipeline", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(params()), encoding="utf-8")
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "init", "-q")
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    shutil.copytree(ROOT / ".dvc" / "plots", folder / ".dvc" / "plots")
    run(folder, "dvc", "repro", "--quiet")
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "-qm", "First results")
    return folder


@pytest.fixture(scope="module")
def experiment(project: Path) -> str:
    """Run the experiment of the page; return what DVC printed."""
    before = snapshot(project / "data/1_features"), snapshot(project / "data/2_projectors")
    (line,) = (line for line in commands("Experiments") if line == EXPERIMENT)
    said = run(project, *shlex.split(line))
    assert (snapshot(project / "data/1_features"), snapshot(project / "data/2_projectors")) == before
    return said


def test_an_experiment_trains_its_own_method_alone(project: Path, experiment: str) -> None:
    assert re.findall(r"Running stage '([^']+)'", experiment) == ["experiment", "experiment-report"]
    record = json.loads((project / "data/5_experiment/run/run.json").read_text(encoding="utf-8"))
    assert record["method"] == "structure"
    assert record["config"]["recipe"]["structure"]["weight"] == 10


def test_experiments_stand_side_by_side(project: Path, experiment: str) -> None:
    measured = json.loads((project / "data/5_experiment/report/metrics.json").read_text(encoding="utf-8"))[RECALL]
    table = run(project, "dvc", "exp", "show", "--csv")
    rows = list(csv.DictReader(io.StringIO(table[table.index("Experiment,") :])))
    committed = [row for row in rows if row["rev"] != "workspace"]
    (named,) = (row for row in committed if row["Experiment"])
    assert named["align.method"] == "structure"
    (base,) = (row for row in committed if not row["Experiment"])
    assert base["align.method"] == "cca"
    (column,) = (name for name in rows[0] if name.endswith(RECALL) and "5_experiment" in name)
    assert float(named[column]) == pytest.approx(measured, abs=1e-4)
    assert base[column] != named[column]


def test_the_same_as_json(project: Path, experiment: str) -> None:
    shown = run(project, "dvc", "exp", "show", "--json")
    (commit,) = (each for each in json.loads(shown[shown.index("[") :]) if each["rev"] != "workspace")
    (found,) = (each["revs"][0]["data"] for each in commit["experiments"])
    assert found["params"]["params.yaml"]["data"]["align"]["method"] == "structure"
    assert 0 <= found["metrics"]["data/5_experiment/report/headline/run.json"]["data"][RECALL] <= 1
    assert commit["data"]["params"]["params.yaml"]["data"]["align"]["method"] == "cca"


def test_another_setting_for_the_experiment_alone(project: Path, experiment: str) -> None:
    (line,) = (line for line in commands("Experiments") if "experiment-report" in line)
    said = run(
        project, *shlex.split(line.replace("align.layers=last", "align.layers=pair")), "-S", "align.log_to=dvclive"
    )
    assert re.findall(r"Running stage '([^']+)'", said) == ["experiment", "experiment-report"]
    assert (project / "data/5_experiment/run/logs/dvclive/seed-1/metrics.json").is_file()


def test_one_encoder_comes_back_from_a_remote(project: Path, tmp_path: Path) -> None:
    for line in commands("A remote"):
        run(project, *shlex.split(line.replace("/mnt/storage/fewpairs", str(tmp_path / "storage"))))
    assert any((tmp_path / "storage").rglob("*"))
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "-q", str(project), str(clone))
    features = clone / "data/1_features/shapes"
    assert not features.exists()
    pull, verify, repro = commands("One encoder's features, elsewhere")
    run(clone, *shlex.split(pull))
    assert [path.name for path in features.iterdir()] == ["words"]
    run(clone, *shlex.split(verify))
    run(clone, "dvc", "pull", "extract")
    said = run(clone, *shlex.split(repro))
    assert "Running stage 'data" not in said
    assert "Running stage 'extract" not in said
    assert not (clone / "data/0_raw/shapes").exists()
