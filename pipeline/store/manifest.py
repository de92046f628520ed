"""What a store says about itself: header (first), a record for each committed file, manifest (last).

All are frozen, go to JSON by `to_json` and come back by `from_json`; `pipeline.store.digests` signs the text.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import DamagedStoreError, UserError
from pipeline.files import load_signed
from pipeline.store.formats.table import file_format
from pipeline.store.key import FORMAT, FeatureKey
from pipeline.store.layout import HEADER, MANIFEST


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
        for name in ("items", "shard_rows"):
            if getattr(self, name) < 1:
                raise UserError(expected=f"{name} of 1 or more", found=str(getattr(self, name)))
        file_format(self.file_format)

    @property
    def shards(self) -> int:
        """Return the number of shards."""
        return -(-self.items // self.shard_rows)

    def span(self, index: int) -> tuple[int, int]:
        """Return the half-open range of items of a shard."""
        return index * self.shard_rows, min(self.items, (index + 1) * self.shard_rows)

    def to_json(self) -> dict[str, Any]:
        """Return the header as plain JSON data."""
        return {"format": FORMAT, **asdict(self), "key": self.key.to_json(), "layer_names": list(self.layer_names)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Header":
        """Rebuild a header."""
        return cls(
            key=FeatureKey.from_json(data["key"]),
            items=data["items"],
            shard_rows=data["shard_rows"],
            file_format=data["file_format"],
            layer_names=tuple(data["layer_names"]),
        )


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
        layers = tuple(ShardLayer(**layer) for layer in data["layers"])
        rejected = tuple((name, reason) for name, reason in data["rejected"])
        return cls(**{**data, "layers": layers, "rejected": rejected})


@dataclass(frozen=True, kw_only=True)
class LayerInfo:
    """One layer of a whole store: name, width D, dtype, sha256 over its N × D values, values that are no numbers."""

    name: str
    width: int
    dtype: str
    digest: str
    nonfinite: int = 0


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
        return cls(
            header=Header.from_json(data["header"]),
            shards=tuple(ShardFile.from_json(shard) for shard in data["shards"]),
            layers=tuple(LayerInfo(**layer) for layer in data["layers"]),
            next_samples=data.get("next_samples", ""),
            provenance=data["provenance"],
            **{name: data[name] for name in ("rows", "ids", "content_digest", "samples", "rejected")},
        )


def read_header(root: Path) -> Header:
    """Read and check a store's header.

    Raises:
        DamagedStoreError: It is not what was written.
        UserError: It is of another version of the format.
    """
    return Header.from_json(_read(root / HEADER))


def read_manifest(root: Path) -> Manifest:
    """Read and check a store's manifest; errors as for `read_header`."""
    return Manifest.from_json(_read(root / MANIFEST))


def _read(path: Path) -> dict[str, Any]:
    data = load_signed(path)
    if data.get("format") != FORMAT:
        raise UserError(
            expected=f"a feature store of format {FORMAT}",
            found=f"format {data.get('format')!r}",
            where=str(path),
            remedy="extract again with this version (another --out, or --replace)",
        )
    return data


def read_record(path: Path) -> ShardFile:
    """Read and check a commit record.

    Raises:
        DamagedStoreError: It is not what was written.
    """
    record = ShardFile.from_json(load_signed(path))
    if Path(record.name).stem != path.stem:
        raise DamagedStoreError(path.name, "the record of its own shard file", record.name, str(path.parent))
    return record
