"""Read a finished feature store: one layer without touching the others, every first read verified.

    store = FeatureStore.open("data/1_features/flickr8k/timm-vit")        # or s3://bucket/…
    features = store.read("output")                        # torch tensor [N, D]
    for rows, batch in store.batches("output", 32768, shuffle=True, seed=0): ...

A store pickles as its address and manifest: each worker opens the files by itself.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamagedStoreError, UnfinishedStoreError, UnknownNameError, UserError
from pipeline.files import file_sha256, is_locked
from pipeline.storage.contract import Place, Storage, Stored
from pipeline.storage.leases import STORE, lock_name
from pipeline.storage.local import open_storage
from pipeline.store.commit import committed
from pipeline.store.key import FeatureKey, Features, storage_dtype
from pipeline.store.manifest import (
    HEADER,
    MANIFEST,
    REJECTED,
    SAMPLES,
    LayerInfo,
    Manifest,
    ids_digest,
    read_header,
    read_manifest,
)
from pipeline.store.samples import Samples, read_samples
from pipeline.store.shards import LayerShard, fetch_shards, first_files, layer_shards, read_shard, view_shard
from pipeline.words import count, html_table

if TYPE_CHECKING:
    import torch

_READERS = min(4, os.cpu_count() or 1)


class FeatureStore:
    """A finished store. Use `FeatureStore.open`.

    Args:
        root: Where it lies.
        manifest: Its manifest.
    """

    def __init__(self, root: Storage, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest
        self._verified: set[tuple[str, str]] = set()
        self._staged: dict[str, Features] = {}

    @classmethod
    def open(cls, place: Place) -> "FeatureStore":
        """Open a store: check the manifest, the side tables, and that every file is there with its size.

        Of a store in an object store only this is fetched; a shard file is when a layer in it is first read.

        Raises:
            UserError: No such folder, or a folder that is no store.
            UnfinishedStoreError: Not all shards are committed.
            DamagedStoreError: The manifest, samples.parquet or a file is not what was committed.
        """
        root = open_storage(place)
        return cls(root, whole_manifest(root))

    def __repr__(self) -> str:
        """Return data set, encoder, rows and layers in a line."""
        said, names = self.manifest.provenance, [layer.name for layer in self.layers]
        dataset = str(said.get("dataset") or "an unnamed data set").rstrip("/").rpartition("/")[2]
        spec = said.get("spec") or self.key.encoder.get("name") or "an unnamed encoder"
        layers = ", ".join(names if len(names) <= 4 else [names[0], "…", names[-1]])
        rows = f"{self.rows:,} {self.key.modality} rows"
        return f"<FeatureStore {dataset}, {spec}: {rows}, {count(len(names), 'layer')} ({layers})>"

    def _repr_html_(self) -> str:
        layers = [(layer.name, layer.width, layer.dtype, layer.digest[:12]) for layer in self.layers]
        return html_table(repr(self)[1:-1], ("layer", "width", "stored as", "sha256"), layers)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what is small: no layer that is kept in memory."""
        return {"root": self.root, "manifest": self.manifest, "_verified": self._verified, "_staged": {}}

    @property
    def key(self) -> FeatureKey:
        """Return the store's key."""
        return self.manifest.header.key

    @property
    def rows(self) -> int:
        """Return the number of rows N."""
        return self.manifest.rows

    @property
    def layers(self) -> tuple[LayerInfo, ...]:
        """Return the L layers in order of depth."""
        return self.manifest.layers

    @property
    def content_digest(self) -> str:
        """Return the digest of ids and values."""
        return self.manifest.content_digest

    @property
    def ids(self) -> list[str]:
        """Return the N sample ids, in order of rows."""
        return self.samples.sample_id

    @cached_property
    def samples(self) -> Samples:
        """Return the samples of the N rows, in their order.

        Raises:
            DamagedStoreError: They are not those of the committed rows.
        """
        rejected = {name for file in first_files(self.manifest.shards) for name, _ in file.rejected}
        table = read_samples(self.root.file(SAMPLES))
        if rejected:
            table = table.take(row for row, name in enumerate(table.sample_id) if name not in rejected)
        if ids_digest(table.sample_id) != self.manifest.ids:
            raise DamagedStoreError(SAMPLES, "the ids of the committed rows", "other ids", str(self.root))
        return table

    @property
    def shard_edges(self) -> NDArray[np.int64]:
        """Return the row numbers [S + 1], from 0 to N, between which the S shards lie."""
        return np.cumsum([0, *(file.rows for file in first_files(self.manifest.shards))], dtype=np.int64)

    def layer(self, name: str) -> LayerInfo:
        """Return what is known of a layer.

        Raises:
            UnknownNameError: The store has no such layer; lists those that it has.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise UnknownNameError("layer", name, [layer.name for layer in self.layers], str(self.root))

    def numpy(self, layer: str) -> Features:
        """Read a layer as a new array [N, D] in its own dtype; bfloat16 comes as its bits in uint16.

        Raises:
            DamagedStoreError: A shard is not what was committed.
        """
        info = self.layer(layer)
        out = np.empty((self.rows, info.width), storage_dtype(info.dtype).numpy)
        shards = self._shards(layer)
        stops = np.cumsum([shard.rows for shard in shards])
        fetch_shards(self.root, shards)
        parts = [out[stop - shard.rows : stop] for shard, stop in zip(shards, stops, strict=True)]
        with ThreadPoolExecutor(_READERS) as pool:
            for _ in pool.map(lambda shard, part: read_shard(self.root, shard, part), shards, parts):
                pass
        self._verified.update((shard.file, layer) for shard in shards)
        return out

    def read(self, layer: str, dtype: "torch.dtype | None" = None) -> "torch.Tensor":
        """Read a layer as a tensor [N, D], in its own dtype unless another is asked.

        Raises:
            DamagedStoreError: A shard is not what was committed.
        """
        return self._tensor(self.numpy(layer), self.layer(layer), dtype)

    def memmaps(self, layer: str) -> list[Features]:
        """Return read-only zero-copy views [n, D] of a layer, in order of rows.

        HDF5 gives one view a shard, Parquet one a row group; together they have N rows. Views may be unaligned.

        Raises:
            DamagedStoreError: A shard is not what was committed.
        """
        self.layer(layer)
        shards = self._shards(layer)
        fetch_shards(self.root, shards)
        return [view for shard in shards for view in self._view(shard)]

    def gather(
        self, layer: str, rows: NDArray[np.int64], dtype: "torch.dtype | None" = None, *, keep: bool = True
    ) -> "torch.Tensor":
        """Return the rows [B] of a layer as a tensor [B, D].

        Args:
            layer: Layer to read.
            rows: Row numbers [B].
            dtype: Another dtype than the layer's own.
            keep: Read the layer into memory once, if it fits, and keep it for the next draws; else map those shards
                that hold the rows.
        """
        info = self.layer(layer)
        if keep:
            return self._tensor(gather(self._stage(layer), rows), info, dtype)
        return self._tensor(self._gather_mapped(layer, info, rows), info, dtype)

    def batches(
        self, layer: str, batch_size: int, *, shuffle: bool = False, seed: int = 0, drop_last: bool = False
    ) -> Iterator[tuple[NDArray[np.int64], "torch.Tensor"]]:
        """Yield (row numbers [B], features [B, D]) that cover all N rows once.

        Args:
            layer: Layer to read.
            batch_size: Rows in a batch; the last may have fewer.
            shuffle: Random order. The layer is then read into memory once and kept, or mapped if it does not fit.
            seed: Decides the order; give another one each epoch.
            drop_last: Leave out a last batch that is not full.

        Raises:
            UserError: The batch size is not positive.
            DamagedStoreError: A shard is not what was committed.
        """
        info = self.layer(layer)
        parts = self._stage(layer) if shuffle else self.memmaps(layer)
        for rows in row_batches(self.rows, batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last):
            yield rows, self._tensor(gather(parts, rows), info, None)

    def release(self) -> None:
        """Forget the layers that `gather` and `batches` keep in memory."""
        self._staged.clear()

    def _shards(self, layer: str) -> tuple[LayerShard, ...]:
        return layer_shards(self.manifest.shards, layer)

    def _view(self, shard: LayerShard) -> list[Features]:
        known = (shard.file, shard.layer.name)
        views = view_shard(self.root, shard, verify=known not in self._verified)
        self._verified.add(known)
        return views

    def _gather_mapped(self, layer: str, info: LayerInfo, rows: NDArray[np.int64]) -> Features:
        """Open (and, the first time, verify) only the shards that hold some of the rows: others may read the rest."""
        shards = self._shards(layer)
        starts = np.cumsum([0, *(shard.rows for shard in shards)])
        which = np.searchsorted(starts, rows, side="right") - 1
        out = np.empty((len(rows), info.width), storage_dtype(info.dtype).numpy)
        for index in np.unique(which):
            chosen = which == index
            out[chosen] = gather(self._view(shards[index]), rows[chosen] - starts[index])
        return out

    def _stage(self, layer: str) -> list[Features]:
        if layer in self._staged:
            return [self._staged[layer]]
        info = self.layer(layer)
        if self.rows * info.width * storage_dtype(info.dtype).itemsize > _free_memory() // 2:
            return self.memmaps(layer)
        self._staged[layer] = self.numpy(layer)
        return [self._staged[layer]]

    @staticmethod
    def _tensor(values: Features, info: LayerInfo, dtype: "torch.dtype | None") -> "torch.Tensor":
        import torch

        if info.dtype == "bfloat16":
            tensor = torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(values)
        return tensor if dtype is None else tensor.to(dtype)


# ---- whether a store is whole ----------------------------------------------------------------------------------------


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
        if problem := record.problem(there):
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


# ---- rows ------------------------------------------------------------------------------------------------------------


def row_batches(
    rows: int, batch_size: int, *, shuffle: bool, seed: int, drop_last: bool
) -> Iterator[NDArray[np.int64]]:
    """Yield row numbers [B] that cover 0..N-1 once.

    Raises:
        UserError: The batch size is not positive.
    """
    if batch_size < 1:
        raise UserError(expected="a batch size of 1 or more", found=str(batch_size))
    order = np.random.default_rng(seed).permutation(rows) if shuffle else np.arange(rows)
    stop = rows - rows % batch_size if drop_last else rows
    for start in range(0, stop, batch_size):
        yield order[start : min(stop, start + batch_size)].astype(np.int64, copy=False)


def gather(parts: Sequence[Features], rows: NDArray[np.int64]) -> Features:
    """Copy rows [B] out of consecutive parts [n, D] of a layer into a new array [B, D]."""
    if len(parts) == 1:
        return parts[0][rows]
    starts = np.cumsum([0, *(len(part) for part in parts)])
    which = np.searchsorted(starts, rows, side="right") - 1
    out = np.empty((len(rows), parts[0].shape[1]), parts[0].dtype)
    for part in np.unique(which):
        chosen = which == part
        out[chosen] = parts[part][rows[chosen] - starts[part]]
    return out


def _free_memory() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 1 << 62
