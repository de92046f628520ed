"""Figures: well-formed inline SVG, nothing remote, user text escaped, matplotlib's global state untouched."""

import re
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest

from pipeline.evaluate.figures import (
    VARIABLES,
    Interval,
    Series,
    confusion_map,
    forest,
    layer_map,
    plain,
    recall_curves,
    reliability,
    step_curves,
)

HOSTILE = '<script>alert("1")</script> $x_{ & \x00\n😀'


def line(name: str = HOSTILE, role: str = "lead", dashed: bool = False) -> Series:
    return Series(name=name, role=role, x=[1, 5, 10], y=[0.1, 0.2, 0.4], dashed=dashed)  # type: ignore[arg-type]


FIGURES = {
    "forest": lambda: forest(
        [Interval(name=HOSTILE, role="lead", value=0.2, low=0.1, high=0.3)] * 3, chance=0.01, label=HOSTILE
    ),
    "recall": lambda: recall_curves([line(), line("b", "rival"), line("c", "other"), line("d", "other")], line(), "R"),
    "steps": lambda: step_curves([line(dashed=True)], HOSTILE, reference=0.5),
    "reliability": lambda: reliability([line(), line("b")], "zero-shot"),
    "layers": lambda: layer_map(np.random.default_rng(0).random((3, 4)), [HOSTILE] * 3, ["a"] * 4, (1, 2)),
    "flat layers": lambda: layer_map(np.full((1, 1), 0.5), ["a"], ["b"], None),
    "confusion": lambda: confusion_map(np.eye(3, dtype=np.int64) * 4, [HOSTILE, "b", "c"]),
    "large confusion": lambda: confusion_map(np.eye(30, dtype=np.int64), [str(i) for i in range(30)]),
}


@pytest.mark.parametrize("name", list(FIGURES))
def test_inline_svg(name: str) -> None:
    before = dict(mpl.rcParams)
    svg = FIGURES[name]()
    assert dict(mpl.rcParams) == before
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert root.get("aria-label")
    links = {value for node in root.iter() for key, value in node.attrib.items() if key.endswith(("href", "src"))}
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert "<script" not in svg
    assert "<style" not in svg
    assert not re.search(r"url\((?!#)", svg)
    assert not any(colour in svg for colour in VARIABLES)
    assert "var(--" in svg


def test_same_input_same_svg() -> None:
    assert FIGURES["recall"]() == FIGURES["recall"]()


def test_labels_are_cut_and_cleaned() -> None:
    assert plain("a\x00b\nc") == "a b c"
    assert plain("abcdef", 4) == "abc…"
