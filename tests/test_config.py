"""Filling settings: every mistake at once, each with its path."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from pipeline.config import build, load_params
from pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float
    steps: int = 3

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise UserError(expected="a rate of 0 or more", found=str(self.rate))


@dataclass(frozen=True, kw_only=True)
class Outer:
    out: Path
    inner: Inner
    names: tuple[str, ...] = ()
    kind: Literal["a", "b"] = "a"
    limit: int | None = None
    mode: str | float = "auto"
    weights: dict[str, float] = field(default_factory=dict)
    pair: tuple[Inner, ...] = ()


def test_everything_is_converted() -> None:
    values = {
        "out": "x/y",
        "inner": {"rate": 1},
        "names": ["p", "q"],
        "kind": "b",
        "limit": None,
        "mode": 2,
        "weights": {"a": 1},
        "pair": [{"rate": 0.5}],
    }
    built = build(Outer, values, where="test")
    assert built == Outer(
        out=Path("x/y"),
        inner=Inner(rate=1.0),
        names=("p", "q"),
        kind="b",
        mode=2.0,
        weights={"a": 1.0},
        pair=(Inner(rate=0.5),),
    )


def test_all_mistakes_are_told_at_once() -> None:
    values = {"inner": {"rate": "fast", "step": 1}, "kind": "c", "limit": True, "names": [1]}
    with pytest.raises(UserError, match="valid settings") as caught:
        build(Outer, values, where="params.yaml: align")
    sentence = str(caught.value)
    assert sentence.startswith("params.yaml: align: expected valid settings")
    for part in (
        "out is missing",
        "inner.step is unknown (known: rate, steps)",
        "inner.rate should be float, not 'fast'",
        "kind should be one of a, b, not 'c'",
        "limit should be int, not True",
        "names[0] should be str, not 1",
    ):
        assert part in sentence, part


def test_a_value_that_the_class_refuses_keeps_its_path() -> None:
    with pytest.raises(UserError, match=r"inner: expected a rate of 0 or more, found -1.0"):
        build(Outer, {"out": "x", "inner": {"rate": -1}}, where="test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "expected YAML"),
        ("- 1", "expected a mapping of sections, found list"),
        ("!!python/name:os.system", "YAML"),
    ],
)
def test_params_that_are_no_mapping(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_params(tmp_path / "params.yaml")


def test_params_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run the command in a checkout"):
        load_params(tmp_path / "params.yaml")
