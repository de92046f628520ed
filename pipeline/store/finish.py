"""Finish a store: check the samples, digest every layer by streaming, write side tables and, last, the manifest.

Where a manifest is there already and the samples change, it first names the new table beside the old one: killed
between any two steps, the store opens with the one or with the other.
"""

import csv
import hashlib
import io
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.errors import DamagedStoreError, UnfinishedStoreError, UserError
from pipeline.files import dump_signed, file_sha256
from pipeline.store.digests import content_digest, ids_digest
from pipeline.store.distant import publish, publish_over
from pipeline.store.layout import MANIFEST, REJECTED, SAMPLES
from pipeline.store.manifest import Header, LayerInfo, Manifest, ShardFile, read_manifest
from pipeline.store.records import committed, missing_layers
from pipeline.store.samples import Samples, samples_bytes
from pipeline.store.sources import first_files, layer_sources, stream_digest

_log = logging.getLogger(__name__)


def finish(
    root: Path, header: Header, asked: Sequence[str], samples: Samples, provenance: Mapping[str, Any]
) -> Manifest:
    """Write side tables and manifest; the caller holds the store's lock.

    An existing manifest of the same content is kept as it is, so that two processes may finish one after the other.
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
    _put_samples(root, old, table)
    put_if_changed(root / REJECTED, rejected)
    if old is not None and replace(old, provenance=manifest.provenance) == manifest:
        return old
    publish_over(root / MANIFEST, dump_signed(manifest.to_json()))
    return manifest


def refresh(root: Path, header: Header, samples: Samples) -> Manifest:
    """Rewrite samples.parquet and the manifest's digest of it; the caller holds the store's lock."""
    if not (root / MANIFEST).exists():
        raise UnfinishedStoreError(len(committed(root, header)), header.shards, str(root))
    old = read_manifest(root)
    _checked_ids(root, old.header, old.shards, samples)
    table = samples_bytes(samples)
    manifest = replace(old, samples=_sha256(table), next_samples="")
    _put_samples(root, old, table)
    if manifest != old:
        publish_over(root / MANIFEST, dump_signed(manifest.to_json()))
    return manifest


def old_manifest(root: Path) -> Manifest | None:
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


def put_if_changed(path: Path, data: bytes) -> None:
    """Write a small file atomically unless it holds these bytes already."""
    if not path.is_file() or path.read_bytes() != data:
        publish(path, data)


def _put_samples(root: Path, old: Manifest | None, table: bytes) -> None:
    if old is not None and _sha256(table) not in (old.samples, old.next_samples):
        path = root / SAMPLES
        found = file_sha256(path) if path.is_file() else ""
        now = found if found == old.next_samples and found else old.samples
        publish_over(root / MANIFEST, dump_signed(replace(old, samples=now, next_samples=_sha256(table)).to_json()))
    put_if_changed(root / SAMPLES, table)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _require_complete(
    root: Path, header: Header, done: Mapping[int, Sequence[ShardFile]], asked: Sequence[str]
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


def _checked_ids(root: Path, header: Header, files: Sequence[ShardFile], samples: Samples) -> list[str]:
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
    root: Path, files: Sequence[ShardFile], names: Sequence[str], old: Manifest | None
) -> tuple[LayerInfo, ...]:
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return tuple(pool.map(lambda name: _layer(root, files, name, old), names))


def _layer(root: Path, files: Sequence[ShardFile], name: str, old: Manifest | None) -> LayerInfo:
    sources = layer_sources(files, name)
    known = next((layer for layer in old.layers if layer.name == name), None) if old else None
    if known is not None and old is not None and layer_sources(old.shards, name) == sources:
        return known
    kinds = {(source.layer.width, source.layer.dtype) for source in sources}
    if len(kinds) > 1:
        widths = ", ".join(f"{width} {dtype}" for width, dtype in sorted(kinds))
        raise UserError(expected=f"layer {name} of one width", found=widths, where=str(root))
    width, dtype = kinds.pop()
    nonfinite = sum(source.layer.nonfinite for source in sources)
    digest = stream_digest(root, sources)
    return LayerInfo(name=name, width=width, dtype=dtype, digest=digest, nonfinite=nonfinite)
