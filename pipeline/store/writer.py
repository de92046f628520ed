"""Write a feature store, alone or beside other processes, and go on where a killed run stopped.

writer = StoreWriter(root, Header(key=key, items=1000, layer_names=names))
for shard in writer.work(names):
    ...compute...
    writer.commit(shard, ids, features, rejected)
writer.finish(samples, {"spec": "timm:..."})
"""

import os
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from pipeline.errors import KeyMismatchError, UnknownNameError
from pipeline.files import dump_signed
from pipeline.storage.contract import Place, Storage
from pipeline.storage.leases import STORE, Lease, Leases, lock_name
from pipeline.storage.local import writing
from pipeline.storage.locks import share
from pipeline.storage.open import open_storage
from pipeline.store.cleaning import sweep
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
from pipeline.store.finish import agreed, finish, refresh
from pipeline.store.formats.base import Features
from pipeline.store.manifest import HEADER, MANIFEST, SAMPLES, Header, Manifest, read_header
from pipeline.store.samples import Samples

_POLL = 0.05
"""Seconds between two looks at the store's lease, which is held for as long as a manifest takes."""
_REMEDY = "extract to another --out, or start over with --replace"


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
        self._leases = leases or self.root.leases()
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
