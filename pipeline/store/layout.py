"""File names inside a store, and which files are a store's own."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.files import canonical

HEADER = "store.json"
MANIFEST = "manifest.json"
SAMPLES = "samples.parquet"
REJECTED = "rejected.csv"
CLASSES = "classes"
EVENTS = ".events"

_STEM = re.compile(r"(\d{5,})-[0-9a-f]{8}")
_SHARD = re.compile(rf"{_STEM.pattern}\.(?:h5|parquet)")
_RECORD = re.compile(rf"{_STEM.pattern}\.json")
_TEMP = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
_LOCK = re.compile(r"\.(?:store|gc|\d{5,})\.lock")
_LEASE = re.compile(r"\.(store|\d{5,})\.(\d+)\.lease")
_EVENTS = re.compile(r"[\w-]+\.jsonl")


def stem(index: int, layers: Sequence[str]) -> str:
    """Return the file name, without its ending, of a shard that holds these layers."""
    return f"{index:05d}-{hashlib.sha256(canonical(list(layers))).hexdigest()[:8]}"


def lock_name(what: int | str) -> str:
    """Return the lock file of a shard (its index) or of the whole store ("store")."""
    return f".{what:05d}.lock" if isinstance(what, int) else f".{what}.lock"


def lease_name(what: int | str, generation: int) -> str:
    """Return the lease file of a shard (its index) or of the whole store ("store")."""
    return f".{what:05d}.{generation}.lease" if isinstance(what, int) else f".{what}.{generation}.lease"


def lease_of(name: str) -> tuple[int | str, int] | None:
    """Return what a lease file is of, and its generation; None for any other name."""
    match = _LEASE.fullmatch(name)
    return (int(match[1]) if match[1].isdigit() else match[1], int(match[2])) if match else None


def temp_prefix(name: str) -> str:
    """Return how a temp file of `name` begins."""
    return f".{name}."


def shard_index(name: str) -> int | None:
    """Return the index of a shard file or commit record, None for any other name."""
    match = _SHARD.fullmatch(name) or _RECORD.fullmatch(name)
    return int(match[1]) if match else None


def is_record(name: str) -> bool:
    """Say whether a name is a commit record's."""
    return _RECORD.fullmatch(name) is not None


def is_temp(name: str) -> bool:
    """Say whether a name is a temp file's."""
    return _TEMP.fullmatch(name) is not None


def temp_of(name: str) -> int | str:
    """Return what a temp file belongs to: the shard's index, or "store"."""
    index = shard_index(name[1:].rsplit(".", 2)[0])
    return "store" if index is None else index


def is_lock(name: str) -> bool:
    """Say whether a name is a lock file's."""
    return _LOCK.fullmatch(name) is not None


def is_own(name: str) -> bool:
    """Say whether a store would give a file this name."""
    fixed = name in (HEADER, MANIFEST, SAMPLES, REJECTED)
    return fixed or shard_index(name) is not None or is_temp(name) or is_lock(name) or lease_of(name) is not None


def own_files(root: Path) -> list[Path]:
    """Return the plain files of a folder that are a store's own by name, sorted; no folders, no links followed."""
    return sorted(path for path in root.iterdir() if is_own(path.name) and path.is_file() and not path.is_symlink())


def event_files(root: Path) -> list[Path]:
    """Return the event logs of a store, sorted; they are no part of what it holds."""
    folder = root / EVENTS
    if not folder.is_dir() or folder.is_symlink():
        return []
    return sorted(path for path in folder.iterdir() if _EVENTS.fullmatch(path.name) and not path.is_symlink())
