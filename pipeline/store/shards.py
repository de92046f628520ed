"""Where each shard of a layer lies, and reading it so that no changed byte passes unseen."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from pipeline.errors import DamagedStoreError, PipelineError, machine_error
from pipeline.files import one_line
from pipeline.storage.contract import Content, Storage
from pipeline.store.formats import LayerExtents, array_xxh3, format_of
from pipeline.store.key import Features
from pipeline.store.manifest import ShardFile, ShardLayer


@dataclass(frozen=True)
class LayerShard:
    """One shard of one layer: its file's name, rows, and what the record says of the layer."""

    file: str
    index: int
    rows: int
    layer: ShardLayer
    content: Content = field(compare=False)
    """What the file must be: that says what to fetch, not what the layer is."""


def layer_shards(files: Sequence[ShardFile], name: str) -> tuple[LayerShard, ...]:
    """Return the shards of a layer, one a shard, in order; the first file that holds it counts."""
    found: dict[int, LayerShard] = {}
    for file in files:
        layer = file.layer(name)
        if layer is not None:
            found.setdefault(file.index, LayerShard(file.name, file.index, file.rows, layer, file.content))
    return tuple(shard for _, shard in sorted(found.items()))


def first_files(files: Iterable[ShardFile]) -> list[ShardFile]:
    """Return one file of each shard, in order."""
    first: dict[int, ShardFile] = {}
    for file in files:
        first.setdefault(file.index, file)
    return [file for _, file in sorted(first.items())]


def fetch_shards(root: Storage, shards: Iterable[LayerShard]) -> None:
    """Fetch the files of shards, several at a time; nothing to do in a folder.

    Raises:
        DamagedStoreError: An object is not what was committed, or it is gone.
    """
    root.fetch({shard.file: shard.content for shard in shards})


def read_shard(root: Storage, shard: LayerShard, out: Features) -> None:
    """Read one shard of a layer into rows [n, D] and compare its xxh3.

    Raises:
        DamagedStoreError: The file is not what was committed.
    """
    for _ in _blocks(root, shard, out):
        pass


def view_shard(root: Storage, shard: LayerShard, *, verify: bool) -> list[Features]:
    """Return zero-copy views of one shard of a layer, after comparing its xxh3 if `verify`.

    Raises:
        DamagedStoreError: The file is not what was committed.
    """
    path, extents = _located(root, shard)
    try:
        views = format_of(path).view(path, extents)
    except (OSError, ValueError) as error:
        raise _unreadable(root, shard, error) from error
    if verify:
        _compare(root, shard, array_xxh3(views))
    return views


def stream_digest(root: Storage, shards: Sequence[LayerShard]) -> str:
    """Return the sha256 over a whole layer [N, D] in order, and compare each shard's xxh3 on the way.

    Raises:
        DamagedStoreError: A file is not what was committed.
    """
    whole = hashlib.sha256()
    fetch_shards(root, shards)
    for shard in shards:
        for block in _blocks(root, shard):
            whole.update(block)
    return whole.hexdigest()


def _blocks(root: Storage, shard: LayerShard, out: Features | None = None) -> Iterator[memoryview]:
    """Yield a shard's bytes block by block, and compare their xxh3 after the last."""
    path, extents = _located(root, shard)
    digest = xxhash.xxh3_128()
    try:
        for block in format_of(path).stream(path, extents, out):
            digest.update(block)
            yield block
    except OSError as error:
        raise _unreadable(root, shard, error) from error
    _compare(root, shard, digest.hexdigest())


def _located(root: Storage, shard: LayerShard) -> tuple[Path, LayerExtents]:
    """Return a shard's file and where in it the values lie, after comparing shape and dtype with the record."""
    path = root.file(shard.file, shard.content)
    try:
        extents = format_of(path).extents(path, shard.layer.name)
    except Exception as error:  # a library may raise anything on flipped bytes
        raise _unreadable(root, shard, error) from error
    if extents[:3] != (shard.rows, shard.layer.width, shard.layer.dtype):
        raise _damaged(root, shard, f"[{extents.rows}, {extents.width}] {extents.dtype}")
    return path, extents


def _unreadable(root: Storage, shard: LayerShard, error: Exception) -> PipelineError:
    """Return what a library's error means: the machine lacks something, or the file is not what was committed."""
    lacks = machine_error(error, str(root / shard.file)) if isinstance(error, OSError) else None
    return lacks or _damaged(root, shard, one_line(error))


def _damaged(root: Storage, shard: LayerShard, found: str) -> DamagedStoreError:
    layer = shard.layer
    expected = f"layer {layer.name} as [{shard.rows}, {layer.width}] {layer.dtype} of xxh3 {layer.xxh3}"
    return DamagedStoreError(shard.file, expected, found, str(root))


def _compare(root: Storage, shard: LayerShard, digest: str) -> None:
    if digest != shard.layer.xxh3:
        raise _damaged(root, shard, f"xxh3 {digest}")
