"""What users and their scripts build on stays: options, exit codes, JSON keys, and every number of a tiny project.

Where one of these is meant to change, `python -m tests.contract.record` writes the files anew, and the difference
belongs into CHANGELOG.md. Prose (help, sentences) is no part of it.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.contract import exits, numbers, shapes
from tests.contract.record import load
from tests.contract.surface import surface

SURFACE: dict[str, Any] = load("surface")


def test_the_commands_are_the_same() -> None:
    assert sorted(surface()) == sorted(SURFACE)


@pytest.mark.parametrize("command", SURFACE)
def test_a_command_takes_the_same(command: str) -> None:
    found = surface()[command]
    assert found["arguments"] == SURFACE[command]["arguments"]
    assert found["options"] == SURFACE[command]["options"]


def test_exit_codes(fresh: Path) -> None:
    expected = load("exits")
    assert sorted(exits.CALLS) == sorted(expected)
    assert exits.codes(fresh) == expected


def test_json_documents_have_the_same_keys_and_types(own: Path) -> None:
    """Documents one by one, so that a failure names the first that differs and shows the difference alone."""
    found, expected = shapes.documents(own), load("shapes")
    assert sorted(found) == sorted(expected)
    for name, document in expected.items():
        assert found[name] == document, name


def test_numbers_to_the_last_digit(fresh: Path) -> None:
    """Exactly on the machine that they were written down on (see `numbers.machine`), to 1e-6 elsewhere."""
    found, expected = numbers.measured(fresh), load("numbers")
    assert sorted(found["metrics"]) == sorted(expected["metrics"])
    close = found["machine"] != expected["machine"]
    for run, metrics in expected["metrics"].items():
        assert found["metrics"][run] == (pytest.approx(metrics, rel=0, abs=1e-6, nan_ok=True) if close else metrics), (
            run
        )
