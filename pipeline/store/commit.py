"""Shards: what is committed, what one must satisfy, and committing it, so that a kill leaves the old state or the new.

Commit: temp file → write → reopen and verify → fsync and sha256 → publish → record, in the same way. What is committed
is read off the commit records and the files' sizes, nothing else: a record whose file is missing or of another size
does not count; the log names the file, and its shard is redone.
"""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from pipeline import files as disk
from pipeline.errors import DamagedStoreError, UserError
from pipeline.storage.contract import Content, Storage, Stored
from pipeline.storage.local import writing
from pipeline.store.formats import FORMATS, ShardFormat, array_xxh3, count_nonfinite
from pipeline.store.key import Features, StorageDtype, storage_dtype
from pipeline.store.manifest import (
    Header,
    ShardFile,
    ShardLayer,
    ids_digest,
    is_record,
    read_record,
    record_of,
    stem,
)

_ERRNO = re.compile(r"errno(?: =)? (\d+)")
_LONGEST_ID = 1024
_log = logging.getLogger(__name__)


# ---- what is committed -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PendingShard:
    """Work to do: items [start, stop) of the data set, for these layers."""

    index: int
    start: int
    stop: int
    layers: tuple[str, ...]


def committed(root: Storage, header: Header) -> dict[int, list[ShardFile]]:
    """Return the committed files of each shard, sorted by shard and name.

    Raises:
        UserError: A record belongs to another key or another cut into shards.
    """
    found: defaultdict[int, list[ShardFile]] = defaultdict(list)
    for record in _records(root, header, ""):
        found[record.index].append(record)
    return dict(sorted(found.items()))


def committed_files(root: Storage, header: Header, index: int) -> list[ShardFile]:
    """Return the committed files of one shard."""
    return _records(root, header, f"{index:05d}-")


def _records(root: Storage, header: Header, prefix: str) -> list[ShardFile]:
    there = root.list(prefix)
    names = [name for name in there if is_record(name)]
    root.fetch(names)
    found = (_sound_record(root, name, header, there) for name in names)
    return [record for record in found if record is not None]


def missing_layers(files: Sequence[ShardFile], layers: Sequence[str]) -> tuple[str, ...]:
    """Return those layers that no file of a shard holds."""
    return tuple(name for name in layers if all(file.layer(name) is None for file in files))


def pending_shards(root: Storage, header: Header, layers: Sequence[str]) -> list[PendingShard]:
    """Return what is left to do for these layers."""
    done = committed(root, header)
    left = ((index, missing_layers(done.get(index, ()), layers)) for index in range(header.shards))
    return [PendingShard(index, *header.span(index), missing) for index, missing in left if missing]


def _sound_record(root: Storage, name: str, header: Header, there: Mapping[str, Stored]) -> ShardFile | None:
    try:
        record = read_record(root, name)
    except FileNotFoundError:
        return None
    except DamagedStoreError as error:
        _warn(f"{error.sentence()}; its shard is computed again")
        return None
    _require_own(root, name, record, header)
    if problem := record.problem(there):
        _warn(f"{root}: expected {record.name} with {record.bytes} bytes, found {problem}; it is computed again")
        return None
    return record


@lru_cache(maxsize=1024)
def _warn(sentence: str) -> None:
    """Log a sentence the first time: records are read many times in a run."""
    _log.warning("%s", sentence)


def _require_own(root: Storage, name: str, record: ShardFile, header: Header) -> None:
    span = header.span(record.index)
    if record.key == header.key.digest() and (record.start, record.stop) == span:
        return
    raise UserError(
        expected=f"commit records of this store's key and of items {span[0]}..{span[1]}",
        found=f"{name}, a record of key {record.key[:12]}… and of items {record.start}..{record.stop}",
        where=str(root),
        remedy="extract to another --out, or start over with --replace",
    )


# ---- what a shard must satisfy ---------------------------------------------------------------------------------------


def check_layers(layers: Sequence[str]) -> None:
    """Check that some layers are named, each once.

    Raises:
        UserError: They are not.
    """
    if not layers or len(set(layers)) != len(layers) or not all(layers):
        raise UserError(expected="layer names, each once", found=", ".join(map(repr, layers)) or "none")


def checked_ids(shard: PendingShard, ids: Sequence[str], rejected: Sequence[tuple[str, str]], where: str) -> None:
    """Check that ids and rejected ids are as many as the shard's items, each once and storable.

    Raises:
        UserError: They are not.
    """
    seen = [*ids, *(name for name, _ in rejected)]
    if len(seen) != shard.stop - shard.start:
        raise UserError(
            expected=f"{shard.stop - shard.start} items in shard {shard.index}",
            found=f"{len(ids)} rows and {len(rejected)} rejected",
            where=where,
        )
    if len(set(seen)) != len(seen):
        twice = next(name for place, name in enumerate(seen) if name in seen[:place])
        raise UserError(expected="every sample id once", found=f"{twice!r} twice in shard {shard.index}", where=where)
    shortest, longest = min(map(len, seen), default=1), max(map(len, seen), default=1)
    if not shortest or longest > _LONGEST_ID or not _storable("\0".join(seen), len(seen)):
        wrong = next(name for name in seen if not 0 < len(name) <= _LONGEST_ID or not _storable(name, 1))
        raise UserError(
            expected=f"sample ids of 1 to {_LONGEST_ID} characters of UTF-8 without NUL",
            found=repr(wrong)[:80],
            where=where,
        )


def _storable(joined: str, count: int) -> bool:
    try:
        return joined.encode().count(b"\0") == max(0, count - 1)
    except UnicodeEncodeError:
        return False


def checked_features(
    shard: PendingShard, rows: int, features: Mapping[str, Features], header: Header, where: str
) -> dict[str, Features]:
    """Return a shard's layers as contiguous arrays [N, D].

    Raises:
        UserError: A layer is missing, or has another shape or dtype.
    """
    missing = [name for name in shard.layers if name not in features]
    if missing:
        raise UserError(
            expected=f"layers {', '.join(shard.layers)} of shard {shard.index}",
            found=f"no {', '.join(missing)}",
            where=where,
        )
    dtype = storage_dtype(header.key.storage_dtype)
    for name in shard.layers:
        values = features[name]
        if values.ndim != 2 or len(values) != rows or not values.shape[1] or values.dtype != dtype.numpy:
            raise UserError(
                expected=f"layer {name} as [{rows}, D] in {dtype.numpy.name} (storage dtype {dtype.name})",
                found=f"{list(values.shape)} in {values.dtype}",
                where=where,
            )
    return {name: np.ascontiguousarray(features[name]) for name in shard.layers}


def check_same_rows(
    files: Sequence[ShardFile], ids: Sequence[str], rejected: Sequence[tuple[str, str]], where: str
) -> None:
    """Check that a later file of a shard has the rows of the earlier ones.

    Raises:
        UserError: An item was rejected in one run and not in the other.
    """
    digest = ids_digest(ids)
    for file in files:
        if file.ids != digest:
            raise UserError(
                expected=f"the {file.rows} rows of shard {file.index} that {file.name} has",
                found=f"{len(ids)} other rows ({len(rejected)} items rejected, {len(file.rejected)} before)",
                where=where,
                remedy="read the same items as the first run did; or extract to another --out, or use --replace",
            )


# ---- committing one --------------------------------------------------------------------------------------------------


def commit_file(
    root: Storage,
    header: Header,
    index: int,
    ids: Sequence[str],
    features: Mapping[str, Features],
    rejected: Sequence[tuple[str, str]],
) -> ShardFile:
    """Write one shard file and its record; features: layer → contiguous [N, D].

    Raises:
        PipelineError: The disk is full, read-only or gives back other bytes; nothing is left behind.
    """
    shard_format, dtype = FORMATS[header.file_format], storage_dtype(header.key.storage_dtype)
    name = stem(index, list(features)) + shard_format.suffix
    with writing(root, name), ThreadPoolExecutor(1) as beside:
        described = beside.submit(describe, features, dtype)
        retire(root, record_of(name))
        with root.temporary(name) as temp:
            write_shard(shard_format, temp, ids, features, dtype)
            layers = described.result()
            digest = beside.submit(disk.file_sha256, temp)
            verify_shard(shard_format, temp, ids, layers)
            disk.sync_file(temp)
            content = Content(digest.result(), temp.stat().st_size)
            root.publish(temp, name, content)
        start, stop = header.span(index)
        record = ShardFile(
            name=name,
            key=header.key.digest(),
            index=index,
            start=start,
            stop=stop,
            rows=len(ids),
            layers=layers,
            ids=ids_digest(ids),
            bytes=content.size,
            sha256=content.sha256,
            rejected=tuple((item, reason) for item, reason in rejected),
        )
        root.put(record_of(name), disk.dump_signed(record.to_json()))
    return record


def describe(features: Mapping[str, Features], dtype: StorageDtype) -> tuple[ShardLayer, ...]:
    """Return what the record says of each layer."""
    return tuple(
        ShardLayer(
            name=name,
            width=values.shape[1],
            dtype=dtype.name,
            xxh3=array_xxh3([values]),
            nonfinite=count_nonfinite(values, dtype),
        )
        for name, values in features.items()
    )


def retire(root: Storage, record: str) -> None:
    """Remove the record of a damaged file before that file is replaced, so that no record describes another."""
    root.delete([record])


def write_shard(
    shard_format: ShardFormat, temp: Path, ids: Sequence[str], features: Mapping[str, Features], dtype: StorageDtype
) -> None:
    """Write the file; whatever the library raises comes out as OSError."""
    try:
        shard_format.write(temp, ids, features, dtype)
    except (RuntimeError, OSError) as error:  # the first is h5py's word for a failed close; errno is in the text
        number = _ERRNO.search(str(error))
        raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))) from error


def verify_shard(shard_format: ShardFormat, path: Path, ids: Sequence[str], layers: Sequence[ShardLayer]) -> None:
    """Reopen a file and compare ids, rows, widths and each layer's xxh3 with what was given.

    Raises:
        OSError: The file is not what was written.
    """
    if shard_format.ids(path) != list(ids):
        raise OSError("the file gives back other ids")
    for layer in layers:
        extents = shard_format.extents(path, layer.name)
        same = extents[:3] == (len(ids), layer.width, layer.dtype)
        if not same or array_xxh3(shard_format.view(path, extents)) != layer.xxh3:
            raise OSError(f"the file gives back other values of layer {layer.name}")
