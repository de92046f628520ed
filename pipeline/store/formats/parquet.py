"""Parquet shards: a column `sample_id` and one FixedSizeBinary column of D × itemsize bytes a layer.

No compression, dictionary or statistics, one page a column and row group: the values lie in the file as in memory. The
field's metadata says layer, dtype and width. Row r of a layer: `numpy.frombuffer(cell, dtype)`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.store.formats.base import Extent, Features, LayerExtents, ShardFormat, StorageDtype

_IDS = "sample_id"
_GROUP_ROWS = 8192
_GROUP_BYTES = 1 << 28
_NO_PAGE_LIMIT = 1 << 30


class ParquetFormat(ShardFormat):
    """One file a shard, one column a layer."""

    name = "parquet"
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
        with _open(path) as file:
            ids: list[str] = file.read(columns=[_IDS]).column(0).to_pylist()
        return ids

    def layers(self, path: Path) -> tuple[str, ...]:
        """Return the layers' names."""
        with _open(path) as file:
            return tuple(field.metadata[b"layer"].decode() for field in list(file.schema_arrow)[1:])

    def extents(self, path: Path, layer: str) -> LayerExtents:
        """Return where a layer's values lie: each column chunk ends with its rows, after one page header."""
        with _open(path) as file:
            position = file.schema_arrow.get_field_index(_column(layer))
            if position < 1:
                raise KeyError(layer)
            field, metadata = file.schema_arrow.field(position), file.metadata
            groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
            runs = [_run(group, group.column(position), field.type.byte_width) for group in groups if group.num_rows]
        return LayerExtents(int(field.metadata[b"width"]), field.metadata[b"dtype"].decode(), tuple(runs))


def _run(group: Any, chunk: Any, row_bytes: int) -> Extent:
    end = chunk.data_page_offset + chunk.total_compressed_size
    return Extent(end - group.num_rows * row_bytes, group.num_rows)


def _column(layer: str) -> str:
    return f"layer:{layer}" if layer == _IDS or layer.startswith("layer:") else layer


def _open(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, memory_map=True)
