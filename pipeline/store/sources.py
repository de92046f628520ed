"""Where each shard of a layer lies, and reading it so that no changed byte passes unseen."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from pipeline.errors import DamagedStoreError
from pipeline.store.digests import array_xxh3
from pipeline.store.distant import bring_shards
from pipeline.store.dtypes import storage_dtype
from pipeline.store.formats.base import Features, LayerExtents, ShardFormat
from pipeline.store.formats.table import FORMATS
from pipeline.store.manifest import ShardFile, ShardLayer


@dataclass(frozen=True)
class Source:
    """One shard of one layer: its file's name, rows, and what the record says of the layer."""

    file: str
    index: int
    rows: int
    layer: ShardLayer
    sha256: str = field(default="", compare=False)
    """Digest of the file and its bytes: they say what to bring from a URL, not what the layer is."""
    bytes: int = field(default=0, compare=False)


def layer_sources(files: Sequence[ShardFile], name: str) -> tuple[Source, ...]:
    """Return the sources of a layer, one a shard, in order; the first file that holds it counts."""
    found: dict[int, Source] = {}
    for file in files:
        layer = file.layer(name)
        if layer is not None:
            found.setdefault(file.index, Source(file.name, file.index, file.rows, layer, file.sha256, file.bytes))
    return tuple(found[index] for index in sorted(found))


def first_files(files: Iterable[ShardFile]) -> list[ShardFile]:
    """Return one file of each shard, in order."""
    first: dict[int, ShardFile] = {}
    for file in files:
        first.setdefault(file.index, file)
    return [first[index] for index in sorted(first)]


def bring_sources(root: Path, sources: Iterable[Source]) -> None:
    """Bring the files of sources that lie at a URL, several at a time; nothing for a folder.

    Raises:
        DamagedStoreError: An object is not what was committed, or it is gone.
    """
    bring_shards(root, ((source.file, source.sha256, source.bytes) for source in sources))


def read_source(root: Path, source: Source, out: Features) -> None:
    """Read one shard of a layer into rows [n, D] and compare its xxh3.

    Raises:
        DamagedStoreError: The file is not what was committed.
    """
    shard_format, extents = locate(root, source)
    try:
        digest = shard_format.read_into(root / source.file, extents, out)
    except OSError as error:
        raise damaged(root, source, str(error)) from error
    _compare(root, source, digest)


def view_source(root: Path, source: Source, *, verify: bool) -> list[Features]:
    """Return zero-copy views of one shard of a layer, after comparing its xxh3 if `verify`.

    Raises:
        DamagedStoreError: The file is not what was committed.
    """
    shard_format, extents = locate(root, source)
    try:
        views = shard_format.view(root / source.file, extents, storage_dtype(source.layer.dtype))
    except (OSError, ValueError) as error:
        raise damaged(root, source, str(error)) from error
    if verify:
        _compare(root, source, array_xxh3(views))
    return views


def stream_digest(root: Path, sources: Sequence[Source]) -> str:
    """Return the sha256 over a whole layer [N, D] in order, and compare each shard's xxh3 on the way.

    Raises:
        DamagedStoreError: A file is not what was committed.
    """
    whole = hashlib.sha256()
    bring_sources(root, sources)
    for source in sources:
        shard_format, extents = locate(root, source)
        part = xxhash.xxh3_128()
        try:
            for block in shard_format.stream(root / source.file, extents, storage_dtype(source.layer.dtype)):
                whole.update(block)
                part.update(block)
        except OSError as error:
            raise damaged(root, source, str(error)) from error
        _compare(root, source, part.hexdigest())
    return whole.hexdigest()


def locate(root: Path, source: Source) -> tuple[ShardFormat, LayerExtents]:
    """Return where a shard's values lie, after comparing shape and dtype with the record.

    Raises:
        DamagedStoreError: The file does not open, or says something else.
    """
    bring_sources(root, [source])
    path = root / source.file
    shard_format = next(each for each in FORMATS.values() if each.suffix == path.suffix)
    try:
        extents = shard_format.extents(path, source.layer.name)
    except Exception as error:  # a library may raise anything on flipped bytes
        raise damaged(root, source, " ".join(str(error).split())) from error
    expected = (source.rows, source.layer.width, source.layer.dtype)
    if (extents.rows, extents.width, extents.dtype) != expected:
        raise damaged(root, source, f"[{extents.rows}, {extents.width}] {extents.dtype}")
    return shard_format, extents


def damaged(root: Path, source: Source, found: str) -> DamagedStoreError:
    """Return the error that names a damaged shard."""
    layer = source.layer
    expected = f"layer {layer.name} as [{source.rows}, {layer.width}] {layer.dtype} of xxh3 {layer.xxh3}"
    return DamagedStoreError(source.file, expected, found, str(root))


def _compare(root: Path, source: Source, digest: str) -> None:
    if digest != source.layer.xxh3:
        raise damaged(root, source, f"xxh3 {digest}")
