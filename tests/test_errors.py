"""Programs end in one sentence and the right exit code, the three stage scripts too."""

import errno
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.commands.output import at_least_one, writable_file, writable_folder
from pipeline.errors import PipelineError, UnknownNameError, UserError, exit_with_sentence

ROOT = Path(__file__).resolve().parent.parent

CASES: list[tuple[BaseException, int, str]] = [
    (UserError(expected="a", found="b", where="c", remedy="d"), 2, "Error: c: expected a, found b; d.\n"),
    (PipelineError(expected="a", found="b"), 1, "Error: expected a, found b.\n"),
    (UserError(expected="a", found="what a\nlibrary said."), 2, "Error: expected a, found what a library said.\n"),
    (PermissionError(errno.EACCES, "Permission denied", "x/y"), 2, "x/y: expected a file or folder that can be used"),
    (
        IsADirectoryError(errno.EISDIR, "Is a directory", b"x"),
        2,
        "Error: x: expected a file or folder that can be",
    ),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "x"), 2, "found No such file or directory.\n"),
    (OSError(errno.ENOSPC, "No space left on device", "x"), 1, "Error: x: expected free space, found No space left on"),
    (OSError(errno.ENOTTY, "Inappropriate ioctl", "x"), 1, "Error: x: expected a file or folder that can be used"),
    (OSError(errno.ENAMETOOLONG, "File name too long", "x"), 2, "Error: x: expected a file or folder that can be"),
    (MemoryError(), 1, "Error: expected more memory, found Cannot allocate memory; free some"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "Error: expected more memory"),
    (OSError("h5py, errno = 28, error message = ..."), 1, "Error: expected free space, found No space left"),
    (KeyboardInterrupt(), 130, "Interrupted: what was finished stays; run the same command again to go on.\n"),
]


@pytest.mark.parametrize(("error", "code", "message"), CASES)
def test_one_sentence_and_an_exit_code(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop, exit_with_sentence():
        raise error
    captured = capsys.readouterr()
    assert stop.value.code == code
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError("h5py's own words, no errno")])
def test_what_nobody_foresaw_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), exit_with_sentence():
        raise error


def test_a_sentence_is_bounded() -> None:
    error = UserError(expected="a column", found=", ".join(f"column_{number}" for number in range(100_000)), where="x")
    assert len(error.sentence()) < 5000
    assert re.search(r"column_0, .*… \(1,\d{3},\d{3} characters\)$", error.sentence())


def test_names_are_listed_the_closest_is_proposed() -> None:
    sentence = UnknownNameError("fruit", "aple", ["pear", "apple"], "--fruit").sentence()
    assert sentence == "--fruit: expected a known fruit (pear, apple), found 'aple'; did you mean 'apple'?"


def test_places_to_write_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    assert writable_folder(tmp_path / "new" / "deep", "--out") == tmp_path / "new" / "deep"
    assert writable_file(tmp_path / "new" / "x.png", "--show") == tmp_path / "new" / "x.png"
    assert not (tmp_path / "new").exists()
    for path in ("file", "file/below", "dangling"):
        with pytest.raises(UserError, match=r"a folder to write into, found the file .*; choose another --out"):
            writable_folder(tmp_path / path, "--out")
    with pytest.raises(UserError, match="expected a file to write, found a folder"):
        writable_file(tmp_path, "--show")
    with pytest.raises(UserError, match="--top: expected 1 or more, found 0"):
        at_least_one(0, "--top")


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said by the system's answer, which is always yes to root."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=rf"--out .*new: expected .*, found that {tmp_path} may not be written; allow"):
        writable_folder(tmp_path / "new", "--out")


def program(*words: str, cwd: Path, **options: Any) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = (sys.executable, *words)
    return subprocess.run(words, cwd=cwd, env=environment, text=True, check=False, stderr=subprocess.PIPE, **options)


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    """What `pipeline data ... | head` does when head has seen enough."""
    reading, writing = os.pipe()
    os.close(reading)
    script = "from pipeline.errors import exit_with_sentence\nwith exit_with_sentence():\n    print('x' * 10)\n"
    try:
        result = program("-c", script, cwd=tmp_path, stdout=writing)
    finally:
        os.close(writing)
    assert (result.returncode, result.stderr) == (141, "")


PARAMS: dict[str, Any] = {
    "image_encoder": "pixels",
    "text_encoder": "words",
    "encoders": {"pixels": "package:nothing", "words": "package:nothing"},
    "datasets": ["shapes"],
    "extract": {"layers": "all"},
    "methods": ["cca"],
    "align": {"dataset": "shapes"},
    "evaluate": {"split": "test"},
}
STAGES = {
    "extract": ["--dataset", "shapes", "--encoder", "pixels"],
    "align": ["--method", "cca"],
    "evaluate": [],
}


def stage_cases() -> Iterator[tuple[str, dict[str, Any] | None, str]]:
    yield "extract", None, "Error: expected a file params.yaml, found none"
    yield "extract", PARAMS, "Error: data/0_raw/shapes: expected a raw data set's folder, found none; make one with"
    yield "align", {**PARAMS, "align": {"datset": "shapes"}}, "Error: params.yaml: align: expected dataset with a name"
    yield "align", PARAMS, "Error: data/1_features/shapes/pixels: expected a feature store's folder, found no such"
    yield "evaluate", {**PARAMS, "evaluate": {"splt": "test"}}, "Error: params.yaml: evaluate: expected valid settings"
    yield "evaluate", PARAMS, "Error: data/2_projectors/cca: expected a finished run's folder, found no such folder"


@pytest.mark.parametrize(("stage", "params", "message"), list(stage_cases()))
def test_a_stage_says_what_the_command_says(
    tmp_path: Path, stage: str, params: dict[str, Any] | None, message: str
) -> None:
    if params is not None:
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    script = str(ROOT / "stages" / f"{stage}.py")
    result = program(script, *STAGES[stage], cwd=tmp_path, stdout=subprocess.PIPE)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == (["params.yaml"] if params is not None else [])
