"""What may go: files that nothing needs (found, then removed if asked), and a whole store."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.files import alone, is_locked
from pipeline.storage.contract import Place, Storage
from pipeline.storage.leases import STORE, is_lock, leased_elsewhere, leased_thing, lock_name, sightings
from pipeline.storage.local import is_temp, is_url, open_storage, stale_temp_files, writing
from pipeline.store.events import EVENTS, event_files
from pipeline.store.manifest import (
    CLASSES,
    HEADER,
    MANIFEST,
    is_passing,
    is_record,
    own_files,
    read_header,
    read_manifest,
    read_record,
    record_of,
    shard_index,
)

# ---- what nothing needs ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Garbage:
    """A file that nothing needs: its name, bytes, and why."""

    name: str
    bytes: int
    reason: str


def gc(place: Place, *, delete: bool = False) -> list[Garbage]:
    """Return the files that nothing needs, and remove them if `delete`.

    Temp, lock and lease files of dead processes; and, in a finished store without a live writer, shard files and commit
    records that are not in the manifest, such as layers whose extraction was given up. Event logs stay.

    Raises:
        UserError: The folder is no store, or its manifest is damaged, or it is at a URL.
        PipelineError: A file cannot be removed.
    """
    root = open_storage(place)
    _require_folder_of_store(root)
    if not delete:
        with alone(root.here / HEADER) as free:
            return _find(root, idle=free and not leased_elsewhere(root))
    with writing(root, HEADER), root.lock(lock_name(STORE)), alone(root.here / HEADER) as free:
        idle = free and not leased_elsewhere(root)
        found = [each for each in _find(root, idle=idle) if each.name != lock_name(STORE)]
        for each in found:
            _remove(root, each)
    return found


def _require_folder_of_store(root: Storage) -> None:
    if is_url(str(root)):
        remedy = "remove objects with the store's own tools, such as `aws s3 rm`, when nobody writes"
        raise UserError(expected="a folder to clean", found="a URL", where=str(root), remedy=remedy)
    if not (root.here / HEADER).is_file():
        raise UserError(expected="a feature store", found="no store.json", where=str(root))


def _find(root: Storage, *, idle: bool) -> list[Garbage]:
    names = own_files(root)
    why = {path.name: "temp file of a dead process" for path in stale_temp_files(root)}
    locks = [name for name in names if is_lock(name) and not is_locked(root.here / name)]
    why |= dict.fromkeys(locks, "lock file of a dead process")
    why |= {seen.name: "lease of a dead process" for seen in sightings(root) if seen.dead}
    if idle and MANIFEST in names:
        known = {record.name for record in read_manifest(root).shards}
        known |= {record_of(name) for name in known}
        loose = [name for name in names if shard_index(name) is not None and name not in known]
        why |= dict.fromkeys(loose, "not in the manifest")
    found = ((name, root.stat(name), reason) for name, reason in why.items())
    return [Garbage(name, stored.size, reason) for name, stored, reason in found if stored is not None]


def _remove(root: Storage, each: Garbage) -> None:
    leased, index = leased_thing(each.name), shard_index(each.name)
    thing = leased if leased is not None else "gc" if index is None else index
    path = root.here / each.name
    if thing == STORE:  # its lock is held here
        path.unlink(missing_ok=True)
        return
    held = each.name if is_lock(each.name) or is_temp(each.name) else lock_name(thing)
    with root.lock(held, block=False) as free:
        if free:
            path.unlink(missing_ok=True)


# ---- a whole store ---------------------------------------------------------------------------------------------------


def replace_store(place: Place) -> list[str]:
    """Remove the files of a store, and of the store of class prompts inside it; anything else in the folder stays.

    A folder that does not exist, or that holds none of a store's files, is left as it is.

    Returns:
        The addresses of what was removed. The folder itself goes too if it is then empty.

    Raises:
        UserError: Files are named like a store's but nothing shows that they are one's; or a live process writes there.
        PipelineError: A file cannot be removed.
    """
    root = open_storage(place)
    names = [] if root.absent() else own_files(root)
    if not names:
        return []
    removed = replace_store(root / CLASSES)
    _require_own(root, names)
    with writing(root, MANIFEST), _idle(root, names):
        root.delete(sorted(names, key=_order))
        for log in event_files(root):
            log.unlink(missing_ok=True)
        with suppress(OSError):  # none there, or somebody else's files in it
            (root.here / EVENTS).rmdir()
        if not is_url(str(root)) and not any(root.here.iterdir()):
            root.here.rmdir()
    return [*removed, *(str(root / name) for name in names)]


def holds_no_row(place: Place) -> bool:
    """Tell whether a store is what a failed run left: no row of any item in it, and no class prompts beside it."""
    root = open_storage(place)
    names = own_files(root)
    try:
        empty = not any(read_record(root, name).rows for name in names if is_record(name))
    except UserError:  # damaged: nobody can say
        return False
    return empty and MANIFEST not in names and not own_files(root / CLASSES)


def _order(name: str) -> int:
    """Manifest and records go first and the header last: killed on the way, what is left is no finished store."""
    return {MANIFEST: 0, HEADER: 3}.get(name, 1 if is_record(name) else 2)


def _require_own(root: Storage, names: list[str]) -> None:
    if all(is_passing(name) for name in names) or any(_is_sound(root, name) for name in names):
        return
    raise UserError(
        expected="a feature store to replace",
        found="files named like a store's, and no sound store.json, manifest.json or commit record",
        where=str(root),
        remedy="remove the folder yourself if nothing in it is needed",
    )


def _is_sound(root: Storage, name: str) -> bool:
    try:
        if name == HEADER:
            read_header(root)
        elif name == MANIFEST:
            read_manifest(root)
        elif is_record(name):
            read_record(root, name)
        else:
            return False
    except (FileNotFoundError, UserError, KeyError, TypeError):
        return False
    return True


@contextmanager
def _idle(root: Storage, names: list[str]) -> Iterator[None]:
    """Keep writers away; refuse where there is one."""
    with ExitStack() as stack:
        header = root.here / HEADER
        held = [name for name in names if (is_lock(name) or is_temp(name)) and is_locked(root.here / name)]
        busy = [f"{name} held by a live process" for name in held]
        leases, near = [seen.name for seen in sightings(root) if not seen.dead], root.shares_locks
        busy += [f"{name} held by a live process" if near else f"the lease {name}" for name in leases]
        if header.is_file() and not stack.enter_context(alone(header)):
            busy.append(f"{HEADER} held by a live process")
        if busy:
            remedy = (
                "wait for the other run, or end it"
                if near
                else "wait for the other run; where it died, remove that object"
            )
            raise UserError(expected="a store that nobody writes", found=busy[0], where=str(root), remedy=remedy)
        yield
