"""Files in a store that nothing needs any more: found first, removed only when asked."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.remote.binding import address, bound
from pipeline.store.atomic import stale_temp_files
from pipeline.store.commit import writing
from pipeline.store.layout import HEADER, MANIFEST, is_lock, is_temp, lease_of, lock_name, own_files, shard_index
from pipeline.store.lease_files import leased_elsewhere, sightings
from pipeline.store.locks import alone, is_locked, lock
from pipeline.store.manifest import read_manifest


@dataclass(frozen=True)
class Garbage:
    """A file that nothing needs: its name, bytes, and why."""

    name: str
    bytes: int
    reason: str


def garbage(path: Path) -> list[Garbage]:
    """Return what `gc` would remove.

    Temp, lock and lease files of dead processes; and, in a finished store without a live writer, shard files and commit
    records that are not in the manifest, such as layers whose extraction was given up. Event logs stay.

    Raises:
        UserError: The folder is no store, or its manifest is damaged.
    """
    _require_store(path)
    with alone(path / HEADER) as free:
        return _find(path, idle=free and not leased_elsewhere(path))


def _find(path: Path, *, idle: bool) -> list[Garbage]:
    why = dict.fromkeys(stale_temp_files(path), "temp file of a dead process")
    locks = [file for file in own_files(path) if is_lock(file.name) and not is_locked(file)]
    why |= dict.fromkeys(locks, "lock file of a dead process")
    why |= {seen.path: "lease of a dead process" for seen in sightings(path) if seen.dead}
    if idle and (path / MANIFEST).exists():
        why |= dict.fromkeys(_not_in_manifest(path), "not in the manifest")
    return [Garbage(file.name, file.stat().st_size, reason) for file, reason in why.items() if file.exists()]


def gc(path: Path, *, delete: bool = False) -> list[Garbage]:
    """Return the files that nothing needs, and remove them if `delete`.

    Raises:
        UserError: As for `garbage`.
        PipelineError: A file cannot be removed.
    """
    if not delete:
        return garbage(path)
    with writing(path / HEADER):
        _require_store(path)
        with lock(path / lock_name("store")), alone(path / HEADER) as free:
            idle = free and not leased_elsewhere(path)
            found = [each for each in _find(path, idle=idle) if each.name != lock_name("store")]
            for each in found:
                _remove(path, each)
    return found


def _require_store(path: Path) -> None:
    if bound(path):
        remedy = "remove objects with the store's own tools, such as `aws s3 rm`, when nobody writes"
        raise UserError(expected="a folder to clean", found="a URL", where=address(path), remedy=remedy)
    if not (path / HEADER).is_file():
        raise UserError(expected="a feature store", found="no store.json", where=str(path))


def _not_in_manifest(root: Path) -> list[Path]:
    known = {record.name for record in read_manifest(root).shards}
    known |= {Path(name).with_suffix(".json").name for name in known}
    return [file for file in own_files(root) if shard_index(file.name) is not None and file.name not in known]


def _remove(root: Path, each: Garbage) -> None:
    leased = lease_of(each.name)
    index = leased[0] if leased else shard_index(each.name)
    if index == "store":  # its lock is held here
        (root / each.name).unlink(missing_ok=True)
        return
    held = each.name if is_lock(each.name) or is_temp(each.name) else lock_name("gc" if index is None else index)
    with lock(root / held, block=False) as free:
        if free:
            (root / each.name).unlink(missing_ok=True)
