"""`python -m examples.study` in the miniature checkout: what is missing is made, what is there is left alone."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from examples.study.__main__ import main
from tests.commands.encoders import PIXELS, WORDS
from tests.commands.project import make_source, snapshot
from tests.commands.running import Outcome, outcome_of, refusal

QUICK = {"dim": 4, "training": {"max_steps": 4, "validations": 1}}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with drawn pictures, the table that names them and a study's file."""
    make_source(tmp_path)
    study_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def done(*words: object) -> Outcome:
    """Do a study that must succeed."""
    result = outcome_of(main, "study", *words)
    assert result.code == 0, f"{words}\n{result.out}\n{result.err}"
    return result


def refused(*words: object) -> str:
    """Return the sentence by which a study is refused."""
    return refusal(outcome_of(main, "study", *words), words)


def study_file(folder: Path, **changes: Any) -> Path:
    study: dict[str, Any] = {
        "title": "Shapes",
        "encoders": {"pixels": PIXELS, "words": WORDS},
        "data": {"shapes": "import shapes.csv"},
        "dataset": "shapes",
        "zero_shot": ["shapes"],
        "seeds": [1, 2],
        "proposed": "cca",
        "methods": {"cca": {"settings": QUICK}, "info_nce": {"settings": QUICK}},
        "grids": {
            "main": {"about": "Which?", "encoders": [["pixels", "words"]], "pairs": [12], "captions": [2]},
            "words": {
                "about": "And with fewer words?",
                "encoders": [["pixels", "words"]],
                "pairs": [12],
                "drop": [0.5],
                "shuffle": [0.5],
                "zero_shot": False,
            },
        },
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**study, **changes}, sort_keys=False), encoding="utf-8")
    return path


def test_a_study_makes_everything_that_it_needs(own: Path) -> None:
    """Data and features go to another folder, where nothing is yet."""
    said = done("study.yaml", "--data", "fresh", "--out", "results", "--dry-run").out
    assert "To be extracted first: shapes" in said or "known once the features are there" in said
    words = ("study.yaml", "--data", "fresh", "--out", "results", "--page", "docs/page.md", "--quiet")
    done(*words)
    page = (own / "docs/page.md").read_text(encoding="utf-8")
    assert "python -m examples.study study.yaml --out results --data fresh --page docs/page.md" in page
    assert "And with fewer words?" in page
    changed = (own / "results/changed/0_raw/drop50/captions.csv").read_text().splitlines()
    assert changed[0] == "caption_id,caption"
    assert len(changed) > 5
    before = snapshot(own / "results/cells") | snapshot(own / "fresh")
    done(*words)
    assert snapshot(own / "results/cells") | snapshot(own / "fresh") == before
    assert "0 of them to do" in done(*words[:5], "--grid", "main", "--dry-run").out
    assert (own / "docs/page.md").read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("nowhere.yaml",), "nowhere.yaml"),
        (("study.yaml", "--grid", "moon"), "a known grid"),
        (("study.yaml", "--only-page", "--page", "x.md", "--out", "empty"), "finished cells"),
    ],
)
def test_what_cannot_be_studied_is_one_sentence(own: Path, words: tuple[Any, ...], sentence: str) -> None:
    assert sentence in refused(*words)
