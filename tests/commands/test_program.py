"""The command as a whole: help, version, wrong words, the doctor, closed pipes, terminals that know no Unicode."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from pipeline import __version__
from pipeline.cli import app
from pipeline.commands import doctor
from tests.commands.project import IMAGE, REPORT, RUN
from tests.commands.running import done, pipeline

ROOT = Path(__file__).resolve().parents[2]


def commands(group: typer.Typer = app) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command that there is."""

    def walk(command: object, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        below = getattr(command, "commands", None)
        if below is None:
            yield words
            return
        for name, inner in below.items():
            if not inner.hidden:
                yield from walk(inner, (*words, name))

    return walk(typer.main.get_command(group), ())


def test_the_commands_of_the_contract_are_there() -> None:
    names = {" ".join(words) for words in commands()}
    assert names >= {"data openmoji", "data import", "extract", "layers", "align", "evaluate", "compare", "search"}
    assert names >= {f"store {name}" for name in ("ls", "verify", "diff", "du", "gc", "status", "convert", "ingest")}
    assert "doctor" in names


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_helps_with_an_example(words: tuple[str, ...]) -> None:
    text = " ".join(done(*words, "--help").out.split())
    assert text.startswith(f"Usage: pipeline {' '.join(words)}")
    assert re.search(rf"Example: pipeline {' '.join(words)}\b", text)


def test_the_list_of_commands_is_whole_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the work, each with a whole sentence."""
    monkeypatch.setenv("COLUMNS", "80")
    listed = done("--help").out.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed][:7] == [
        "doctor", "data", "extract", "layers", "align", "evaluate", "compare"
    ]  # fmt: skip
    assert all(line.endswith(".") and "..." not in line and len(line) <= 80 for line in listed)


def test_a_missing_faiss_is_not_advised_beside_the_other() -> None:
    assert doctor._note("faiss-gpu", {"faiss-cpu": "1.12", "faiss-gpu": None}) == "never beside faiss-cpu"
    assert doctor._note("faiss-gpu", {"faiss-cpu": None, "faiss-gpu": None}) == "pip install 'fewpairs[gpu]'"
    assert doctor._note("torch", {}) == "needed"


def test_version_and_nothing() -> None:
    assert done("--version").out == f"fewpairs {__version__}\n"
    result = pipeline()
    assert result.code in (0, 2)
    assert "Usage: pipeline" in result.out + result.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serach"], "No such command 'serach'"),
        (["store", "list"], "No such command 'list'"),
        (["extract", "--layer"], "No such option"),
        (["extract", "--batch-size", "many"], "Invalid value for '--batch-size'"),
        (["search"], "Missing argument"),
        (["store", "ingest", "x.npy", "--out", "x"], "Missing option '--modality'"),
        (["data", "openmoji"], "Missing option '--out'"),
    ],
)
def test_wrong_words(words: list[str], message: str) -> None:
    result = pipeline(*words)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert "Traceback" not in result.err


def test_doctor() -> None:
    result = pipeline("doctor", "--json")
    found = result.json()
    assert {"packages", "python", "platform", "device", "search", "free_disk", "problems"} <= set(found)
    assert result.code == (1 if found["problems"] else 0)
    versions = {entry["package"]: entry["version"] for entry in found["packages"]}
    assert versions["torch"]
    shown = pipeline("doctor")
    assert shown.code == result.code
    assert "torch " in shown.out


def program(*words: str, cwd: Path, encoding: str = "utf-8", stdout: int = subprocess.PIPE) -> tuple[int, bytes, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    script = [sys.executable, "-c", "from pipeline.cli import main; main()", *words]
    result = subprocess.run(script, cwd=cwd, env=environment, stdout=stdout, stderr=subprocess.PIPE, check=False)
    return result.returncode, result.stdout or b"", result.stderr.decode()


def test_it_is_called_pipeline_whatever_runs_it(tmp_path: Path) -> None:
    code, _, said = program("search", cwd=tmp_path)
    assert code == 2
    assert "Usage: pipeline search" in said
    assert "Try 'pipeline search --help'" in said or "Try 'pipeline search -h'" in said


def test_a_closed_pipe_is_quiet(project: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        code, _, said = program("store", "ls", IMAGE, cwd=project, stdout=writing)
    finally:
        os.close(writing)
    assert (code, said) == (141, "")


def test_a_terminal_without_unicode(project: Path) -> None:
    code, shown, said = program("store", "du", IMAGE, cwd=project, encoding="latin-1")
    assert (code, said) == (0, "")
    assert b"\\u2500" in shown


def test_no_file_is_touched_by_looking(project: Path) -> None:
    for words in (["store", "ls", IMAGE], ["compare", REPORT, REPORT], ["search", RUN, "red"]):
        pipeline(*words)
