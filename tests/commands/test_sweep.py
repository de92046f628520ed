"""`pipeline sweep` in the miniature checkout: from params.yaml, from flags; and what is left of `pipeline study`."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.commands.project import IMAGE, TEXT, snapshot, write_params
from tests.commands.running import done, refused

QUICK = {"dim": 4, "training": {"max_steps": 4, "validations": 1}}
SWEEP = {
    "pairs": [12, "all"],
    "captions": [1],
    "seeds": [1, 2],
    "split": "test",
    "zero_shot": ["shapes"],
    "settings": QUICK,
}
FLAGS = (
    "--image",
    IMAGE,
    "--text",
    TEXT,
    "--out",
    "swept",
    "--set",
    "dim=4",
    "--set",
    "training.max_steps=4",
    "--quiet",
)


def test_params_say_what_is_swept(own: Path) -> None:
    write_params(own, sweep=SWEEP)
    rows = done("sweep", "--json", "--quiet").json()
    assert len(rows) == 2 * 2 * 2
    assert {row["row"] for row in rows} == {"cca", "info_nce"}
    assert {row["pairs"] for row in rows} == {12, "all"}
    assert all(0 <= row["shapes/acc1"] <= 1 for row in rows)
    before = snapshot(own / "data/4_study/sweep/cells")
    table = done("sweep", "--quiet").out
    assert "mean recall" in table
    assert "shapes/acc1" in table
    assert snapshot(own / "data/4_study/sweep/cells") == before
    assert "All 8 cells are finished" in done("sweep", "--dry-run").out
    assert "cca" in done("sweep", "--method", "ridge", "--pairs", "12", "--quiet").out.replace("ridge", "cca")


def test_flags_say_what_is_swept(own: Path) -> None:
    classes = f"shapes={IMAGE}:{TEXT}/classes"
    words = (
        "--method",
        "cca",
        "--pairs",
        12,
        "--seed",
        3,
        "--captions-per-image",
        "all",
        "--split",
        "test",
        "--jobs",
        1,
    )
    said = done("sweep", *FLAGS, *words, "--classes", classes, "--dry-run").out
    assert "1 cells; 1 to do" in said
    (row,) = done("sweep", *FLAGS, *words, "--classes", classes, "--json").json()
    assert (row["row"], row["pairs"], row["captions"], row["seed"]) == ("cca", 12, "all", 3)
    assert json.loads((own / "swept/results.json").read_text()) == [row]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((*FLAGS, "--method", "magic"), "a known method"),
        (FLAGS, "--method, once or several times"),
        ((*FLAGS, "--method", "cca", "--pairs", "many"), "a number or all"),
        ((*FLAGS, "--method", "cca", "--pairs", 4000), "--pairs of"),
        ((*FLAGS, "--method", "cca", "--jobs", 0), "1 or more"),
        ((*FLAGS, "--method", "cca", "--classes", "nothing"), "NAME=IMAGE_STORE:PROMPT_STORE"),
        ((*FLAGS, "--method", "cca", "--split", "moon"), "a known split"),
        ((*FLAGS, "--method", "cca", "--layers", "nonsense"), "--layers"),
        (("--image", IMAGE), "--image, --text and --out together"),
        (("--image", "nowhere", "--text", TEXT, "--out", "swept", "--method", "cca"), "a feature store's folder"),
        ((), "a section 'sweep'"),
    ],
)
def test_what_cannot_be_swept_is_one_sentence(project: Path, words: tuple[Any, ...], sentence: str) -> None:
    assert sentence in refused("sweep", *words)


@pytest.mark.parametrize("words", [(), ("study.yaml", "--page", "x.md"), ("--help",)])
def test_the_study_has_left_the_package(words: tuple[str, ...]) -> None:
    sentence = refused("study", *words)
    assert "python -m examples.study --page docs/study.md" in sentence
