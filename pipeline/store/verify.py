"""Check a store against what was committed, quickly or byte by byte.

Cheap: each text (store.json, manifest.json, commit records) is byte for byte what was signed; header and records are
the manifest's; every shard file is there with its size. Values, ids, samples.parquet, rejected.csv are not read.
Deep: besides, sha256 of every shard file and side table, ids and xxh3 of each (shard, layer), each layer's digest, the
content digest, and that the samples are those of the rows. Any flipped byte is found.
"""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DamagedStoreError, PipelineError, UserError
from pipeline.files import file_sha256
from pipeline.store.digests import content_digest, ids_digest
from pipeline.store.distant import bring_shards, pull_records
from pipeline.store.formats.table import file_format
from pipeline.store.layout import CLASSES, HEADER, MANIFEST, REJECTED, SAMPLES
from pipeline.store.manifest import Manifest, ShardFile, read_header, read_manifest, read_record
from pipeline.store.opening import require_finished
from pipeline.store.reader import FeatureStore
from pipeline.store.records import file_problem
from pipeline.store.sources import layer_sources, stream_digest


@dataclass(frozen=True)
class Problem:
    """One thing that is not as committed: the file (relative to the store) and a sentence."""

    file: str
    sentence: str


def verify(path: Path, *, deep: bool = False) -> list[Problem]:
    """Return what is wrong with a store and the store of class prompts inside it; empty if nothing is.

    Raises:
        UserError: The folder is no store.
        UnfinishedStoreError: The store is not finished.
    """
    require_finished(path)
    problems = _verify_one(path, deep)
    nested = path / CLASSES
    if (nested / HEADER).exists():
        problems += [Problem(f"{CLASSES}/{each.file}", each.sentence) for each in _verify_nested(nested, deep)]
    return problems


def _verify_nested(path: Path, deep: bool) -> list[Problem]:
    try:
        return verify(path, deep=deep)
    except PipelineError as error:
        return [Problem(MANIFEST, error.sentence())]


def _verify_one(root: Path, deep: bool) -> list[Problem]:
    try:
        manifest = read_manifest(root)
    except UserError as error:
        return [_problem(MANIFEST, error)]
    pull_records(root)
    problems = _check_header(root, manifest)
    for record in manifest.shards:
        found = _check_shard(root, record) or (_check_deeply(root, record) if deep else [])
        problems += found
    if deep and not problems:
        problems += _check_content(root, manifest)
    if deep:
        problems += _check_tables(root, manifest)
    return problems


def _problem(file: str, error: PipelineError) -> Problem:
    return Problem(error.name if isinstance(error, DamagedStoreError) else file, error.sentence())


def _check_header(root: Path, manifest: Manifest) -> list[Problem]:
    try:
        header = read_header(root)
    except FileNotFoundError:
        return [Problem(HEADER, f"{HEADER}: expected a header, found no file")]
    except UserError as error:
        return [_problem(HEADER, error)]
    same = header == manifest.header
    return [] if same else [Problem(HEADER, f"{HEADER}: expected the manifest's header, found another")]


def _check_shard(root: Path, record: ShardFile) -> list[Problem]:
    problems = []
    problem = file_problem(root, record)
    if problem:
        problems.append(Problem(record.name, f"{record.name}: expected {record.bytes} bytes, found {problem}"))
    name = Path(record.name).with_suffix(".json").name
    try:
        if read_record(root / name) != record:
            problems.append(Problem(name, f"{name}: expected the manifest's record, found another"))
    except FileNotFoundError:
        problems.append(Problem(name, f"{name}: expected a commit record, found no file"))
    except UserError as error:
        problems.append(_problem(name, error))
    return problems


def _check_deeply(root: Path, record: ShardFile) -> list[Problem]:
    path = root / record.name
    try:
        bring_shards(root, [(record.name, record.sha256, record.bytes)], again=True)
    except DamagedStoreError as error:
        return [_problem(record.name, error)]
    found = file_sha256(path)
    if found != record.sha256:
        return [Problem(record.name, f"{record.name}: expected sha256 {record.sha256}, found {found}")]
    shard_format = next(file_format(name) for name in ("hdf5", "parquet") if file_format(name).suffix == path.suffix)
    if ids_digest(shard_format.ids(path)) != record.ids:
        return [Problem(record.name, f"{record.name}: expected the committed ids, found others")]
    return []


def _check_content(root: Path, manifest: Manifest) -> list[Problem]:
    parts = []
    for layer in manifest.layers:
        try:
            digest = stream_digest(root, layer_sources(manifest.shards, layer.name))
        except DamagedStoreError as error:
            return [_problem(error.name, error)]
        if digest != layer.digest:
            return [Problem(MANIFEST, f"layer {layer.name}: expected sha256 {layer.digest}, found {digest}")]
        parts.append((layer.name, layer.width, layer.dtype, digest))
    if content_digest(manifest.rows, manifest.ids, parts) != manifest.content_digest:
        return [Problem(MANIFEST, f"{MANIFEST}: its content digest is not that of its layers")]
    return []


def _check_tables(root: Path, manifest: Manifest) -> list[Problem]:
    problems = []
    for name, expected in ((SAMPLES, manifest.samples), (REJECTED, manifest.rejected)):
        path = root / name
        found = file_sha256(path) if path.is_file() else "no file"
        if found != expected and not (name == SAMPLES and found == manifest.next_samples):
            problems.append(Problem(name, f"{name}: expected sha256 {expected}, found {found}"))
    if not problems:
        try:
            _ = FeatureStore(root, manifest).samples
        except DamagedStoreError as error:
            problems.append(_problem(SAMPLES, error))
    return problems
