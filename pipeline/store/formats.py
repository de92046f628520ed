"""Shard files: ids and, for each layer, rows of values that lie uncompressed at known offsets.

A format only writes the file and says where the values lie; reading and zero-copy views are the same for all formats.
One more is a class and one line of `FORMATS`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import xxhash

from pipeline.store.key import Features, StorageDtype, storage_dtype

_BLOCK_BYTES = 1 << 19
_BLOCK_VALUES = 1 << 20
_ALIGN = 4096
_IDS = "sample_id"
_GROUP_ROWS = 8192
_GROUP_BYTES = 1 << 28
_NO_PAGE_LIMIT = 1 << 30


def count_nonfinite(features: Features, dtype: StorageDtype) -> int:
    """Return how many values of features [N, D] are infinite or not a number, in blocks of bounded memory."""
    bits = np.dtype(f"<u{dtype.itemsize}")
    flat, mask = features.reshape(-1).view(bits), bits.type(dtype.exponent)
    blocks = range(0, flat.size, _BLOCK_VALUES)
    return sum(int(np.count_nonzero((flat[i : i + _BLOCK_VALUES] & mask) == mask)) for i in blocks)


def array_xxh3(parts: Iterable[Features]) -> str:
    """Return the xxh3 (128 bits, hexadecimal) over the bytes of contiguous arrays, one after the other."""
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class Extent(NamedTuple):
    """A run of rows of one layer: where it begins in the file, and how many rows."""

    offset: int
    rows: int


class LayerExtents(NamedTuple):
    """Where one layer's values lie in a file: rows N, width D, name of the dtype, runs in order of rows."""

    rows: int
    width: int
    dtype: str
    runs: tuple[Extent, ...]


class ShardFormat(ABC):
    """How a shard is written to and found in a file.

    A damaged file makes any method but `write` raise whatever its library raises, or say something else than was
    written; the caller compares with the commit record.
    """

    suffix: ClassVar[str]

    @abstractmethod
    def write(self, path: Path, ids: Sequence[str], features: Mapping[str, Features], dtype: StorageDtype) -> None:
        """Write ids [N] and features, layer → [N, D] (N may be 0), the same bytes for the same input."""

    @abstractmethod
    def ids(self, path: Path) -> list[str]:
        """Read the ids."""

    @abstractmethod
    def extents(self, path: Path, layer: str) -> LayerExtents:
        """Return where a layer's values lie."""

    def view(self, path: Path, extents: LayerExtents) -> list[Features]:
        """Return read-only zero-copy views [n, D], in order of rows, one a run (an empty run gives none)."""
        dtype = storage_dtype(extents.dtype).numpy
        return [
            np.memmap(path, dtype=dtype, mode="r", offset=run.offset, shape=(run.rows, extents.width))
            for run in extents.runs
            if run.rows
        ]

    def stream(self, path: Path, extents: LayerExtents, out: Features | None = None) -> Iterator[memoryview]:
        """Read a layer's bytes and yield them block by block.

        Args:
            path: The file.
            extents: Where they lie.
            out: Contiguous rows [N, D] to read into; if unsaid one small buffer, which each step overwrites.

        Raises:
            OSError: The file ends too early.
        """
        target = memoryview(bytearray(_BLOCK_BYTES)) if out is None else out.reshape(-1).view(np.uint8).data
        row_bytes = extents.width * storage_dtype(extents.dtype).itemsize
        with path.open("rb", buffering=0) as file:
            for run in extents.runs:
                file.seek(run.offset)
                left = run.rows * row_bytes
                while left:
                    count = file.readinto(target[: min(left, _BLOCK_BYTES)])
                    if not count:
                        raise OSError("the file ends inside a layer")
                    yield target[:count]
                    target = target if out is None else target[count:]
                    left -= count


class Hdf5Format(ShardFormat):
    """HDF5: `ids`, and one contiguous, unfiltered dataset `layers/<name>` [N, D] a layer.

    Written so that HDF5 1.10 and later read it and that equal input gives equal bytes. Open one with
    `h5py.File(path)["layers/<name>"]`; "/" in a layer's name is written "%2F".
    """

    suffix = ".h5"

    def write(self, path: Path, ids: Sequence[str], features: Mapping[str, Features], dtype: StorageDtype) -> None:
        """Write a shard."""
        import h5py

        options = {"libver": ("earliest", "v110"), "locking": False}
        aligned = {"alignment_threshold": _ALIGN, "alignment_interval": _ALIGN}
        with h5py.File(path, "w", **options, **aligned) as file:
            encoded = "\0".join(ids).encode().split(b"\0") if ids else []
            text = h5py.string_dtype("utf-8", max(map(len, encoded), default=1))
            file.create_dataset("ids", data=np.array(encoded, dtype=text), track_times=False)
            group = file.create_group("layers")
            for order, (layer, values) in enumerate(features.items()):
                dataset = group.create_dataset(escape(layer), data=values, dtype=dtype.numpy, track_times=False)
                dataset.attrs["dtype"] = np.bytes_(dtype.name)
                dataset.attrs["order"] = np.int64(order)

    def ids(self, path: Path) -> list[str]:
        """Read the ids."""
        with _open_hdf5(path) as file:
            encoded = file["ids"][()].tolist()
        return b"\0".join(encoded).decode().split("\0") if encoded else []

    def extents(self, path: Path, layer: str) -> LayerExtents:
        """Return where a layer's values lie."""
        with _open_hdf5(path) as file:
            dataset = file["layers"][escape(layer)]
            rows, width = dataset.shape
            dtype = bytes(dataset.attrs["dtype"]).decode()
            offset = dataset.id.get_offset()
        if rows and offset is None:
            raise ValueError("the layer is not contiguous")
        return LayerExtents(rows, width, dtype, (Extent(offset, rows),) if rows else ())


def escape(layer: str) -> str:
    """Return a layer's name as one HDF5 link name: no slash, not "."."""
    escaped = layer.replace("%", "%25").replace("/", "%2F")
    return escaped.replace(".", "%2E") if escaped.strip(".") == "" else escaped


def _open_hdf5(path: Path) -> Any:
    import h5py

    return h5py.File(path, "r", locking=False)


class ParquetFormat(ShardFormat):
    """Parquet: a column `sample_id` and one FixedSizeBinary column of D × itemsize bytes a layer.

    No compression, dictionary or statistics, one page a column and row group: the values lie in the file as in memory.
    The field's metadata says layer, dtype and width. Row r of a layer: `numpy.frombuffer(cell, dtype)`.
    """

    suffix = ".parquet"

    def write(self, path: Path, ids: Sequence[str], features: Mapping[str, Features], dtype: StorageDtype) -> None:
        """Write a shard."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        fields = [pa.field(_IDS, pa.string(), nullable=False)]
        columns = [pa.array(list(ids), pa.string())]
        for layer, values in features.items():
            kind = pa.binary(values.shape[1] * dtype.itemsize)
            about = {"layer": layer, "dtype": dtype.name, "width": str(values.shape[1])}
            fields.append(pa.field(_column(layer), kind, nullable=False, metadata=about))
            columns.append(pa.FixedSizeBinaryArray.from_buffers(kind, len(values), [None, pa.py_buffer(values)]))
        widest = max((column.type.byte_width for column in columns[1:]), default=1)
        pq.write_table(
            pa.Table.from_arrays(columns, schema=pa.schema(fields)),
            path,
            compression="NONE",
            use_dictionary=False,
            write_statistics=False,
            row_group_size=max(1, min(_GROUP_ROWS, _GROUP_BYTES // widest)),
            data_page_size=_NO_PAGE_LIMIT,
        )

    def ids(self, path: Path) -> list[str]:
        """Read the ids."""
        with _open_parquet(path) as file:
            ids: list[str] = file.read(columns=[_IDS]).column(0).to_pylist()
        return ids

    def extents(self, path: Path, layer: str) -> LayerExtents:
        """Return where a layer's values lie: each column chunk ends with its rows, after one page header."""
        with _open_parquet(path) as file:
            position = file.schema_arrow.get_field_index(_column(layer))
            if position < 1:
                raise KeyError(layer)
            field, metadata = file.schema_arrow.field(position), file.metadata
            groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
            runs = [_run(group, group.column(position), field.type.byte_width) for group in groups if group.num_rows]
        width, dtype = int(field.metadata[b"width"]), field.metadata[b"dtype"].decode()
        return LayerExtents(sum(run.rows for run in runs), width, dtype, tuple(runs))


def _run(group: Any, chunk: Any, row_bytes: int) -> Extent:
    end = chunk.data_page_offset + chunk.total_compressed_size
    return Extent(end - group.num_rows * row_bytes, group.num_rows)


def _column(layer: str) -> str:
    return f"layer:{layer}" if layer == _IDS or layer.startswith("layer:") else layer


def _open_parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, memory_map=True)


FORMATS: dict[str, ShardFormat] = {"hdf5": Hdf5Format(), "parquet": ParquetFormat()}


def format_of(path: Path) -> ShardFormat:
    """Return the format of a shard file by its ending."""
    return next(each for each in FORMATS.values() if each.suffix == path.suffix)
