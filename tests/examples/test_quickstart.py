"""The notebook of the first steps: it runs as it stands, and what it shows was shown by these very cells."""

import json
from pathlib import Path

import pytest

from tests.examples.notebook import QUICKSTART, cells_of, execute


def shown(outputs: list[dict[str, object]], kind: str) -> str:
    """Return the text of a kind in a cell's outputs."""
    parts = (output["data"] if "data" in output else {kind: output["text"]} for output in outputs)
    return "".join("".join(part.get(kind, [])) for part in parts)  # type: ignore[attr-defined]


def test_the_notebook_was_run_and_shows_pictures() -> None:
    notebook = json.loads(QUICKSTART.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    cells = cells_of(QUICKSTART)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    pictures = [shown(cell["outputs"], "text/html").count("<img ") for cell in cells]
    assert [number for number in pictures if number] == [5, 4]
    assert QUICKSTART.stat().st_size < 100_000


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    """What can be told on any machine is as it stands there: which picture comes first, how much was found, caveats."""
    found = execute(QUICKSTART, tmp_path)
    for cell, outputs in zip(cells_of(QUICKSTART), found, strict=True):
        for kind in ("text/html", "text/plain"):
            assert bool(shown(outputs, kind)) == bool(shown(cell["outputs"], kind))
        if "model.search" in "".join(cell["source"]):
            before, now = (shown(each, "text/plain").partition(" (")[0] for each in (cell["outputs"], outputs))
            assert now == before
    assert "A small test set" in "".join(shown(outputs, "text/plain") for outputs in found)
