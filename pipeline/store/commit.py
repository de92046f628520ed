"""Commit one shard file: temp file → write → reopen and verify → fsync and sha256 → rename → record, the same way.

Killed at any step, a store has the old state or the new one; readers never see a part.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pipeline import files
from pipeline.errors import PipelineError, UserError
from pipeline.files import dump_signed, file_sha256
from pipeline.runtime import free_disk
from pipeline.store import atomic
from pipeline.store.digests import array_xxh3, ids_digest
from pipeline.store.distant import publish, push_shard, withdraw
from pipeline.store.dtypes import StorageDtype, count_nonfinite, storage_dtype
from pipeline.store.formats.base import Features, ShardFormat
from pipeline.store.formats.table import file_format
from pipeline.store.layout import stem
from pipeline.store.manifest import Header, ShardFile, ShardLayer
from pipeline.words import size

_ERRNO = re.compile(r"errno(?: =)? (\d+)")


def commit_file(
    root: Path,
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
    shard_format, dtype = file_format(header.file_format), storage_dtype(header.key.storage_dtype)
    target = root / (stem(index, list(features)) + shard_format.suffix)
    record_path = target.with_suffix(".json")
    with writing(target), ThreadPoolExecutor(1) as beside:
        described = beside.submit(describe, features, dtype)
        retire(record_path)
        with atomic.temp_file(target) as temp:
            write_shard(shard_format, temp, ids, features, dtype)
            layers = described.result()
            digest = beside.submit(file_sha256, temp)
            verify_shard(shard_format, temp, ids, layers)
            files.sync_file(temp)
            sha256, size = digest.result(), temp.stat().st_size
            files.publish(temp, target)
            files.sync_folder(root)
        push_shard(target, sha256)
        start, stop = header.span(index)
        record = ShardFile(
            name=target.name,
            key=header.key.digest(),
            index=index,
            start=start,
            stop=stop,
            rows=len(ids),
            layers=layers,
            ids=ids_digest(ids),
            bytes=size,
            sha256=sha256,
            rejected=tuple((name, reason) for name, reason in rejected),
        )
        publish(record_path, dump_signed(record.to_json()))
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


def retire(record: Path) -> None:
    """Remove the record of a damaged file before that file is replaced, so that no record describes another."""
    withdraw(record)
    if record.exists():
        record.unlink()
        files.sync_folder(record.parent)


def write_shard(
    shard_format: ShardFormat, temp: Path, ids: Sequence[str], features: Mapping[str, Features], dtype: StorageDtype
) -> None:
    """Write the file; whatever the library raises comes out as OSError."""
    try:
        shard_format.write(temp, ids, features, dtype)
    except (
        RuntimeError,
        OSError,
    ) as error:  # h5py's word for a failed close; errno is in the text
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
        views = shard_format.view(path, extents, storage_dtype(layer.dtype))
        if (extents.rows, extents.width) != (len(ids), layer.width) or array_xxh3(views) != layer.xxh3:
            raise OSError(f"the file gives back other values of layer {layer.name}")


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn an OSError into one sentence that says what, where and how much space is free.

    Raises:
        UserError: In its place, where the folder is a file or may not be written.
        PipelineError: In its place, for any other failure of the disk.
    """
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise UserError(
            expected=f"a folder to write {target.name} into",
            found=os.strerror(error.errno) if error.errno else str(error),
            where=str(target.parent),
            remedy="choose another folder, or allow writing there",
        ) from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
        raise PipelineError(
            expected=f"to write {target.name}",
            found=reason,
            where=str(target.parent),
            remedy=f"{_free(target.parent)}; make room or allow writing there and run again: what is committed stays",
        ) from error


def _free(folder: Path) -> str:
    try:
        return f"{size(free_disk(folder))} are free"
    except OSError:
        return "the free space is unknown"
