"""Settings: filled from untyped data, every mistake told at once."""

from typing import Any

import pytest

from pipeline.config import build
from pipeline.errors import UnknownNameError, UserError
from pipeline.evaluate.config import EvaluateConfig, ZeroShotConfig

GOOD: dict[str, Any] = {"runs": ["r"], "image": ["i"], "text": ["t"], "out": "o"}


def test_filled_from_plain_data() -> None:
    extra = {"zero_shot": [{"name": "cifar10", "image": ["a"], "classes": ["b"]}], "ks": [1, 3]}
    config = build(EvaluateConfig, GOOD | extra, where="params.yaml: evaluate")
    assert config.runs == ("r",)
    assert config.ks == (1, 3)
    assert config.zero_shot == (ZeroShotConfig(name="cifar10", image=("a",), classes=("b",)),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": []}, "runs: expected a value, or several, found none"),
        ({"ks": [0]}, "--k: expected 1 or more, found 0"),
        ({"ks": []}, "--k: expected a value, or several, found none"),
        ({"bootstrap": 3}, "bootstrap: expected 100 or more, found 3"),
        ({"confidence": 1.0}, "confidence: expected 0.5 or more, less than 1, found 1.0"),
        ({"examples": -1}, "examples: expected 0 or more, found -1"),
        ({"csls": -1}, "--csls: expected 0 or more, found -1"),
        ({"duplicate_cosine": 2.0}, "duplicate_cosine: expected -1 to 1, found 2.0"),
        ({"zero_shot": [{"name": "a/b", "image": ["a"], "classes": ["b"]}]}, "a name without a slash, found 'a/b'"),
        ({"zero_shot": [{"name": "a", "image": ["a"], "classes": ["b"]}] * 2}, "sets of different names, found a, a"),
        ({"zero_shot": [{"name": "a", "image": [], "classes": ["b"]}]}, "--image: expected a value, or several, found"),
        (
            {"bootstrap": 3, "examples": -1},
            "valid settings, found bootstrap should be 100 or more, not 3; examples should be 0 or more, not -1",
        ),
    ],
)
def test_every_mistake_is_a_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(EvaluateConfig, GOOD | change, where="params.yaml: evaluate")


def test_unknown_index() -> None:
    with pytest.raises(UnknownNameError, match="auto, torch, flat"):
        EvaluateConfig(runs=("r",), image=("i",), text=("t",), out="o", index="flatt")
