"""Remove a store, and nothing but the store, so that another may take its folder."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipeline.errors import UserError
from pipeline.store.commit import writing
from pipeline.store.distant import withdraw_all
from pipeline.store.layout import (
    CLASSES,
    EVENTS,
    HEADER,
    MANIFEST,
    event_files,
    is_lock,
    is_record,
    is_temp,
    lease_of,
    own_files,
)
from pipeline.store.lease_files import sightings
from pipeline.store.locks import alone, is_locked
from pipeline.store.manifest import read_header, read_manifest, read_record


def replace_store(path: Path) -> list[Path]:
    """Remove the files of a store, and of the store of class prompts inside it; anything else in the folder stays.

    A folder that does not exist, or that holds none of a store's files, is left as it is.

    Returns:
        What was removed. The folder itself goes too if it is then empty.

    Raises:
        UserError: Files are named like a store's but nothing shows that they are one's; or a live process writes there.
        PipelineError: A file cannot be removed.
    """
    if not path.is_dir():
        return []
    files = own_files(path)
    removed = replace_store(path / CLASSES) if files and (path / CLASSES).is_dir() else []
    if not files:
        return removed
    _require_own(path)
    with writing(path / MANIFEST), _idle(path, files):
        withdraw_all(path, _order)
        for file in sorted(files, key=_order):
            file.unlink(missing_ok=True)
        for log in event_files(path):
            log.unlink(missing_ok=True)
        with suppress(OSError):  # none there, or somebody else's files in it
            (path / EVENTS).rmdir()
        if not any(path.iterdir()):
            path.rmdir()
    return [*removed, *files]


def _order(file: Path) -> int:
    """Manifest and records go first and the header last: killed on the way, what is left is no finished store."""
    return {MANIFEST: 0, HEADER: 3}.get(file.name, 1 if is_record(file.name) else 2)


def _require_own(root: Path) -> None:
    if any(_is_sound(path) for path in own_files(root)):
        return
    if all(is_lock(file.name) or is_temp(file.name) or lease_of(file.name) for file in own_files(root)):
        return
    raise UserError(
        expected="a feature store to replace",
        found="files named like a store's, and no sound store.json, manifest.json or commit record",
        where=str(root),
        remedy="remove the folder yourself if nothing in it is needed",
    )


@contextmanager
def _idle(root: Path, files: list[Path]) -> Iterator[None]:
    """Keep writers away; refuse where there is one."""
    with ExitStack() as stack:
        header = root / HEADER
        busy = [file.name for file in files if (is_lock(file.name) or is_temp(file.name)) and is_locked(file)]
        busy += [seen.path.name for seen in sightings(root) if not seen.dead]
        if header.is_file() and not stack.enter_context(alone(header)):
            busy.append(HEADER)
        if busy:
            raise UserError(
                expected="a store that nobody writes",
                found=f"{busy[0]} held by a live process",
                where=str(root),
                remedy="wait for the other run, or end it",
            )
        yield


def _is_sound(path: Path) -> bool:
    try:
        if path.name == HEADER:
            read_header(path.parent)
        elif path.name == MANIFEST:
            read_manifest(path.parent)
        elif is_record(path.name):
            read_record(path)
        else:
            return False
    except (UserError, KeyError, TypeError):
        return False
    return True
