"""A store in a torch DataLoader: any number of workers, forked or spawned, either format."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.errors import DamagedStoreError, UnknownNameError, UserError
from pipeline.store.reader import FeatureStore
from pipeline.store.views import RowDataset
from tests.store.building import fill, header, stored

FORMATS = ("hdf5", "parquet")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("workers", "start"), [(0, None), (2, "fork"), (2, "spawn")])
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_every_row_once_and_right(tmp_path: Path, kind: str, workers: int, start: str | None) -> None:
    fill(tmp_path, header(kind))
    store = FeatureStore.open(tmp_path)
    store.memmaps("output")  # opened here before the workers are: they open their own
    loader: DataLoader[Any] = DataLoader(
        RowDataset(store, ["output", "a/b"]),  # type: ignore[arg-type]
        batch_size=5,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context=start,
        generator=torch.Generator().manual_seed(3),
    )
    for _ in range(2):
        seen = []
        for features, rows in loader:
            for name in ("output", "a/b"):
                np.testing.assert_array_equal(features[name].numpy(), stored(name)[rows])
            seen += rows.tolist()
        assert sorted(seen) == list(range(22))
        assert seen != sorted(seen)
        if start == "spawn":
            break
    assert FeatureStore.open(tmp_path).samples.sample_id == store.ids


def test_shuffled_batches_are_the_same_from_both_formats(tmp_path: Path) -> None:
    stores = []
    for number, kind in enumerate(FORMATS):
        fill(tmp_path / kind, header(kind, shard_rows=10 - 3 * number))
        stores.append(FeatureStore.open(tmp_path / kind))
    ours, theirs = (list(store.batches("a/b", 4, shuffle=True, seed=11)) for store in stores)
    assert len(ours) == len(theirs) == 6
    for (rows, batch), (others, other) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(rows, others)
        assert torch.equal(batch, other)


def test_single_rows_and_refusals(tmp_path: Path) -> None:
    fill(tmp_path, header())
    rows = RowDataset(FeatureStore.open(tmp_path), ["output"])
    assert len(rows) == 22
    features, number = rows[-1]
    assert number == 21
    np.testing.assert_array_equal(features["output"].numpy(), stored("output")[21])
    with pytest.raises(IndexError, match="out of range"):
        rows[22]
    with pytest.raises(UnknownNameError, match="layer"):
        RowDataset(rows.store, ["other"])
    with pytest.raises(UserError, match="expected one layer or more"):
        RowDataset(rows.store, [])


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_worker_never_reads_a_damaged_shard(tmp_path: Path) -> None:
    fill(tmp_path, header())
    path = sorted(tmp_path.glob("00001-*.h5"))[0]
    data = bytearray(path.read_bytes())
    data[bytes(data).index(stored("output")[10:12].tobytes())] ^= 1
    path.write_bytes(data)
    rows = RowDataset(FeatureStore.open(tmp_path), ["output"])
    with pytest.raises(DamagedStoreError, match="found xxh3"):
        list(DataLoader(rows, batch_size=30))  # type: ignore[arg-type]
