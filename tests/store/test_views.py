"""Several stores of a side as one table: joined by id, concatenated, checked."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.layers import LayerRef, parse_label
from pipeline.store.key import FeatureKey
from pipeline.store.manifest import Header
from pipeline.store.samples import Samples
from pipeline.store.views import Side
from pipeline.store.writer import StoreWriter
from tests.store.building import KEY

A, B = LayerRef(0, "a"), LayerRef(0, "b")


def store(root: Path, ids: list[str], layers: Mapping[str, Any], key: FeatureKey = KEY) -> Path:
    """Write a store of these ids and layers, float32."""
    samples = Samples(ids, ids, ["test"] * len(ids), [""] * len(ids), ids)
    header = Header(key=replace(key, storage_dtype="float32"), items=len(ids), layer_names=tuple(layers), shard_rows=2)
    writer = StoreWriter(root, header)
    for shard in writer.pending(tuple(layers)):
        part = {name: np.asarray(rows, np.float32)[shard.start : shard.stop] for name, rows in layers.items()}
        writer.commit(shard, ids[shard.start : shard.stop], part)
    writer.finish(samples, {})
    return root


def test_rows_are_matched_by_id_and_layers_concatenated(tmp_path: Path) -> None:
    one = store(tmp_path / "one", ["x", "y", "z"], {"a": [[1, 2], [3, 4], [5, 6]]})
    two = store(tmp_path / "two", ["z", "w", "x"], {"a": [[7], [8], [9]]})
    side = Side.open("image", [one, two])
    assert side.samples.sample_id == ["x", "z"]
    assert [side.label(layer) for layer in side.layers()] == ["0/a", "1/a"]
    assert side.widths(side.layers()) == [2, 1]
    assert side.read(side.layers(), np.array([1, 0])).tolist() == [[5, 6, 7], [1, 2, 9]]
    assert [parse_label(side.label(layer), 2) for layer in side.layers()] == side.layers()


def test_labels_that_name_no_store() -> None:
    assert parse_label("output", 1) == LayerRef(0, "output")
    assert parse_label("0/output", 1) == LayerRef(0, "0/output")
    assert [parse_label(label, 2) for label in ("output", "2/output", "-1/output", "/output", "²/a")] == [None] * 5


def test_one_row_and_duplicates_are_fine(tmp_path: Path) -> None:
    side = Side.open("image", [store(tmp_path / "one", ["x", "y", "z"], {"a": [[1, 1], [1, 1], [2, 2]]})])
    assert side.read([A], np.array([0])).tolist() == [[1, 1]]
    assert side.read([A], np.array([0, 1, 2, 2])).tolist() == [[1, 1], [1, 1], [2, 2], [2, 2]]


def test_broken_features_are_one_sentence(tmp_path: Path) -> None:
    values = {"a": [[1, 1], [np.nan, 1], [1, np.inf]], "b": [[2, 2]] * 3}
    side = Side.open("image", [store(tmp_path / "one", ["x", "y", "z"], values)])
    everything = np.arange(3)
    with pytest.raises(UserError, match=r"layer a: .*finite features, found NaN or infinity in 2 of 3 rows.*'y'"):
        side.read([A], everything)
    with pytest.raises(UserError, match=r"layer b: .*differ between samples, found 3 equal rows"):
        side.read([B], everything)
    assert side.read([B], everything, constant_allowed=True).tolist() == [[2, 2]] * 3
    assert side.read([A], np.array([0])).tolist() == [[1, 1]]


def test_values_whose_squares_overflow_are_told(tmp_path: Path) -> None:
    side = Side.open("image", [store(tmp_path / "one", ["x", "y"], {"a": [[3e38, 3e38], [3, 1]], "b": [[1e19], [1]]})])
    with pytest.raises(UserError, match=r"squares fit float32, found values up to 3e\+38 in 1 of 2 rows"):
        side.read([A], np.arange(2))
    everything = np.repeat([0, 1], 5)
    assert side.read([B], everything).shape == (10, 1)


def test_stores_that_do_not_belong_together(tmp_path: Path) -> None:
    one = store(tmp_path / "one", ["x", "y"], {"a": [[1], [2]]})
    other = store(tmp_path / "other", ["v", "w"], {"a": [[1], [2]]})
    text = store(tmp_path / "text", ["x", "y"], {"a": [[1], [2]]}, replace(KEY, modality="text"))
    with pytest.raises(UserError, match="stores of the same data set, found no sample in common"):
        Side.open("image", [one, other])
    with pytest.raises(UserError, match="expected a store of image features, found a store of text features"):
        Side.open("image", [one, text])
    with pytest.raises(UserError, match="expected a feature store's folder"):
        Side.open("image", [tmp_path / "nothing"])
