"""Run the command line in this process, as the entry point does: exit code, standard output, standard error."""

import io
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from pipeline import cli


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Return standard output as the one JSON document that it must be."""
        return json.loads(self.out)


def pipeline(*words: object) -> Outcome:
    """Run `pipeline` with these words."""
    return outcome_of(cli.main, "pipeline", *words)


def outcome_of(main: Callable[[], None], program: str, *words: object) -> Outcome:
    """Run a program's entry point with these words."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    before = sys.argv
    sys.argv = [program, *map(str, words)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = before
    return Outcome(code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue())


def done(*words: object) -> Outcome:
    """Run a command that must succeed."""
    result = pipeline(*words)
    assert result.code == 0, f"{words}\n{result.out}\n{result.err}"
    return result


def refused(*words: object) -> str:
    """Run a command that must be refused: exit code 2, nothing on standard output; return the one sentence."""
    return refusal(pipeline(*words), words)


def refusal(result: Outcome, words: tuple[object, ...]) -> str:
    """Return the one sentence of a command that was refused: exit code 2, nothing on standard output."""
    assert result.code == 2, f"{words}: {result.code}\n{result.out}\n{result.err}"
    assert not result.out
    *before, last = result.err.splitlines()
    assert last.startswith("Error: ")
    assert last.endswith(".")
    assert not [line for line in before if "rror" in line or "Traceback" in line], result.err
    return last
