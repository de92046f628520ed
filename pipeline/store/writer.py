"""Write a feature store, alone or beside other processes, and go on where a killed run stopped.

writer = StoreWriter(root, Header(key=key, items=1000, layer_names=names))
for shard in writer.work(names):
    ...compute...
    writer.commit(shard, ids, features, rejected)
writer.finish(samples, {"spec": "timm:..."})

To finish is: check the samples, digest every layer by streaming, write side tables and, last, the manifest. Where one
is there already and the samples change, it first names the new table beside the old one: killed between any two steps,
the store opens with the one or with the other. The manifest is written over the one that was seen; where another
machine was faster, all is decided anew.
"""

import hashlib
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import (
    DamagedStoreError,
    KeyMismatchError,
    PipelineError,
    UnfinishedStoreError,
    UnknownNameError,
    UserError,
)
from pipeline.files import dump_signed, file_sha256, share
from pipeline.storage.contract import Place, Storage, Stored
from pipeline.storage.leases import STORE, Lease, Leases, lock_name
from pipeline.storage.local import open_storage, sweep, writing
from pipeline.store.commit import (
    PendingShard,
    check_layers,
    check_same_rows,
    checked_features,
    checked_ids,
    commit_file,
    committed,
    committed_files,
    missing_layers,
    pending_shards,
)
from pipeline.store.key import Features
from pipeline.store.manifest import (
    HEADER,
    MANIFEST,
    REJECTED,
    SAMPLES,
    Header,
    LayerInfo,
    Manifest,
    ShardFile,
    content_digest,
    ids_digest,
    read_header,
    read_manifest,
)
from pipeline.store.samples import Samples, rejected_bytes, samples_bytes
from pipeline.store.shards import first_files, layer_shards, stream_digest

_POLL = 0.05
"""Seconds between two looks at the store's lease, which is held for as long as a manifest takes."""
_ROUNDS = 5
"""How often the manifest is decided anew because another machine has just written it."""
_REMEDY = "extract to another --out, or start over with --replace"
_log = logging.getLogger(__name__)


class StoreWriter:
    """Commits shards of one store. Any number of processes may write to one store at the same time.

    As long as a writer lives it shares the lock of store.json: `gc` and `replace_store` leave its store alone.

    Args:
        root: The store's storage, folder or URL; a folder is created if it is not there.
        header: What is to be written. An existing store's shard_rows, file_format and layer_names win.
        leases: Who hands out shards; the storage's own if unsaid.

    Raises:
        KeyMismatchError: The folder holds features of another key; names each field.
        DamagedStoreError: The folder's header is damaged.
        PipelineError: The folder cannot be written.
    """

    def __init__(self, root: Place, header: Header, leases: Leases | None = None) -> None:
        self.root = open_storage(root)
        self._leases = leases or Leases(self.root)
        with writing(self.root, HEADER):
            self.root.make()
            with self._alone() if HEADER not in self.root.list() else self.root.lock(lock_name(STORE)):
                self.header, held = _agree(self.root, header)
            self._release = weakref.finalize(self, os.close, held)  # while it is held, nobody collects or replaces
            sweep(self.root)
        self._asked: tuple[str, ...] = ()
        self._claimed: dict[int, Lease] = {}

    def pending(self, layers: Sequence[str]) -> list[PendingShard]:
        """Return what is left to do for these layers: the shards that lack some, each with those that it lacks.

        Raises:
            UserError: No layers, or one twice.
            UnknownNameError: A layer that the header does not list.
        """
        check_layers(layers)
        for name in layers:
            if self.header.layer_names and name not in self.header.layer_names:
                raise UnknownNameError("layer", name, self.header.layer_names, str(self.root))
        self._asked = tuple(layers)
        return pending_shards(self.root, self.header, layers)

    @contextmanager
    def claim(self, index: int) -> Iterator[bool]:
        """Try to reserve a shard while it is computed.

        Yields True if nobody else holds it and it still lacks a layer of the last `pending` call. What a dead process
        held can be claimed again (see `pipeline.storage.leases`).
        """
        with ExitStack() as stack:
            with writing(self.root, lock_name(index)):
                lease = self._leases.take(index)
            if lease is None:
                yield False
                return
            stack.callback(lease.release)
            if not self._lacks(index):
                yield False
                return
            self._claimed[index] = lease
            stack.callback(self._claimed.pop, index)
            yield True

    def holds(self, index: int) -> bool:
        """Say whether a claimed shard is still this writer's: others take over what a stalled writer held."""
        return index in self._claimed and not self._claimed[index].lost

    def work(self, layers: Sequence[str], poll: float = 0.5) -> Iterator[PendingShard]:
        """Yield shards to compute, each claimed until the next step, until none is left anywhere.

        Waits for shards that another process computes, and takes them over if that process dies.

        Args:
            layers: Layers to compute.
            poll: Seconds between looks at shards that others hold.
        """
        while left := self.pending(layers):
            took = False
            for shard in left:
                with self.claim(shard.index) as mine:
                    if mine:
                        took = True
                        yield shard
            if not took:
                time.sleep(poll)

    def commit(
        self,
        shard: PendingShard,
        ids: Sequence[str],
        features: Mapping[str, Features],
        rejected: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Commit a shard's rows for good; layers that are already committed are left as they are.

        Args:
            shard: As given by `pending` or `work`.
            ids: N sample ids, in the data set's order.
            features: Layer → [N, D] in the key's storage dtype (bfloat16 as uint16), for all the shard's layers.
            rejected: (id, reason) of each item of the shard that gave no row.

        Raises:
            UserError: Rows, ids, layers or dtypes do not fit the shard or what is committed of it.
            PipelineError: The disk is full, read-only or faulty; nothing of the shard is left behind.
        """
        checked_ids(shard, ids, rejected, str(self.root))
        values = checked_features(shard, len(ids), features, self.header, str(self.root))
        with self._held(shard.index):
            files = committed_files(self.root, self.header, shard.index)
            missing = missing_layers(files, shard.layers)
            if missing:
                check_same_rows(files, ids, rejected, str(self.root))
                chosen = {name: values[name] for name in missing}
                commit_file(self.root, self.header, shard.index, ids, chosen, rejected)

    def finish(self, samples: Samples, provenance: Mapping[str, Any]) -> Manifest:
        """Write the side tables and, last, the manifest of all layers that every shard has.

        Args:
            samples: Every item of the data set in its order, rejected ones too.
            provenance: JSON data on where the features came from.

        Raises:
            UnfinishedStoreError: A shard lacks a layer of the last `pending` call.
            UserError: The samples are not the ones that were committed.
            DamagedStoreError: A committed file has changed.
        """
        with writing(self.root, MANIFEST), self._alone():
            return agreed(
                self.root, lambda seen: finish(self.root, self.header, self._asked, samples, provenance, seen)
            )

    def refresh_samples(self, samples: Samples) -> Manifest:
        """Rewrite samples.parquet of a finished store whose splits, labels or contents changed; no shard is touched.

        Raises:
            UnfinishedStoreError: There is no manifest yet.
            UserError: The sample ids are not the ones that were committed.
        """
        with writing(self.root, SAMPLES), self._alone():
            return agreed(self.root, lambda seen: refresh(self.root, self.header, samples, seen))

    def _lacks(self, index: int) -> bool:
        files = committed_files(self.root, self.header, index)
        return not self._asked or bool(missing_layers(files, self._asked))

    @contextmanager
    def _held(self, index: int) -> Iterator[None]:
        if index in self._claimed:
            yield
            return
        with ExitStack() as stack:
            with writing(self.root, lock_name(index)):
                stack.enter_context(self.root.lock(lock_name(index)))
            yield

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the whole store; waits for whoever does."""
        while (lease := self._leases.take(STORE)) is None:
            time.sleep(_POLL)
        try:
            yield
        finally:
            lease.release()


def _agree(root: Storage, header: Header) -> tuple[Header, int]:
    """Return the store's header and a descriptor that shares its lock; writes the header if there is none."""
    while True:
        root.fetch([HEADER])
        held = share(root.here / HEADER)
        if held is not None:
            break
        committed(root, header)
        root.put_new(HEADER, dump_signed(header.to_json()))
    try:
        return _same_key(root, header), held
    except BaseException:
        os.close(held)
        raise


def _same_key(root: Storage, header: Header) -> Header:
    existing = read_header(root)
    differences = header.key.differences(existing.key)
    if header.items != existing.items:
        differences.append(("items", str(header.items), str(existing.items)))
    if differences:
        raise KeyMismatchError(differences, str(root), _REMEDY)
    committed(root, existing)
    return existing


# ---- finishing -------------------------------------------------------------------------------------------------------


class OvertakenError(PipelineError):
    """Another machine wrote the manifest while this one was about to: look again and decide anew."""


def agreed(root: Storage, action: Callable[[Stored | None], Manifest]) -> Manifest:
    """Do something that ends by writing over the manifest that was seen, again where another machine was faster."""
    for _ in range(_ROUNDS):
        with suppress(OvertakenError):
            return action(root.list().get(MANIFEST))
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
    complete = sum(bool(files) and not missing_layers(files, asked) for files in done.values())
    if complete < header.shards:
        raise UnfinishedStoreError(complete, header.shards, str(root))
    names = _complete_layers(header, done, asked)
    files = tuple(file for index in range(header.shards) for file in _needed(done[index], names))
    ids = _checked_ids(root, header, files, samples)
    old = old_manifest(root)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        layers = tuple(pool.map(lambda name: _layer(root, files, name, old), names))
    table = samples_bytes(samples)
    rejected = rejected_bytes(pair for file in first_files(files) for pair in file.rejected)
    digest = ids_digest(ids)
    manifest = Manifest(
        header=header,
        shards=files,
        layers=layers,
        rows=len(ids),
        ids=digest,
        content_digest=content_digest(len(ids), digest, layers),
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
