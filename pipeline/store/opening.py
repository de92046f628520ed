"""Whether a folder holds a finished store, and all of it: manifest, side tables, every file with its size."""

from contextlib import suppress
from pathlib import Path

from pipeline.errors import DamagedStoreError, UnfinishedStoreError, UserError
from pipeline.files import file_sha256
from pipeline.store.distant import pull_tables
from pipeline.store.layout import HEADER, MANIFEST, SAMPLES, lock_name
from pipeline.store.locks import is_locked, lock
from pipeline.store.manifest import Manifest, read_header, read_manifest
from pipeline.store.records import committed, file_problem


def whole_manifest(root: Path) -> Manifest:
    """Return the manifest of a finished store, checked against what is there.

    Raises:
        UserError: No such folder, or a folder that is no store.
        UnfinishedStoreError: Not all shards are committed.
        DamagedStoreError: The manifest, samples.parquet or a file is not what was committed.
    """
    require_finished(root)
    try:
        return _checked_manifest(root)
    except DamagedStoreError:
        _wait_for_writer(root)  # it may just be replacing the side tables and the manifest
    return _checked_manifest(root)


def require_finished(root: Path) -> None:
    """Check that a folder holds a finished store.

    Raises:
        UserError: No such folder, or a folder that is no store.
        UnfinishedStoreError: Not all shards are committed.
    """
    pull_tables(root)
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise UserError(
            expected="a feature store's folder", found=found, where=str(root), remedy="make one with `pipeline extract`"
        )
    if (root / MANIFEST).exists():
        return
    if not (root / HEADER).exists():
        raise UserError(expected="a feature store", found="a folder without store.json", where=str(root))
    header = read_header(root)
    done = committed(root, header)
    names = {layer.name for files in done.values() for file in files for layer in file.layers}
    whole = [files for files in done.values() if names <= {layer.name for file in files for layer in file.layers}]
    raise UnfinishedStoreError(len(whole), header.shards, str(root))


def _wait_for_writer(root: Path) -> None:
    pull_tables(root)
    path = root / lock_name("store")
    with suppress(OSError):
        if is_locked(path):
            with lock(path):
                pass


def _checked_manifest(root: Path) -> Manifest:
    manifest = read_manifest(root)
    if (root / HEADER).exists() and read_header(root) != manifest.header:
        raise DamagedStoreError(HEADER, "the manifest's header", "another header", str(root))
    _check_files(root, manifest)
    _check_samples(root, manifest)
    return manifest


def _check_files(root: Path, manifest: Manifest) -> None:
    for record in manifest.shards:
        problem = file_problem(root, record)
        if problem:
            raise DamagedStoreError(record.name, f"{record.bytes} bytes", problem, str(root))


def _check_samples(root: Path, manifest: Manifest) -> None:
    path = root / SAMPLES
    found = file_sha256(path) if path.is_file() else "no file"
    if found not in (manifest.samples, manifest.next_samples):
        raise DamagedStoreError(SAMPLES, f"sha256 {manifest.samples}", found, str(root))
