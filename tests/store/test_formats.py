"""HDF5 and Parquet: the conformance suite, and what only one of them promises."""

from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq

from pipeline.store.formats import escape
from pipeline.store.key import Features
from tests.store.building import values
from tests.store.conformance import AWKWARD, FormatSuite


class TestHdf5(FormatSuite):
    name = "hdf5"

    def read_foreign(self, path: Path, layer: str) -> Features:
        with h5py.File(path) as file:
            read: Features = file[f"layers/{layer.replace('/', '%2F')}"][()]
            return read

    def test_layout(self, tmp_path: Path) -> None:
        ids = self.shard(tmp_path / "shard", {"a/b": values("a/b", 1000, "float32")})
        with h5py.File(tmp_path / "shard") as file:
            dataset = file["layers/a%2Fb"]
            assert (dataset.chunks, dataset.compression, dataset.shape) == (None, None, (1000, 5))
            assert dataset.id.get_offset() % 4096 == 0
            assert file["ids"].asstr()[()].tolist() == ids


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


def test_each_layer_has_its_own_link_in_hdf5() -> None:
    escaped = [escape(name) for name in AWKWARD]
    assert len(set(escaped)) == len(AWKWARD)
    assert not any("/" in name or not name.strip(".") for name in escaped)
