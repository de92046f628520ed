"""Parquet: the conformance suite, and what only Parquet promises."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.store.formats.base import Features
from tests.store.building import values
from tests.store.conformance import FormatSuite


class TestParquet(FormatSuite):
    name = "parquet"

    def read_foreign(self, path: Path, layer: str) -> Features:
        column = pq.read_table(path).column(layer)
        width = int(pq.read_schema(path).field(layer).metadata[b"width"])
        cells = b"".join(column.to_pylist())
        return np.frombuffer(cells, "<f4").reshape(-1, width)

    def test_layout(self, tmp_path: Path) -> None:
        ids = self.shard(tmp_path / "shard", {"a/b": values("a/b", dtype="float32")})
        table = pq.read_table(tmp_path / "shard")
        assert table.column_names == ["sample_id", "a/b"]
        assert table.column("sample_id").to_pylist() == ids
        assert table.schema.field("a/b").metadata == {b"layer": b"a/b", b"dtype": b"float32", b"width": b"5"}
        column = pq.ParquetFile(tmp_path / "shard").metadata.row_group(0).column(1)
        assert column.compression == "UNCOMPRESSED"
        assert column.statistics is None
