"""Whether a storage holds a finished store, and all of it: manifest, side tables, every file with its size."""

from collections.abc import Mapping
from contextlib import suppress

from pipeline.errors import DamagedStoreError, UnfinishedStoreError, UserError
from pipeline.files import file_sha256
from pipeline.storage.contract import Storage, Stored
from pipeline.storage.leases import STORE, lock_name
from pipeline.storage.locks import is_locked
from pipeline.store.commit import committed, file_problem
from pipeline.store.manifest import HEADER, MANIFEST, REJECTED, SAMPLES, Manifest, read_header, read_manifest


def whole_manifest(root: Storage) -> Manifest:
    """Return the manifest of a finished store, checked against what is there.

    Raises:
        UserError: No such folder, or a folder that is no store.
        UnfinishedStoreError: Not all shards are committed.
        DamagedStoreError: The manifest, samples.parquet or a file is not what was committed.
    """
    there = require_finished(root)
    try:
        return _checked_manifest(root, there)
    except DamagedStoreError:
        _wait_for_writer(root)  # it may just be replacing the side tables and the manifest
    return _checked_manifest(root, root.list())


def require_finished(root: Storage) -> dict[str, Stored]:
    """Check that a storage holds a finished store, and return what is in it.

    Raises:
        UserError: No such folder, or a folder that is no store.
        UnfinishedStoreError: Not all shards are committed.
    """
    if absent := root.absent():
        remedy = "make one with `pipeline extract`"
        raise UserError(expected="a feature store's folder", found=absent, where=str(root), remedy=remedy)
    there = root.list()
    root.fetch(name for name in (MANIFEST, HEADER, SAMPLES, REJECTED) if name in there)
    if MANIFEST in there:
        return there
    if HEADER not in there:
        raise UserError(expected="a feature store", found="a folder without store.json", where=str(root))
    header = read_header(root)
    done = committed(root, header)
    names = {layer.name for files in done.values() for file in files for layer in file.layers}
    whole = [files for files in done.values() if names <= {layer.name for file in files for layer in file.layers}]
    raise UnfinishedStoreError(len(whole), header.shards, str(root))


def _wait_for_writer(root: Storage) -> None:
    with suppress(OSError):
        if is_locked(root.here / lock_name(STORE)):
            with root.lock(lock_name(STORE)):
                pass


def _checked_manifest(root: Storage, there: Mapping[str, Stored]) -> Manifest:
    manifest = read_manifest(root)
    if HEADER in there and read_header(root) != manifest.header:
        raise DamagedStoreError(HEADER, "the manifest's header", "another header", str(root))
    for record in manifest.shards:
        problem = file_problem(record, there)
        if problem:
            raise DamagedStoreError(record.name, f"{record.bytes} bytes", problem, str(root))
    _check_samples(root, manifest)
    return manifest


def _check_samples(root: Storage, manifest: Manifest) -> None:
    try:
        found = file_sha256(root.file(SAMPLES))
    except FileNotFoundError:
        found = "no file"
    if found not in (manifest.samples, manifest.next_samples):
        raise DamagedStoreError(SAMPLES, f"sha256 {manifest.samples}", found, str(root))
