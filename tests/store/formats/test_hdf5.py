"""HDF5: the conformance suite, and what only HDF5 promises."""

from pathlib import Path

import h5py
import pytest

from pipeline.store.formats.base import Features
from pipeline.store.formats.hdf5 import escape, unescape
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


@pytest.mark.parametrize("name", AWKWARD)
def test_escape_is_undone_and_makes_one_link(name: str) -> None:
    assert unescape(escape(name)) == name
    assert "/" not in escape(name)
    assert escape(name).strip(".")
