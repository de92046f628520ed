"""Exports say the same as the store; what is taken in comes out the same."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from pipeline.errors import KeyMismatchError, UnknownNameError, UserError
from pipeline.store.inspect import verify
from pipeline.store.interop import convert, ingest
from pipeline.store.reader import FeatureStore
from pipeline.store.samples import Samples
from pipeline.store.writer import StoreWriter
from tests.store.building import KEY, LAYERS, fill, header, stored


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    fill(tmp_path / "store", header())
    return FeatureStore.open(tmp_path / "store")


def test_npy(store: FeatureStore, tmp_path: Path) -> None:
    files = convert(store.root, tmp_path / "out", "npy", layers=["a/b", "output"])
    assert [path.name for path in files] == ["a%2Fb.npy", "output.npy", "ids.json"]
    np.testing.assert_array_equal(np.load(files[0]), stored("a/b"))
    assert json.loads(files[2].read_text()) == store.ids
    with pytest.raises(UserError, match=r"a new file, found a%2Fb\.npy exists"):
        convert(store.root, tmp_path / "out", "npy")


def test_safetensors_keeps_bfloat16(tmp_path: Path) -> None:
    fill(tmp_path / "store", header(dtype="bfloat16"))
    files = convert(tmp_path / "store", tmp_path / "out", "safetensors")
    tensors = load_file(files[0])
    assert set(tensors) == set(LAYERS)
    assert tensors["output"].dtype == torch.bfloat16
    np.testing.assert_array_equal(
        tensors["output"].view(torch.int16).numpy().view(np.uint16), stored("output", dtype="bfloat16")
    )


def test_parquet_columns(tmp_path: Path) -> None:
    fill(tmp_path / "store", header(dtype="bfloat16"))
    (path,) = convert(tmp_path / "store", tmp_path / "out", "parquet")
    table = pq.read_table(path)
    assert table.column_names == ["sample_id", "image_id", "split", "label", "content", *LAYERS]
    expected = torch.from_numpy(stored("a/b", dtype="bfloat16").view(np.int16)).view(torch.bfloat16).float()
    np.testing.assert_array_equal(np.array(table.column("a/b").to_pylist(), np.float32), expected.numpy())


def text_store(path: Path, image_ids: list[str]) -> FeatureStore:
    ids = [f"{name}#{place}" for place, name in enumerate(image_ids)]
    np.save(path.with_suffix(".npy"), np.arange(len(ids) * 2, dtype=np.float32).reshape(-1, 2))
    path.with_suffix(".json").write_text(json.dumps(ids))
    ingest(vectors=path.with_suffix(".npy"), ids=path.with_suffix(".json"), out=path, modality="text")
    return FeatureStore.open(path)


def test_clip_retrieval_pairs_rows(store: FeatureStore, tmp_path: Path) -> None:
    captions = text_store(tmp_path / "text", ["gone", store.ids[4], store.ids[2], store.ids[4]])
    image, text, table = convert(store.root, tmp_path / "out", "clip-retrieval", text=captions.root)
    assert [str(path.relative_to(tmp_path / "out")) for path in (image, text, table)] == [
        "img_emb/img_emb_0.npy", "text_emb/text_emb_0.npy", "metadata/metadata_0.parquet",
    ]  # fmt: skip
    np.testing.assert_array_equal(np.load(image), stored("output")[[2, 4]])
    np.testing.assert_array_equal(np.load(text), captions.numpy("output")[[2, 1]])
    assert pq.read_table(table).column("image_path").to_pylist() == ["images/2.jpg", "images/4.jpg"]


def test_clip_retrieval_of_one_store(store: FeatureStore, tmp_path: Path) -> None:
    image, table = convert(store.root, tmp_path / "out", "clip-retrieval", layers=["a/b"])
    np.testing.assert_array_equal(np.load(image), stored("a/b"))
    assert pq.read_table(table).num_rows == 22


def test_refusals(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"export layout \(npy, .*'numpy'"):
        convert(store.root, tmp_path, "numpy")
    with pytest.raises(UnknownNameError, match=r"layer .*'outptu'"):
        convert(store.root, tmp_path, "npy", layers=["outptu"])
    with pytest.raises(UserError, match="one layer for clip-retrieval, found a/b, output"):
        convert(store.root, tmp_path, "clip-retrieval", layers=["a/b", "output"])
    with pytest.raises(UserError, match="an image store and a text store, found image and image"):
        convert(store.root, tmp_path, "clip-retrieval", text=store.root)


@pytest.mark.parametrize("file_format", ["hdf5", "parquet"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_ingest_npy(tmp_path: Path, file_format: str, dtype: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(11, 3)).astype(dtype)
    np.save(tmp_path / "v.npy", vectors)
    (tmp_path / "ids.csv").write_text(
        "sample_id,image_id,split\n" + "".join(f"c{i},i{i // 2},test\n" for i in range(11))
    )
    take = partial(
        ingest,
        vectors=tmp_path / "v.npy",
        ids=tmp_path / "ids.csv",
        out=tmp_path / "store",
        modality="text",
        shard_rows=4,
        file_format=file_format,
    )
    manifest = take()
    assert take() == manifest
    store = FeatureStore.open(tmp_path / "store")
    np.testing.assert_array_equal(store.numpy("output"), vectors)
    assert store.samples.image_id == [f"i{i // 2}" for i in range(11)]
    assert set(store.samples.split) == {"test"}
    assert store.key.encoder["family"] == "ingested"
    assert verify(store.root, deep=True) == []
    np.save(tmp_path / "v.npy", vectors + 1)
    with pytest.raises(KeyMismatchError, match=r"encoder\.content"):
        take()


@pytest.mark.parametrize("kind", ["list", "large", "fixed"])
def test_ingest_parquet(tmp_path: Path, kind: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    kinds = {"list": pa.list_(pa.float32()), "large": pa.large_list(pa.float32()), "fixed": pa.list_(pa.float32(), 3)}
    columns: dict[str, Any] = {
        "sample_id": [f"a#{i}" for i in range(5)],
        "vector": pa.array(vectors.tolist(), kinds[kind]),
    }
    pq.write_table(pa.table({**columns, "label": ["x", None, "y", "", "z"]}), tmp_path / "v.parquet")
    ingest(vectors=tmp_path / "v.parquet", out=tmp_path / "store", modality="text")
    store = FeatureStore.open(tmp_path / "store")
    np.testing.assert_array_equal(store.numpy("output"), vectors)
    assert store.samples == Samples(columns["sample_id"], ["a"] * 5, [""] * 5, ["x", "", "y", "", "z"], [""] * 5)


def test_ingest_takes_its_own_export(store: FeatureStore, tmp_path: Path) -> None:
    convert(store.root, tmp_path / "out", "parquet", layers=["output"])
    ingest(vectors=tmp_path / "out" / "features.parquet", out=tmp_path / "again", modality="image")
    again = FeatureStore.open(tmp_path / "again")
    assert again.samples == store.samples
    assert again.content_digest == convert_digest(store, tmp_path)


def convert_digest(store: FeatureStore, tmp_path: Path) -> str:
    return fill(tmp_path / "output alone", header(), ["output"]).content_digest


def refused() -> list[tuple[Any, str, str | None, str]]:
    good = np.zeros((3, 2), np.float32)
    return [
        (good, "ids.txt", None, "ids .*, found no such file"),
        (good, "ids.txt", "a\nb\n", "one id for each vector, found 2 ids for 3 vectors"),
        (good, "ids.json", "{", "expected a file of ids, found Expecting"),
        (good, "ids.json", "3", "expected a file of ids, found 'int' object"),
        (good, "ids.csv", "name\na\nb\nc\n", "a column sample_id, found none"),
        (good, "ids.txt", "a\nb\na\n", "every sample id once, found 'a' twice"),
        (np.zeros((3, 2), np.int64), "ids.txt", "a\nb\nc\n", r"float16, float32 or float64, found \[3, 2\] in int64"),
        (np.zeros(3, np.float32), "ids.txt", "a\nb\nc\n", r"found \[3\] in float32"),
        (np.zeros((0, 2), np.float32), "ids.txt", "", "found 0 ids for 0 vectors"),
        (b"no array", "ids.txt", "a\nb\nc\n", "expected an npy array"),
        (np.array([{}, 1], dtype=object), "ids.txt", "a\nb\n", "expected an npy array, found .*Python objects"),
    ]


@pytest.mark.parametrize(("vectors", "name", "ids", "message"), refused())
def test_ingest_refuses(tmp_path: Path, vectors: Any, name: str, ids: str | None, message: str) -> None:
    if isinstance(vectors, bytes):
        (tmp_path / "v.npy").write_bytes(vectors)
    else:
        np.save(tmp_path / "v.npy", vectors)
    if ids is not None:
        (tmp_path / name).write_text(ids)
    take = partial(ingest, vectors=tmp_path / "v.npy", ids=tmp_path / name, out=tmp_path / "store", modality="image")
    with pytest.raises(UserError, match=message):
        take()


def test_ingest_refuses_other_files(tmp_path: Path) -> None:
    for name, message in (
        ("v.npy", "no such file"),
        ("v.csv", r"\.npy or \.parquet, found \.csv"),
        ("v.parquet", "a Parquet file"),
    ):
        if name != "v.npy":
            (tmp_path / name).write_text("x")
        with pytest.raises(UserError, match=message):
            ingest(vectors=tmp_path / name, out=tmp_path / "store", modality="image")


def test_ingest_refuses_vectors_of_several_widths_or_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"sample_id": ["a", "b"], "v": [[1.0], [1.0, 2.0]]}), tmp_path / "v.parquet")
    take = partial(ingest, vectors=tmp_path / "v.parquet", out=tmp_path / "store", modality="image")
    with pytest.raises(UserError, match=r"vectors of one width.*widths \[1, 2\]"):
        take()
    pq.write_table(pa.table({"sample_id": ["a"], "v": [[1.0]], "w": [[1.0]]}), tmp_path / "v.parquet")
    with pytest.raises(UserError, match=r"one list column of vectors, found list columns v, w; name it"):
        take()


def test_a_writer_never_mixes_ingested_and_computed(tmp_path: Path) -> None:
    text_store(tmp_path / "text", ["a", "b"])
    with pytest.raises(KeyMismatchError, match=r"modality = \"image\""):
        StoreWriter(tmp_path / "text", header())
    assert KEY.modality == "image"
