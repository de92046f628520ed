"""What a store says about itself, and the names of its files: header (first), a record a shard file, manifest (last).

All are frozen, go to JSON by `to_json` and come back by `from_json`; `pipeline.files` signs the text.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import PurePath
from typing import Any, TypeVar

from pipeline.errors import DamagedStoreError, UnknownNameError, UserError
from pipeline.files import canonical, json_digest, load_signed, one_line
from pipeline.storage.contract import Content, Storage, Stored
from pipeline.storage.leases import is_lock, leased_thing
from pipeline.storage.local import is_temp
from pipeline.store.formats import FORMATS
from pipeline.store.key import FORMAT, FeatureKey, storage_dtype

T = TypeVar("T")

HEADER = "store.json"
MANIFEST = "manifest.json"
SAMPLES = "samples.parquet"
REJECTED = "rejected.csv"
CLASSES = "classes"

_STEM = re.compile(r"(\d{5,})-[0-9a-f]{8}")
_RECORD = re.compile(rf"{_STEM.pattern}\.json")
_BLOCK_IDS = 1 << 16


# ---- names -----------------------------------------------------------------------------------------------------------


def stem(index: int, layers: Sequence[str]) -> str:
    """Return the file name, without its ending, of a shard that holds these layers."""
    return f"{index:05d}-{hashlib.sha256(canonical(list(layers))).hexdigest()[:8]}"


def record_of(name: str) -> str:
    """Return the name of the commit record of a shard file."""
    return PurePath(name).with_suffix(".json").name


def shard_index(name: str) -> int | None:
    """Return the index of a shard file or commit record, None for any other name."""
    whole, dot, ending = name.rpartition(".")
    match = _STEM.fullmatch(whole)
    known = {".json", *(each.suffix for each in FORMATS.values())}
    return int(match[1]) if match and dot + ending in known else None


def is_record(name: str) -> bool:
    """Say whether a name is a commit record's."""
    return _RECORD.fullmatch(name) is not None


def is_own(name: str) -> bool:
    """Say whether a store would give a file this name."""
    fixed = name in (HEADER, MANIFEST, SAMPLES, REJECTED)
    return fixed or shard_index(name) is not None or is_passing(name)


def is_passing(name: str) -> bool:
    """Say whether a name is that of a temp, lock or lease file."""
    return name.startswith(".") and (is_temp(name) or is_lock(name) or leased_thing(name) is not None)


def own_files(root: Storage) -> list[str]:
    """Return the plain files of a storage that are a store's own by name, sorted; no folders, no links followed."""
    return [name for name in root.list() if is_own(name)]


# ---- digests ---------------------------------------------------------------------------------------------------------


def ids_digest(ids: Sequence[str]) -> str:
    """Return the sha256 over N ids in order, each with a NUL after it (no id holds one)."""
    digest = hashlib.sha256()
    for start in range(0, len(ids), _BLOCK_IDS):
        digest.update(("\0".join(ids[start : start + _BLOCK_IDS]) + "\0").encode())
    return digest.hexdigest()


# ---- header, records, manifest ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Header:
    """What is fixed before the first shard.

    Args:
        key: The store's key.
        items: Number of the data set's items; some may be rejected later.
        shard_rows: Items in a shard; the last may have fewer.
        file_format: "hdf5" or "parquet".
        layer_names: All the encoder's layers in order of depth; the manifest keeps this order. Empty: order of writing.

    Raises:
        UserError: No items, or no rows in a shard.
        UnknownNameError: No such file format.
    """

    key: FeatureKey
    items: int
    shard_rows: int = 65536
    file_format: str = "hdf5"
    layer_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the numbers and the format's name."""
        for name in ("items", "shard_rows"):
            if getattr(self, name) < 1:
                raise UserError(expected=f"{name} of 1 or more", found=str(getattr(self, name)))
        if self.file_format not in FORMATS:
            raise UnknownNameError("file format", self.file_format, FORMATS, "--format")

    @property
    def shards(self) -> int:
        """Return the number of shards."""
        return -(-self.items // self.shard_rows)

    def span(self, index: int) -> tuple[int, int]:
        """Return the half-open range of items of a shard."""
        return index * self.shard_rows, min(self.items, (index + 1) * self.shard_rows)

    def to_json(self) -> dict[str, Any]:
        """Return the header as plain JSON data."""
        return {"format": FORMAT, **asdict(self), "layer_names": list(self.layer_names)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Header":
        """Rebuild a header."""
        plain = {name: data[name] for name in ("items", "shard_rows", "file_format")}
        key = _typed(FeatureKey.from_json(data["key"]))
        return _typed(cls(key=key, layer_names=_names(data["layer_names"]), **plain))


@dataclass(frozen=True, kw_only=True)
class ShardLayer:
    """One layer in one shard file: name, width D, dtype, xxh3 of its bytes, count of values that are no numbers."""

    name: str
    width: int
    dtype: str
    xxh3: str
    nonfinite: int


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """The commit record of a shard file.

    Args:
        name: File name.
        key: Digest of the store's key.
        index: Shard number.
        start: First item of the data set.
        stop: Item after the last.
        rows: Rows stored: items without the rejected ones.
        layers: What the file holds.
        ids: Digest of the rows' ids.
        bytes: Size of the file.
        sha256: Digest of the file.
        rejected: (id, reason) of each item that was left out.
    """

    name: str
    key: str
    index: int
    start: int
    stop: int
    rows: int
    layers: tuple[ShardLayer, ...]
    ids: str
    bytes: int
    sha256: str
    rejected: tuple[tuple[str, str], ...] = ()

    @property
    def content(self) -> Content:
        """Return what the file must be."""
        return Content(self.sha256, self.bytes)

    def problem(self, there: Mapping[str, Stored]) -> str:
        """Return what is wrong with the file at a glance, among those that are there: missing, or its size; "" = no."""
        stored = there.get(self.name)
        if stored is None:
            return "no file"
        return "" if stored.size == self.bytes else f"{stored.size} bytes"

    def layer(self, name: str) -> ShardLayer | None:
        """Return one of the file's layers, None if it is not in it."""
        return next((layer for layer in self.layers if layer.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON data."""
        layers = [asdict(layer) for layer in self.layers]
        return {**asdict(self), "layers": layers, "rejected": [list(pair) for pair in self.rejected]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ShardFile":
        """Rebuild a record."""
        layers = tuple(_typed(ShardLayer(**layer)) for layer in data["layers"])
        rejected = tuple((name, reason) for name, reason in map(_names, data["rejected"]))
        record = _typed(cls(**{**data, "layers": layers, "rejected": rejected}))
        record._check()
        return record

    def _check(self) -> None:
        """Refuse a name that is no shard's and sizes that the file cannot have: values lie in it uncompressed."""
        if shard_index(self.name) != self.index or is_record(self.name):
            raise ValueError(f"{self.name!r} as the file of shard {self.index}")
        if not (0 <= self.start < self.stop and 0 <= self.rows <= self.stop - self.start):
            raise ValueError(f"{self.rows} rows of the items {self.start} to {self.stop}")
        values = sum(_values(self.rows, layer) for layer in self.layers)
        if values > self.bytes:
            raise ValueError(f"{values} bytes of values in the {self.bytes} bytes of {self.name}")


@dataclass(frozen=True, kw_only=True)
class LayerInfo:
    """One layer of a whole store: name, width D, dtype, sha256 over its N × D values, values that are no numbers."""

    name: str
    width: int
    dtype: str
    digest: str
    nonfinite: int = 0


def content_digest(rows: int, ids: str, layers: Iterable[LayerInfo]) -> str:
    """Combine what a store holds into one digest: N, the digest of the N ids, and what is in each layer."""
    parts = sorted([each.name, each.width, each.dtype, each.digest] for each in layers)
    return json_digest({"rows": rows, "ids": ids, "layers": parts})


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that is committed. A store without a manifest is unfinished.

    Args:
        header: The header.
        shards: Every committed file, by shard number.
        layers: L layers in order of depth.
        rows: N.
        ids: Digest of the N ids.
        content_digest: Digest of ids and values alone.
        samples: sha256 of samples.parquet.
        next_samples: sha256 of a samples.parquet that is just taking its place; "" = none.
        rejected: sha256 of rejected.csv.
        provenance: Where it came from: specification as typed, path, versions, time. Not part of any digest of content.
    """

    header: Header
    shards: tuple[ShardFile, ...]
    layers: tuple[LayerInfo, ...]
    rows: int
    ids: str
    content_digest: str
    samples: str
    rejected: str
    next_samples: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Return the size of all shard files."""
        return sum(shard.bytes for shard in self.shards)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as plain JSON data."""
        return {
            "format": FORMAT,
            "header": self.header.to_json(),
            "key_digest": self.header.key.digest(),
            "rows": self.rows,
            "ids": self.ids,
            "content_digest": self.content_digest,
            "layers": [asdict(layer) for layer in self.layers],
            "samples": self.samples,
            **({"next_samples": self.next_samples} if self.next_samples else {}),
            "rejected": self.rejected,
            "provenance": dict(self.provenance),
            "shards": [shard.to_json() for shard in self.shards],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Manifest":
        """Rebuild a manifest."""
        manifest = cls(
            header=Header.from_json(data["header"]),
            shards=tuple(ShardFile.from_json(shard) for shard in data["shards"]),
            layers=tuple(_typed(LayerInfo(**layer)) for layer in data["layers"]),
            next_samples=data.get("next_samples", ""),
            provenance=data["provenance"],
            **{name: data[name] for name in ("rows", "ids", "content_digest", "samples", "rejected")},
        )
        _typed(manifest)._check()
        return manifest

    def _check(self) -> None:
        """Refuse shards that are named twice or lie beyond the data set, and a number of rows that is not theirs."""
        if not isinstance(self.provenance, Mapping):
            raise ValueError(f"{type(self.provenance).__name__} as provenance")
        names = [shard.name for shard in self.shards]
        if len(set(names)) < len(names):
            raise ValueError("a shard file that is named twice")
        for shard in self.shards:
            if not 0 <= shard.index < self.header.shards or (shard.start, shard.stop) != self.header.span(shard.index):
                raise ValueError(f"shard {shard.index} of the items {shard.start} to {shard.stop}")
        rows = sum({shard.index: shard.rows for shard in self.shards}.values())
        if self.rows != rows:
            raise ValueError(f"{self.rows} rows, and {rows} in the shards")
        for layer in self.layers:
            _values(self.rows, layer)
            if any(held.width != layer.width for shard in self.shards if (held := shard.layer(layer.name))):
                raise ValueError(f"another width of {layer.name} in a shard")


@cache
def _kinds(cls: Any) -> tuple[tuple[str, type], ...]:
    return tuple((each.name, each.type) for each in fields(cls) if each.type in (int, str))


def _typed(record: T) -> T:
    """Return a record whose whole numbers and texts are what they should be; JSON has 22.0 and true for 22 and 1, too.

    Raises:
        ValueError: One is not.
    """
    cls: Any = type(record)
    for name, kind in _kinds(cls):
        value = getattr(record, name)
        if type(value) is not kind or (isinstance(value, str) and "\0" in value):
            raise ValueError(f"{name} {value!r}"[:200])
    return record


def _names(values: Any) -> tuple[str, ...]:
    """Return a list of texts as a tuple.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(values, list) or not all(type(value) is str for value in values):
        raise ValueError(f"{values!r:.200} in place of texts")
    return tuple(values)


def _values(rows: int, layer: ShardLayer | LayerInfo) -> int:
    """Return the bytes of a layer's rows.

    Raises:
        ValueError: The layer has no width.
    """
    if layer.width < 1:
        raise ValueError(f"width {layer.width} of {layer.name}")
    return rows * layer.width * storage_dtype(layer.dtype).numpy.itemsize


def read_header(root: Storage) -> Header:
    """Read and check a store's header.

    Raises:
        FileNotFoundError: There is none.
        DamagedStoreError: It is not what was written.
        UserError: It is of another version of the format.
    """
    return _rebuilt(Header.from_json, _read(root, HEADER), HEADER, root)


def read_manifest(root: Storage) -> Manifest:
    """Read and check a store's manifest; errors as for `read_header`."""
    return _rebuilt(Manifest.from_json, _read(root, MANIFEST), MANIFEST, root)


def read_record(root: Storage, name: str) -> ShardFile:
    """Read and check a commit record.

    Raises:
        FileNotFoundError: There is none.
        DamagedStoreError: It is not what was written.
    """
    record = _rebuilt(ShardFile.from_json, load_signed(root.get(name), name, str(root)), name, root)
    if record_of(record.name) != name:
        raise DamagedStoreError(name, "the record of its own shard file", record.name, str(root))
    return record


def _rebuilt(build: Callable[[dict[str, Any]], T], data: dict[str, Any], name: str, root: Storage) -> T:
    """Return what signed JSON means; the digest says that it is whole, not that it makes sense.

    Raises:
        DamagedStoreError: A field is missing, of another type, or has a value that cannot be.
    """
    try:
        return build(data)
    except KeyError as error:
        raise DamagedStoreError(name, f"the field {error.args[0]}", "none", str(root)) from error
    except (TypeError, ValueError, AttributeError, OverflowError, UserError) as error:
        found = error.found if isinstance(error, UserError) else one_line(error)
        raise DamagedStoreError(name, "fields that a store has", found, str(root)) from error


def _read(root: Storage, name: str) -> dict[str, Any]:
    data = load_signed(root.get(name), name, str(root))
    if data.get("format") != FORMAT:
        raise UserError(
            expected=f"a feature store of format {FORMAT}",
            found=f"format {data.get('format')!r}",
            where=str(root / name),
            remedy="extract again with this version (another --out, or --replace)",
        )
    return data
