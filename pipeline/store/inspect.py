"""What is in a store, what takes the space, and why two differ; as data."""

from collections import Counter
from dataclasses import asdict
from typing import Any

from pipeline.storage.contract import Place
from pipeline.storage.open import open_storage
from pipeline.store.cleaning import own_files
from pipeline.store.formats.base import storage_dtype
from pipeline.store.manifest import CLASSES, HEADER, event_files, is_record, shard_index
from pipeline.store.reader import FeatureStore


def ls(place: Place) -> dict[str, Any]:
    """Return what a finished store holds, as JSON data.

    Keys: path, rows, items, rejected, layers [{name, width, dtype, digest, nonfinite}], key, key_digest,
    content_digest, bytes, shards, files, shard_rows, format, splits {split: rows}, provenance, classes (the same of
    the store of class prompts inside, or None).

    Raises:
        UserError: The folder is no store, unfinished or damaged.
    """
    root = open_storage(place)
    store, nested = FeatureStore.open(root), root / CLASSES
    manifest = store.manifest
    return {
        "path": str(root),
        "rows": store.rows,
        "items": manifest.header.items,
        "rejected": manifest.header.items - store.rows,
        "layers": [asdict(layer) for layer in store.layers],
        "key": store.key.to_json(),
        "key_digest": store.key.digest(),
        "content_digest": store.content_digest,
        "bytes": manifest.bytes,
        "shards": manifest.header.shards,
        "files": len(manifest.shards),
        "shard_rows": manifest.header.shard_rows,
        "format": manifest.header.file_format,
        "splits": dict(sorted(Counter(store.samples.split).items())),
        "provenance": dict(manifest.provenance),
        "classes": ls(nested) if HEADER in nested.list() else None,
    }


def du(place: Place) -> dict[str, int]:
    """Return bytes that are stored: "total", "shards", "tables" (all that is no shard), and what is in those.

    "events" are the logs of the runs that made the store, "layer:<name>" the values of each layer.

    Raises:
        UserError: The folder is no store, unfinished or damaged.
    """
    store = FeatureStore.open(place)
    there = store.root.list()
    sizes = {name: there[name].size for name in own_files(store.root)}
    shards = sum(size for name, size in sizes.items() if shard_index(name) is not None and not is_record(name))
    layers = {
        f"layer:{layer.name}": sum(
            file.rows * part.width * storage_dtype(part.dtype).itemsize
            for file in store.manifest.shards
            for part in file.layers
            if part.name == layer.name
        )
        for layer in store.layers
    }
    events = sum(file.stat().st_size for file in event_files(store.root))
    total = sum(sizes.values()) + events
    return {"total": total, "shards": shards, "tables": total - shards, "events": events, **layers}


def diff(first: Place, second: Place) -> list[str]:
    """Return in sentences why two finished stores differ; empty if ids, values and keys are the same.

    Raises:
        UserError: A folder is no store, unfinished or damaged.
    """
    a, b = FeatureStore.open(first), FeatureStore.open(second)
    sentences = [
        f"key: {field} is {ours} in the first and {theirs} in the second"
        for field, ours, theirs in a.key.differences(b.key)
    ]
    sentences += _diff_ids(a, b)
    sentences += _diff_layers(a, b)
    if sentences or a.content_digest != b.content_digest:
        sentences += _diff_provenance(a, b)
    return sentences


def _diff_ids(a: FeatureStore, b: FeatureStore) -> list[str]:
    if a.manifest.ids == b.manifest.ids:
        return []
    sentences = [f"rows: {a.rows} in the first and {b.rows} in the second"] if a.rows != b.rows else []
    ours, theirs = set(a.ids), set(b.ids)
    for names, where in ((sorted(ours - theirs), "first"), (sorted(theirs - ours), "second")):
        if names:
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            sentences.append(f"ids: {len(names)} only in the {where} ({shown})")
    return sentences or ["ids: the same ids in another order"]


def _diff_layers(a: FeatureStore, b: FeatureStore) -> list[str]:
    ours, theirs = ({layer.name: layer for layer in store.layers} for store in (a, b))
    sentences = [f"layer {name}: only in the first" for name in ours if name not in theirs]
    sentences += [f"layer {name}: only in the second" for name in theirs if name not in ours]
    for name in ours:
        if name not in theirs:
            continue
        x, y = ours[name], theirs[name]
        if (x.width, x.dtype) != (y.width, y.dtype):
            sentences.append(f"layer {name}: {x.width} {x.dtype} in the first and {y.width} {y.dtype} in the second")
        elif x.digest != y.digest and a.manifest.ids == b.manifest.ids:
            sentences.append(f"layer {name}: other values for the same ids")
    return sentences


def _diff_provenance(a: FeatureStore, b: FeatureStore) -> list[str]:
    ours, theirs = a.manifest.provenance, b.manifest.provenance
    names = sorted((ours.keys() | theirs.keys()) - {"created"})
    return [
        f"provenance: {name} is {ours.get(name)!r} in the first and {theirs.get(name)!r} in the second"
        for name in names
        if ours.get(name) != theirs.get(name)
    ]
