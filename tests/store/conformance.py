"""What every shard format must do: inherit `FormatSuite` and say which format."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from pipeline.errors import DamagedStoreError, UnfinishedStoreError, UnknownNameError, UserError
from pipeline.store.formats import FORMATS, array_xxh3
from pipeline.store.key import DTYPES, Features, storage_dtype
from pipeline.store.reader import FeatureStore
from pipeline.store.writer import StoreWriter
from tests.store.building import (
    BROKEN,
    ITEMS,
    LAYERS,
    WIDTHS,
    computed,
    fill,
    header,
    sample_id,
    samples,
    stored,
    values,
)

AWKWARD = ["a/b", ".", "..", "...", "100%", "%2F", "sample_id", "layer:x", "b.1", "b.1.x", "blöck 3", "ids", "layers"]


class FormatSuite:
    """Shards and whole stores of one format."""

    name: ClassVar[str]

    def read_foreign(self, path: Path, layer: str) -> Features:
        """Read a layer with the library alone, as another program would."""
        raise NotImplementedError

    def shard(self, path: Path, features: dict[str, Features], dtype: str = "float32") -> list[str]:
        rows = len(next(iter(features.values())))
        ids = [sample_id(item) for item in range(rows)]
        FORMATS[self.name].write(path, ids, features, storage_dtype(dtype))
        return ids

    @pytest.mark.parametrize("rows", [0, 1, 100, 8192, 8193, 20000])
    def test_a_shard_gives_back_what_it_got(self, tmp_path: Path, rows: int) -> None:
        shard_format, path = FORMATS[self.name], tmp_path / "shard"
        rng = np.random.default_rng(0)
        features: dict[str, Features] = {name: rng.normal(size=(rows, w)).astype("<f4") for name, w in WIDTHS.items()}
        ids = self.shard(path, features)
        assert shard_format.ids(path) == ids
        for name, expected in features.items():
            extents = shard_format.extents(path, name)
            assert (extents.rows, extents.width, extents.dtype) == (rows, WIDTHS[name], "float32")
            views = shard_format.view(path, extents)
            assert array_xxh3(views) == array_xxh3([expected])
            out = np.empty_like(expected)
            for into in (None, out):
                blocks = shard_format.stream(path, extents, into)
                assert b"".join(bytes(block) for block in blocks) == expected.tobytes()
            np.testing.assert_array_equal(out, expected)
            np.testing.assert_array_equal(self.read_foreign(path, name), expected)

    def test_awkward_layer_names(self, tmp_path: Path) -> None:
        features: dict[str, Features] = {name: np.full((3, 2), place, "<f4") for place, name in enumerate(AWKWARD)}
        self.shard(tmp_path / "shard", features)
        for place, name in enumerate(AWKWARD):
            out = np.empty((3, 2), "<f4")
            extents = FORMATS[self.name].extents(tmp_path / "shard", name)
            assert len(list(FORMATS[self.name].stream(tmp_path / "shard", extents, out))) == 1
            assert (out == place).all()

    def test_very_wide_rows(self, tmp_path: Path) -> None:
        features: dict[str, Features] = {"wide": np.random.default_rng(0).normal(size=(40, 300_001)).astype("<f4")}
        self.shard(tmp_path / "shard", features)
        extents = FORMATS[self.name].extents(tmp_path / "shard", "wide")
        views = FORMATS[self.name].view(tmp_path / "shard", extents)
        np.testing.assert_array_equal(np.concatenate(views), features["wide"])

    def test_equal_input_gives_equal_bytes(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            self.shard(tmp_path / name, {layer: values(layer, dtype="float32") for layer in LAYERS})
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()

    def test_a_layer_that_is_not_there(self, tmp_path: Path) -> None:
        self.shard(tmp_path / "shard", {"a": values("a", dtype="float32")})
        with pytest.raises(KeyError, match="b"):
            FORMATS[self.name].extents(tmp_path / "shard", "b")

    def test_a_file_that_ends_early(self, tmp_path: Path) -> None:
        path = tmp_path / "shard"
        self.shard(path, {"a": values("a", dtype="float32")})
        extents = FORMATS[self.name].extents(path, "a")
        path.write_bytes(path.read_bytes()[: extents.runs[0].offset + 8])
        with pytest.raises(OSError, match="ends inside a layer"):
            list(FORMATS[self.name].stream(path, extents, np.empty((ITEMS, 3), "<f4")))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_store_gives_back_what_it_got(self, tmp_path: Path, dtype: str) -> None:
        fill(tmp_path / "store", header(self.name, dtype=dtype))
        store = FeatureStore.open(tmp_path / "store")
        assert store.rows == ITEMS - 1
        assert store.ids == [sample_id(item) for item in range(ITEMS) if item != BROKEN]
        assert store.samples == samples().take(item for item in range(ITEMS) if item != BROKEN)
        assert [layer.name for layer in store.layers] == list(LAYERS)
        for name in LAYERS:
            expected = stored(name, dtype=dtype)
            np.testing.assert_array_equal(store.numpy(name), expected)
            np.testing.assert_array_equal(np.concatenate(store.memmaps(name)), expected)
            tensor = store.read(name)
            assert tensor.dtype == getattr(torch, dtype)
            np.testing.assert_array_equal(tensor.view(torch.uint8).numpy(), expected.view(np.uint8))
            assert store.read(name, torch.float64).dtype == torch.float64

    @pytest.mark.parametrize("shuffle", [False, True])
    @pytest.mark.parametrize("batch_size", [1, 7, 10, 100])
    def test_batches_cover_every_row_once(self, tmp_path: Path, batch_size: int, shuffle: bool) -> None:
        fill(tmp_path, header(self.name))
        seen: list[int] = []
        for rows, batch in FeatureStore.open(tmp_path).batches("output", batch_size, shuffle=shuffle, seed=3):
            assert 1 <= len(rows) <= batch_size
            np.testing.assert_array_equal(batch.numpy(), stored("output")[rows])
            seen += rows.tolist()
        assert sorted(seen) == list(range(ITEMS - 1))
        assert shuffle == (seen != sorted(seen))

    def test_all_items_rejected(self, tmp_path: Path) -> None:
        writer = StoreWriter(tmp_path, header(self.name, items=4, shard_rows=2))
        for shard in writer.work(["output"]):
            bad = [(sample_id(item), "zero bytes") for item in range(shard.start, shard.stop)]
            writer.commit(shard, [], {"output": np.empty((0, 2), np.float16)}, bad)
        assert writer.finish(samples(4), {}).rows == 0
        store = FeatureStore.open(tmp_path)
        assert store.numpy("output").shape == (0, 2)
        assert store.memmaps("output") == []
        assert list(store.batches("output", 5, shuffle=True)) == []
        assert list(store.batches("output", 5)) == []
        assert store.ids == []
        rejected = store.root.get("rejected.csv").decode()
        assert rejected.splitlines()[1:] == [f"{sample_id(i)},zero bytes" for i in range(4)]

    def test_nonfinite_values_are_counted(self, tmp_path: Path) -> None:
        writer = StoreWriter(tmp_path, header(self.name))
        for shard in writer.work(LAYERS):
            ids, features, rejected = computed(shard)
            features["output"][2, 1] = np.inf
            writer.commit(shard, ids, features, rejected)
        layers = {layer.name: layer.nonfinite for layer in writer.finish(samples(), {}).layers}
        assert layers == {"blocks.0": 0, "a/b": 0, "blocks.0.attn": 0, "output": 3}

    def test_more_layers_later_leave_the_old_ones_alone(self, tmp_path: Path) -> None:
        first = fill(tmp_path, header(self.name), ["output"])
        writer = StoreWriter(tmp_path, header(self.name))
        pending = writer.pending(["blocks.0", "output"])
        assert [shard.layers for shard in pending] == [("blocks.0",)] * 3
        writer.commit(pending[0], *computed(pending[0]))
        np.testing.assert_array_equal(FeatureStore.open(tmp_path).numpy("output"), stored("output"))
        with pytest.raises(UnfinishedStoreError, match="1 of 3 shards"):
            writer.finish(samples(), {})
        second = fill(tmp_path, header(self.name), ["blocks.0", "output"])
        assert [layer.name for layer in second.layers] == ["blocks.0", "output"]
        assert second.layers[1] == first.layers[0]
        assert set(first.shards) < set(second.shards)
        assert StoreWriter(tmp_path, header(self.name)).pending(["output"]) == []
        both = fill(tmp_path / "both", header(self.name), ["blocks.0", "output"])
        assert both.content_digest == second.content_digest

    def test_a_missing_or_cut_shard_is_redone_alone(self, tmp_path: Path, caplog: Any) -> None:
        before = fill(tmp_path, header(self.name))
        paths = [tmp_path / shard.name for shard in before.shards]
        content = [path.read_bytes() for path in paths]
        paths[0].unlink()
        paths[2].write_bytes(content[2][:-1])
        with pytest.raises(DamagedStoreError, match=rf"{paths[0].name} with .* bytes, found no file"):
            FeatureStore.open(tmp_path)
        writer = StoreWriter(tmp_path, header(self.name))
        assert [shard.index for shard in writer.pending(LAYERS)] == [0, 2]
        assert paths[0].name in caplog.text
        assert paths[2].name in caplog.text
        assert fill(tmp_path, header(self.name)) == before
        assert [path.read_bytes() for path in paths] == content

    def test_unknown_layer_lists_the_known(self, tmp_path: Path) -> None:
        fill(tmp_path, header(self.name), ["output"])
        with pytest.raises(UnknownNameError, match=r"layer \(output\).*'outputs'.*did you mean 'output'"):
            FeatureStore.open(tmp_path).read("outputs")

    def test_rows_that_differ_between_layers_are_refused(self, tmp_path: Path) -> None:
        fill(tmp_path, header(self.name), ["output"])
        writer = StoreWriter(tmp_path, header(self.name))
        shard = writer.pending(["a/b"])[0]
        ids, features, _ = computed(shard)
        with pytest.raises(UserError, match=r"the 10 rows of shard 0.*9 other rows"):
            writer.commit(shard, ids[1:], {"a/b": features["a/b"][1:]}, [(ids[0], "now broken")])
