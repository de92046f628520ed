"""Settings: filled from untyped data, every mistake told at once."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import build
from pipeline.errors import UnknownNameError, UserError
from pipeline.evaluate.config import EvaluateConfig, ZeroShotConfig

GOOD: dict[str, Any] = {"runs": ["r"], "image": ["i"], "text": ["t"], "out": "o"}


def test_filled_from_plain_data() -> None:
    extra = {"zero_shot": [{"name": "cifar10", "image": ["a"], "classes": ["b"]}], "ks": [1, 3]}
    config = build(EvaluateConfig, GOOD | extra, where="params.yaml: evaluate")
    assert config.runs == (Path("r"),)
    assert config.ks == (1, 3)
    assert config.zero_shot == (ZeroShotConfig(name="cifar10", image=(Path("a"),), classes=(Path("b"),)),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": []}, "runs is empty"),
        ({"ks": [0]}, r"ks should be positive, not \[0\]"),
        ({"ks": []}, "ks should be positive"),
        ({"bootstrap": 3}, "bootstrap should be at least 100, not 3"),
        ({"confidence": 1.0}, r"confidence should lie in \[0.5, 1\)"),
        ({"examples": -1}, "examples should not be negative"),
        ({"csls": -1}, "csls should be a number of neighbours, or 0, not -1"),
        ({"duplicate_cosine": 2.0}, "duplicate_cosine should be a cosine"),
        ({"zero_shot": [{"name": "a/b", "image": ["a"], "classes": ["b"]}]}, "with a slash"),
        ({"zero_shot": [{"name": "a", "image": ["a"], "classes": ["b"]}] * 2}, "names should differ"),
        ({"zero_shot": [{"name": "a", "image": [], "classes": ["b"]}]}, "image is empty"),
    ],
)
def test_every_mistake_is_a_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(EvaluateConfig, GOOD | change, where="params.yaml: evaluate")


def test_unknown_index() -> None:
    with pytest.raises(UnknownNameError, match="auto, torch, flat"):
        EvaluateConfig(runs=(Path("r"),), image=(Path("i"),), text=(Path("t"),), out=Path("o"), index="flatt")
