"""What is in a store, what takes the space, why two differ, and whether all is as it was committed; as data.

`verify`, cheap: each text (store.json, manifest.json, commit records) is byte for byte what was signed; header and
records are the manifest's; every shard file is there with its size. Values, ids, samples.parquet, rejected.csv are not
read. Deep: besides, sha256 of every shard file and side table, ids and xxh3 of each (shard, layer), each layer's
digest, the content digest, and that the samples are those of the rows. Any flipped byte is found.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import DamagedStoreError, PipelineError, UserError
from pipeline.files import file_sha256
from pipeline.storage.contract import Place, Storage, Stored
from pipeline.storage.local import open_storage
from pipeline.store.events import event_files
from pipeline.store.formats import format_of
from pipeline.store.key import storage_dtype
from pipeline.store.manifest import (
    CLASSES,
    HEADER,
    MANIFEST,
    REJECTED,
    SAMPLES,
    Manifest,
    ShardFile,
    content_digest,
    ids_digest,
    is_record,
    own_files,
    read_header,
    read_manifest,
    read_record,
    record_of,
    shard_index,
)
from pipeline.store.reader import FeatureStore, require_finished
from pipeline.store.shards import layer_shards, stream_digest


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
    for name in [name for name in ours if name in theirs]:
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


# ---- as it was committed ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """One thing that is not as committed: the file (relative to the store) and a sentence."""

    file: str
    sentence: str


def verify(place: Place, *, deep: bool = False) -> list[Problem]:
    """Return what is wrong with a store and the store of class prompts inside it; empty if nothing is.

    Raises:
        UserError: The folder is no store.
        UnfinishedStoreError: The store is not finished.
    """
    root = open_storage(place)
    problems = _verify_one(root, require_finished(root), deep)
    nested = root / CLASSES
    if HEADER in nested.list():
        problems += [Problem(f"{CLASSES}/{each.file}", each.sentence) for each in _verify_nested(nested, deep)]
    return problems


def _verify_nested(root: Storage, deep: bool) -> list[Problem]:
    try:
        return verify(root, deep=deep)
    except PipelineError as error:
        return [Problem(MANIFEST, error.sentence())]


def _verify_one(root: Storage, there: Mapping[str, Stored], deep: bool) -> list[Problem]:
    problems: list[Problem] = []
    with _noting(problems, MANIFEST, "a manifest"):
        manifest = read_manifest(root)
    if problems:
        return problems
    root.fetch(record_of(shard.name) for shard in manifest.shards)
    with _noting(problems, HEADER, "a header"):
        if read_header(root) != manifest.header:
            problems.append(Problem(HEADER, f"{HEADER}: expected the manifest's header, found another"))
    for shard in manifest.shards:
        problems += _check_shard(root, shard, there) or (_check_deeply(root, shard) if deep else [])
    if deep and not problems:
        problems += _check_content(root, manifest)
    if deep:
        problems += _check_tables(root, manifest)
    return problems


@contextmanager
def _noting(problems: list[Problem], file: str, expected: str) -> Iterator[None]:
    """Note a file that is missing, or damaged, in place of the exception."""
    try:
        yield
    except FileNotFoundError:
        problems.append(Problem(file, f"{file}: expected {expected}, found no file"))
    except UserError as error:
        problems.append(Problem(error.name if isinstance(error, DamagedStoreError) else file, error.sentence()))


def _check_shard(root: Storage, shard: ShardFile, there: Mapping[str, Stored]) -> list[Problem]:
    problems = []
    if problem := shard.problem(there):
        problems.append(Problem(shard.name, f"{shard.name}: expected {shard.bytes} bytes, found {problem}"))
    name = record_of(shard.name)
    with _noting(problems, name, "a commit record"):
        if read_record(root, name) != shard:
            problems.append(Problem(name, f"{name}: expected the manifest's record, found another"))
    return problems


def _check_deeply(root: Storage, shard: ShardFile) -> list[Problem]:
    problems: list[Problem] = []
    with _noting(problems, shard.name, "a shard"):
        root.fetch({shard.name: shard.content}, again=True)
        path = root.file(shard.name, shard.content)
        if (found := file_sha256(path)) != shard.sha256:
            problems.append(Problem(shard.name, f"{shard.name}: expected sha256 {shard.sha256}, found {found}"))
        elif ids_digest(format_of(path).ids(path)) != shard.ids:
            problems.append(Problem(shard.name, f"{shard.name}: expected the committed ids, found others"))
    return problems


def _check_content(root: Storage, manifest: Manifest) -> list[Problem]:
    problems: list[Problem] = []
    for layer in manifest.layers:
        with _noting(problems, MANIFEST, "a shard"):
            digest = stream_digest(root, layer_shards(manifest.shards, layer.name))
            if digest != layer.digest:
                sentence = f"layer {layer.name}: expected sha256 {layer.digest}, found {digest}"
                problems.append(Problem(MANIFEST, sentence))
        if problems:
            return problems
    if content_digest(manifest.rows, manifest.ids, manifest.layers) != manifest.content_digest:
        problems.append(Problem(MANIFEST, f"{MANIFEST}: its content digest is not that of its layers"))
    return problems


def _check_tables(root: Storage, manifest: Manifest) -> list[Problem]:
    problems = []
    for name, expected in ((SAMPLES, manifest.samples), (REJECTED, manifest.rejected)):
        try:
            found = file_sha256(root.file(name))
        except FileNotFoundError:
            found = "no file"
        if found != expected and not (name == SAMPLES and found == manifest.next_samples):
            problems.append(Problem(name, f"{name}: expected sha256 {expected}, found {found}"))
    if not problems:
        with _noting(problems, SAMPLES, "a table"):
            _ = FeatureStore(root, manifest).samples
    return problems
