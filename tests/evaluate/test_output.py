"""A report is replaced as a whole: killed or interrupted at any step, never files of two evaluations side by side."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.evaluate import output
from pipeline.evaluate.output import MARK, READY, WRITING, finish, fresh_output

FILES = (MARK, "report.html", "per_query.parquet", "plots/history.csv", "metrics/cca.json")


def write(folder: Path, generation: str, files: tuple[str, ...] = FILES) -> None:
    with fresh_output(folder) as new:
        for name in files:
            (new / name).parent.mkdir(exist_ok=True)
            (new / name).write_text(generation)


def shown(folder: Path) -> dict[str, str]:
    """Return what a reader sees: the files that are not hidden."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_text() for name, path in found.items() if not name.startswith(".")}


def in_a_child(action: Callable[[], None]) -> int:
    """Run something in a forked process and return its wait status."""
    child = os.fork()
    if not child:
        try:
            action()
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1]


def steps(monkeypatch: pytest.MonkeyPatch, stop_at: int, how: Callable[[], None]) -> None:
    """Let `how` happen before the step of that number."""
    count = [0]

    def watched(step: Callable[..., None]) -> Callable[..., None]:
        def inner(*paths: Path) -> None:
            count[0] += 1
            if count[0] == stop_at:
                how()
            step(*paths)

        return inner

    for name in ("remove", "publish", "sync_file", "sync_folder"):
        monkeypatch.setattr(output, name, watched(getattr(output, name)))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_the_new_files_replace_the_old_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, "old", (*FILES, "metrics/gone.json", "differences.csv"))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "plots" / "own.csv").write_text("mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / MARK).write_text("another report")
    write(tmp_path, "new")
    kept = {"notes.txt": "mine", "plots/own.csv": "mine", f"photos/{MARK}": "another report"}
    assert shown(tmp_path) == dict.fromkeys(FILES, "new") | kept
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_killed_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old or new, or a part of one of them; whole wherever metrics.json stands; the next run finishes it."""
    seen, step = set[str](), 0
    while True:
        step += 1
        folder = tmp_path / str(step)
        write(folder, "old")
        with monkeypatch.context() as patched:
            steps(patched, step, die)
            status = in_a_child(lambda folder=folder: write(folder, "new"))  # type: ignore[misc]
        files = shown(folder)
        assert len(set(files.values())) <= 1, f"step {step}: {files}"
        if MARK in files:
            assert set(files) == set(FILES)
        seen |= set(files.values())
        decided = (folder / READY).exists() or not (folder / WRITING).exists()
        finish(folder)
        assert shown(folder) == dict.fromkeys(FILES, "new" if decided else "old")
        write(folder, "third")
        assert shown(folder) == dict.fromkeys(FILES, "third")
        if os.WIFEXITED(status):
            break
    assert seen == {"old", "new"}
    assert step > 15


def test_an_interrupt_at_every_step_leaves_one_whole_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, step, interrupted = set[str](), 0, True
    while interrupted:
        step += 1
        folder = tmp_path / str(step)
        write(folder, "old")
        with monkeypatch.context() as patched:
            steps(patched, step, interrupt)
            try:
                write(folder, "new")
                interrupted = False
            except KeyboardInterrupt:
                pass
        files = shown(folder)
        assert set(files) == set(FILES)
        assert len(set(files.values())) == 1
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
        seen |= set(files.values())
    assert seen == {"old", "new"}


def test_an_error_while_writing_leaves_the_old_report(tmp_path: Path) -> None:
    write(tmp_path, "old")
    with pytest.raises(FileNotFoundError, match="no-such-folder"):
        write(tmp_path, "new", (MARK, "no-such-folder/deep/file.csv"))
    assert shown(tmp_path) == dict.fromkeys(FILES, "old")
