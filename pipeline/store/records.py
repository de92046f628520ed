"""Which (shard, layer) are committed: read off the commit records and the files' sizes, nothing else.

A record whose file is missing or of another size does not count; the log names the file, and its shard is redone.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipeline.errors import DamagedStoreError, UserError
from pipeline.store.distant import pull_records, size_of
from pipeline.store.layout import is_record, shard_index
from pipeline.store.manifest import Header, ShardFile, read_record

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PendingShard:
    """Work to do: items [start, stop) of the data set, for these layers."""

    index: int
    start: int
    stop: int
    layers: tuple[str, ...]


def committed(root: Path, header: Header) -> dict[int, list[ShardFile]]:
    """Return the committed files of each shard, sorted by shard and name.

    Raises:
        UserError: A record belongs to another key or another cut into shards.
    """
    pull_records(root)
    found: defaultdict[int, list[ShardFile]] = defaultdict(list)
    names = sorted((shard_index(path.name) or 0, path) for path in root.iterdir() if is_record(path.name))
    for index, path in names:
        record = _sound_record(path, header)
        if record is not None:
            found[index].append(record)
    return dict(found)


def committed_files(root: Path, header: Header, index: int) -> list[ShardFile]:
    """Return the committed files of one shard."""
    pull_records(root, index)
    paths = sorted(path for path in root.glob(f"{index:05d}-*.json") if is_record(path.name))
    return [record for path in paths if (record := _sound_record(path, header)) is not None]


def missing_layers(files: Sequence[ShardFile], layers: Sequence[str]) -> tuple[str, ...]:
    """Return those layers that no file of a shard holds."""
    return tuple(name for name in layers if all(file.layer(name) is None for file in files))


def pending_shards(root: Path, header: Header, layers: Sequence[str]) -> list[PendingShard]:
    """Return what is left to do for these layers."""
    done = committed(root, header)
    left = ((index, missing_layers(done.get(index, ()), layers)) for index in range(header.shards))
    return [PendingShard(index, *header.span(index), missing) for index, missing in left if missing]


def file_problem(root: Path, record: ShardFile) -> str:
    """Return what is wrong with a committed file at a glance: missing, or its size; "" = nothing."""
    size = size_of(root / record.name)
    if size is None:
        return "no file"
    return "" if size == record.bytes else f"{size} bytes"


def _sound_record(path: Path, header: Header) -> ShardFile | None:
    try:
        record = read_record(path)
    except FileNotFoundError:
        return None
    except DamagedStoreError as error:
        _warn(f"{error.sentence()}; its shard is computed again")
        return None
    _require_own(path, record, header)
    problem = file_problem(path.parent, record)
    if problem:
        _warn(f"{path.parent}: expected {record.name} with {record.bytes} bytes, found {problem}; it is computed again")
        return None
    return record


@lru_cache(maxsize=1024)
def _warn(sentence: str) -> None:
    """Log a sentence the first time: records are read many times in a run."""
    _log.warning("%s", sentence)


def _require_own(path: Path, record: ShardFile, header: Header) -> None:
    span = header.span(record.index)
    if record.key == header.key.digest() and (record.start, record.stop) == span:
        return
    raise UserError(
        expected=f"commit records of this store's key and of items {span[0]}..{span[1]}",
        found=f"{path.name}, a record of key {record.key[:12]}… and of items {record.start}..{record.stop}",
        where=str(path.parent),
        remedy="extract to another --out, or start over with --replace",
    )
