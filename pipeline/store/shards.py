"""Where each shard of a layer lies, and reading it so that no changed byte passes unseen."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import xxhash

from pipeline.errors import DamagedStoreError
from pipeline.storage.contract import Content, Storage
from pipeline.store.formats import FORMATS
from pipeline.store.formats.base import Features, LayerExtents, ShardFormat, array_xxh3, storage_dtype
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
    return tuple(found[index] for index in sorted(found))


def first_files(files: Iterable[ShardFile]) -> list[ShardFile]:
    """Return one file of each shard, in order."""
    first: dict[int, ShardFile] = {}
    for file in files:
        first.setdefault(file.index, file)
    return [first[index] for index in sorted(first)]


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
    shard_format, extents = locate(root, shard)
    try:
        digest = shard_format.read_into(root.file(shard.file, shard.content), extents, out)
    except OSError as error:
        raise damaged(root, shard, str(error)) from error
    _compare(root, shard, digest)


def view_shard(root: Storage, shard: LayerShard, *, verify: bool) -> list[Features]:
    """Return zero-copy views of one shard of a layer, after comparing its xxh3 if `verify`.

    Raises:
        DamagedStoreError: The file is not what was committed.
    """
    shard_format, extents = locate(root, shard)
    try:
        views = shard_format.view(root.file(shard.file, shard.content), extents, storage_dtype(shard.layer.dtype))
    except (OSError, ValueError) as error:
        raise damaged(root, shard, str(error)) from error
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
        shard_format, extents = locate(root, shard)
        part, path = xxhash.xxh3_128(), root.file(shard.file, shard.content)
        try:
            for block in shard_format.stream(path, extents, storage_dtype(shard.layer.dtype)):
                whole.update(block)
                part.update(block)
        except OSError as error:
            raise damaged(root, shard, str(error)) from error
        _compare(root, shard, part.hexdigest())
    return whole.hexdigest()


def locate(root: Storage, shard: LayerShard) -> tuple[ShardFormat, LayerExtents]:
    """Return where a shard's values lie, after comparing shape and dtype with the record.

    Raises:
        DamagedStoreError: The file does not open, or says something else.
    """
    path = root.file(shard.file, shard.content)
    shard_format = next(each for each in FORMATS.values() if each.suffix == path.suffix)
    try:
        extents = shard_format.extents(path, shard.layer.name)
    except Exception as error:  # a library may raise anything on flipped bytes
        raise damaged(root, shard, " ".join(str(error).split())) from error
    expected = (shard.rows, shard.layer.width, shard.layer.dtype)
    if (extents.rows, extents.width, extents.dtype) != expected:
        raise damaged(root, shard, f"[{extents.rows}, {extents.width}] {extents.dtype}")
    return shard_format, extents


def damaged(root: Storage, shard: LayerShard, found: str) -> DamagedStoreError:
    """Return the error that names a damaged shard."""
    layer = shard.layer
    expected = f"layer {layer.name} as [{shard.rows}, {layer.width}] {layer.dtype} of xxh3 {layer.xxh3}"
    return DamagedStoreError(shard.file, expected, found, str(root))


def _compare(root: Storage, shard: LayerShard, digest: str) -> None:
    if digest != shard.layer.xxh3:
        raise damaged(root, shard, f"xxh3 {digest}")
