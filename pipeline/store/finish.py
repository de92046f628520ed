"""Finish a store: check the samples, digest every layer by streaming, write side tables and, last, the manifest.

Where a manifest is there already and the samples change, it first names the new table beside the old one: killed
between any two steps, the store opens with the one or with the other. The manifest is written over the one that was
seen; where another machine was faster, all is decided anew.
"""

import csv
import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import DamagedStoreError, PipelineError, UnfinishedStoreError, UserError
from pipeline.files import dump_signed, file_sha256
from pipeline.storage.contract import Storage, Stored
from pipeline.store.commit import committed, missing_layers
from pipeline.store.manifest import (
    MANIFEST,
    REJECTED,
    SAMPLES,
    Header,
    LayerInfo,
    Manifest,
    ShardFile,
    content_digest,
    ids_digest,
    read_manifest,
)
from pipeline.store.samples import Samples, samples_bytes
from pipeline.store.shards import first_files, layer_shards, stream_digest

_ROUNDS = 5
"""How often the manifest is decided anew because another machine has just written it."""
_log = logging.getLogger(__name__)


class OvertakenError(PipelineError):
    """Another machine wrote the manifest while this one was about to: look again and decide anew."""


def agreed(root: Storage, action: Callable[[Stored | None], Manifest]) -> Manifest:
    """Do something that ends by writing over the manifest that was seen, again where another machine was faster."""
    for _ in range(_ROUNDS):
        try:
            return action(root.list().get(MANIFEST))
        except OvertakenError:
            continue
    return action(root.list().get(MANIFEST))


def finish(
    root: Storage,
    header: Header,
    asked: Sequence[str],
    samples: Samples,
    provenance: Mapping[str, Any],
    seen: Stored | None,
) -> Manifest:
    """Write side tables and manifest in the place of the one that was seen; the caller holds the store's lock.

    An existing manifest of the same content is kept as it is, so that two processes may finish one after the other.

    Raises:
        OvertakenError: Another machine has written the manifest since.
    """
    done = committed(root, header)
    _require_complete(root, header, done, asked)
    names = _complete_layers(header, done, asked)
    files = tuple(file for index in range(header.shards) for file in _needed(done[index], names))
    ids = _checked_ids(root, header, files, samples)
    old = old_manifest(root)
    layers = _layers(root, files, names, old)
    table, rejected = samples_bytes(samples), rejected_bytes(files)
    manifest = Manifest(
        header=header,
        shards=files,
        layers=layers,
        rows=len(ids),
        ids=ids_digest(ids),
        content_digest=content_digest(
            len(ids), ids_digest(ids), [(each.name, each.width, each.dtype, each.digest) for each in layers]
        ),
        samples=_sha256(table),
        rejected=_sha256(rejected),
        provenance={"created": datetime.now(UTC).isoformat(timespec="seconds"), **provenance},
    )
    seen = _put_samples(root, old, table, seen)
    put_if_changed(root, REJECTED, rejected)
    if old is not None and replace(old, provenance=manifest.provenance) == manifest:
        return old
    _put_manifest(root, manifest, seen)
    return manifest


def refresh(root: Storage, header: Header, samples: Samples, seen: Stored | None) -> Manifest:
    """Rewrite samples.parquet and the manifest's digest of it; the caller holds the store's lock."""
    if seen is None:
        raise UnfinishedStoreError(len(committed(root, header)), header.shards, str(root))
    old = read_manifest(root)
    _checked_ids(root, old.header, old.shards, samples)
    table = samples_bytes(samples)
    manifest = replace(old, samples=_sha256(table), next_samples="")
    seen = _put_samples(root, old, table, seen)
    if manifest != old:
        _put_manifest(root, manifest, seen)
    return manifest


def old_manifest(root: Storage) -> Manifest | None:
    """Return the manifest of an earlier run; None if there is none or it is damaged (the log says so)."""
    try:
        return read_manifest(root)
    except FileNotFoundError:
        return None
    except DamagedStoreError as error:
        _log.warning("%s; the manifest is written again", error.sentence())
        return None


def rejected_bytes(files: Iterable[ShardFile]) -> bytes:
    """Return rejected.csv: sample_id and reason, each once, in the data set's order of shards."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["sample_id", "reason"])
    table.writerows(pair for file in first_files(files) for pair in file.rejected)
    return text.getvalue().encode()


def put_if_changed(root: Storage, name: str, data: bytes) -> None:
    """Write a small file atomically unless it holds these bytes already."""
    if _found_sha256(root, name) != _sha256(data):
        root.put(name, data)


def _put_samples(root: Storage, old: Manifest | None, table: bytes, seen: Stored | None) -> Stored | None:
    """Write the samples' table, named by the manifest before that; return the manifest that is there then."""
    if old is not None and _sha256(table) not in (old.samples, old.next_samples):
        found = _found_sha256(root, SAMPLES)
        now = found if found == old.next_samples and found else old.samples
        _put_manifest(root, replace(old, samples=now, next_samples=_sha256(table)), seen)
        seen = root.stat(MANIFEST)
    put_if_changed(root, SAMPLES, table)
    return seen


def _put_manifest(root: Storage, manifest: Manifest, seen: Stored | None) -> None:
    if not root.put_over(MANIFEST, dump_signed(manifest.to_json()), seen):
        raise OvertakenError(
            expected=f"{MANIFEST} as it was last read",
            found="another one, time and again",
            where=str(root),
            remedy="run again when no other machine finishes this store",
        )


def _found_sha256(root: Storage, name: str) -> str:
    try:
        return file_sha256(root.file(name))
    except FileNotFoundError:
        return ""


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _require_complete(
    root: Storage, header: Header, done: Mapping[int, Sequence[ShardFile]], asked: Sequence[str]
) -> None:
    complete = sum(bool(files) and not missing_layers(files, asked) for files in done.values())
    if complete < header.shards:
        raise UnfinishedStoreError(complete, header.shards, str(root))


def _complete_layers(header: Header, done: Mapping[int, Sequence[ShardFile]], asked: Sequence[str]) -> tuple[str, ...]:
    found = dict.fromkeys(layer.name for files in done.values() for file in files for layer in file.layers)
    order = dict.fromkeys((*header.layer_names, *asked, *found))
    return tuple(
        name for name in order if name in found and all(not missing_layers(files, [name]) for files in done.values())
    )


def _needed(files: Sequence[ShardFile], names: Sequence[str]) -> list[ShardFile]:
    """Return the files of a shard that hold a wanted layer which no file before them holds."""
    left, needed = set(names), []
    for file in files:
        held = {layer.name for layer in file.layers} & left
        if held:
            needed.append(file)
            left -= held
    return needed


def _checked_ids(root: Storage, header: Header, files: Sequence[ShardFile], samples: Samples) -> list[str]:
    names = samples.sample_id
    if len(names) != header.items or len(set(names)) != header.items:
        found = f"{len(names)} samples, {len(set(names))} of them different"
        raise UserError(expected=f"{header.items} samples, each once", found=found, where=str(root))
    ids: list[str] = []
    for file in first_files(files):
        rejected = {name for name, _ in file.rejected}
        own = [name for name in names[file.start : file.stop] if name not in rejected]
        if ids_digest(own) != file.ids:
            raise UserError(
                expected=f"the sample ids that shard {file.index} was committed with",
                found=f"other ids for items {file.start}..{file.stop}",
                where=str(root),
                remedy="finish with the data set that the shards were computed from",
            )
        ids += own
    return ids


def _layers(
    root: Storage, files: Sequence[ShardFile], names: Sequence[str], old: Manifest | None
) -> tuple[LayerInfo, ...]:
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return tuple(pool.map(lambda name: _layer(root, files, name, old), names))


def _layer(root: Storage, files: Sequence[ShardFile], name: str, old: Manifest | None) -> LayerInfo:
    shards = layer_shards(files, name)
    known = next((layer for layer in old.layers if layer.name == name), None) if old else None
    if known is not None and old is not None and layer_shards(old.shards, name) == shards:
        return known
    kinds = {(shard.layer.width, shard.layer.dtype) for shard in shards}
    if len(kinds) > 1:
        widths = ", ".join(f"{width} {dtype}" for width, dtype in sorted(kinds))
        raise UserError(expected=f"layer {name} of one width", found=widths, where=str(root))
    width, dtype = kinds.pop()
    nonfinite = sum(shard.layer.nonfinite for shard in shards)
    digest = stream_digest(root, shards)
    return LayerInfo(name=name, width=width, dtype=dtype, digest=digest, nonfinite=nonfinite)
