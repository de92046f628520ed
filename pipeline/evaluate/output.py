"""A report's files change as a whole: those of the last report or those of the new one, never some of each.

with fresh_output(folder) as new: write into `new`; at the end its files take the place of the old ones.

The new files are written into a hidden folder beside the old ones and renamed to `.report.ready` when they are whole:
from then on the new report counts. Then the old files go, `metrics.json` first, and the new ones come, `metrics.json`
last: where it stands, everything stands. A process that is killed in between leaves a part of one report at most, and
the next evaluation into that folder finishes the change before it does anything else. Whatever else lies in the folder
is left alone.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.files import lock, publish, sync_file, sync_folder

LOCK, WRITING, READY, MOVING = ".report.lock", ".report.writing", ".report.ready", ".report.moving"
MARK = "metrics.json"
"""Comes last and goes first: where it stands, the report is whole."""
OWN = (
    MARK,
    "metrics.csv",
    "metrics.md",
    "metrics/*.json",
    "differences.csv",
    "duplicates.csv",
    "per_query.parquet",
    "plots/recall_at_k.csv",
    "plots/history.csv",
    "plots/layer_pairs.csv",
    "plots/reliability.csv",
    "probes.csv",
    "report.html",
    "report.md",
    "tables/*.csv",
)
"""What a report is made of; anything else in its folder is somebody else's."""


@contextmanager
def fresh_output(folder: Path) -> Iterator[Path]:
    """Yield an empty folder whose files become the report of `folder` when all of them are written.

    An error or an interrupt while they are written leaves the old report as it was; one that comes later waits until
    the new report is in its place. Two evaluations into one folder take turns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / LOCK):
        finish(folder)
        writing = folder / WRITING
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir()
        try:
            yield writing
            _sync(writing)
            publish(writing, folder / READY)
        except BaseException:
            shutil.rmtree(writing, ignore_errors=True)
            _settle(folder)
            raise
        _settle(folder)


def finish(folder: Path) -> None:
    """Finish a change that was cut short; nothing where there is none. Repeating it does no harm."""
    ready, moving = folder / READY, folder / MOVING
    if ready.is_dir() and not moving.is_dir():
        for old in _own_files(folder):
            remove(old)
        sync_folder(folder)
        publish(ready, moving)
    if moving.is_dir():
        for new in sorted(_files(moving), key=lambda path: path.name == MARK):
            target = folder / new.relative_to(moving)
            target.parent.mkdir(exist_ok=True)
            publish(new, target)
        sync_folder(folder)
        shutil.rmtree(moving)


def remove(path: Path) -> None:
    """Remove an old file; a step of its own, so that tests can kill the process at each."""
    path.unlink(missing_ok=True)


def _settle(folder: Path) -> None:
    """Finish the change; an interrupt in the middle is heeded afterwards."""
    try:
        finish(folder)
    except KeyboardInterrupt:
        finish(folder)
        raise


def _own_files(folder: Path) -> list[Path]:
    found = [path for pattern in OWN for path in sorted(folder.glob(pattern)) if path.is_file() or path.is_symlink()]
    return sorted(found, key=lambda path: path != folder / MARK)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sync(folder: Path) -> None:
    for path in _files(folder):
        sync_file(path)
    for inner in [path for path in folder.rglob("*") if path.is_dir()]:
        sync_folder(inner)
    sync_folder(folder)
