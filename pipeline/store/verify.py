"""Check a store against what was committed, quickly or byte by byte.

Cheap: each text (store.json, manifest.json, commit records) is byte for byte what was signed; header and records are
the manifest's; every shard file is there with its size. Values, ids, samples.parquet, rejected.csv are not read.
Deep: besides, sha256 of every shard file and side table, ids and xxh3 of each (shard, layer), each layer's digest, the
content digest, and that the samples are those of the rows. Any flipped byte is found.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import DamagedStoreError, PipelineError, UserError
from pipeline.files import file_sha256
from pipeline.storage.contract import Place, Storage, Stored
from pipeline.storage.open import open_storage
from pipeline.store.commit import file_problem
from pipeline.store.formats import FORMATS
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
    read_header,
    read_manifest,
    read_record,
    record_of,
)
from pipeline.store.opening import require_finished
from pipeline.store.reader import FeatureStore
from pipeline.store.shards import layer_shards, stream_digest


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
    try:
        manifest = read_manifest(root)
    except UserError as error:
        return [_problem(MANIFEST, error)]
    root.fetch(record_of(shard.name) for shard in manifest.shards)
    problems = _check_header(root, manifest)
    for shard in manifest.shards:
        found = _check_shard(root, shard, there) or (_check_deeply(root, shard) if deep else [])
        problems += found
    if deep and not problems:
        problems += _check_content(root, manifest)
    if deep:
        problems += _check_tables(root, manifest)
    return problems


def _problem(file: str, error: PipelineError) -> Problem:
    return Problem(error.name if isinstance(error, DamagedStoreError) else file, error.sentence())


def _check_header(root: Storage, manifest: Manifest) -> list[Problem]:
    try:
        header = read_header(root)
    except FileNotFoundError:
        return [Problem(HEADER, f"{HEADER}: expected a header, found no file")]
    except UserError as error:
        return [_problem(HEADER, error)]
    same = header == manifest.header
    return [] if same else [Problem(HEADER, f"{HEADER}: expected the manifest's header, found another")]


def _check_shard(root: Storage, shard: ShardFile, there: Mapping[str, Stored]) -> list[Problem]:
    problems = []
    problem = file_problem(shard, there)
    if problem:
        problems.append(Problem(shard.name, f"{shard.name}: expected {shard.bytes} bytes, found {problem}"))
    name = record_of(shard.name)
    try:
        if read_record(root, name) != shard:
            problems.append(Problem(name, f"{name}: expected the manifest's record, found another"))
    except FileNotFoundError:
        problems.append(Problem(name, f"{name}: expected a commit record, found no file"))
    except UserError as error:
        problems.append(_problem(name, error))
    return problems


def _check_deeply(root: Storage, shard: ShardFile) -> list[Problem]:
    try:
        root.fetch({shard.name: shard.content}, again=True)
        path = root.file(shard.name, shard.content)
    except DamagedStoreError as error:
        return [_problem(shard.name, error)]
    found = file_sha256(path)
    if found != shard.sha256:
        return [Problem(shard.name, f"{shard.name}: expected sha256 {shard.sha256}, found {found}")]
    shard_format = next(each for each in FORMATS.values() if each.suffix == path.suffix)
    if ids_digest(shard_format.ids(path)) != shard.ids:
        return [Problem(shard.name, f"{shard.name}: expected the committed ids, found others")]
    return []


def _check_content(root: Storage, manifest: Manifest) -> list[Problem]:
    parts = []
    for layer in manifest.layers:
        try:
            digest = stream_digest(root, layer_shards(manifest.shards, layer.name))
        except DamagedStoreError as error:
            return [_problem(error.name, error)]
        if digest != layer.digest:
            return [Problem(MANIFEST, f"layer {layer.name}: expected sha256 {layer.digest}, found {digest}")]
        parts.append((layer.name, layer.width, layer.dtype, digest))
    if content_digest(manifest.rows, manifest.ids, parts) != manifest.content_digest:
        return [Problem(MANIFEST, f"{MANIFEST}: its content digest is not that of its layers")]
    return []


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
        try:
            _ = FeatureStore(root, manifest).samples
        except DamagedStoreError as error:
            problems.append(_problem(SAMPLES, error))
    return problems
