"""Small stores for the tests: data that any process can compute again, and one item that is always rejected."""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.storage.contract import Place
from pipeline.store.commit import PendingShard
from pipeline.store.key import FeatureKey, Features, storage_dtype
from pipeline.store.manifest import Header, Manifest
from pipeline.store.samples import Samples
from pipeline.store.writer import StoreWriter

ITEMS = 23
BROKEN = 11
LAYERS = ("blocks.0", "a/b", "blocks.0.attn", "output")
WIDTHS = {"blocks.0": 3, "a/b": 5, "blocks.0.attn": 4, "output": 2}
KEY = FeatureKey(
    modality="image",
    dataset_digest="d" * 64,
    encoder={"family": "toy", "weights": {"sha256": "w" * 64, "files": ["a", "b"]}},
    preprocessing={"size": [224, 224], "mean": 0.5, "prompt": ""},
    pooling="auto",
    compute_dtype="fp32",
    storage_dtype="float16",
)


def header(file_format: str = "hdf5", *, shard_rows: int = 10, items: int = ITEMS, dtype: str = "float16") -> Header:
    """Return the header of a toy store."""
    key = replace(KEY, storage_dtype=dtype)
    return Header(key=key, items=items, shard_rows=shard_rows, file_format=file_format, layer_names=LAYERS)


def sample_id(item: int) -> str:
    """Return an item's id, of varying length and not all ASCII."""
    return f"bild-{'é' * (item % 3)}{item}"


def samples(items: int = ITEMS, split: str = "train") -> Samples:
    """Return the samples of a toy data set."""
    ids = [sample_id(item) for item in range(items)]
    return Samples(ids, ids, [split] * items, ["cat"] * items, [f"images/{item}.jpg" for item in range(items)])


def values(layer: str, items: int = ITEMS, dtype: str = "float16") -> Features:
    """Return the layer's values [items, D] of all items, the broken one too."""
    rng = np.random.default_rng(zlib.crc32(layer.encode()))
    wide: Features = rng.normal(size=(items, WIDTHS.get(layer, 3))).astype(np.float32)
    if dtype == "bfloat16":
        return (wide.view(np.uint32) >> 16).astype(np.uint16)
    return wide.astype(storage_dtype(dtype).numpy)


def stored(layer: str, items: int = ITEMS, dtype: str = "float16") -> Features:
    """Return the layer's values [N, D] of the rows that a store holds."""
    return np.delete(values(layer, items, dtype), BROKEN, axis=0)


def computed(shard: PendingShard, dtype: str = "float16", items: int = ITEMS) -> tuple[list[str], Any, Any]:
    """Return ids, features and rejected items of a shard, as an encoder would give them."""
    rows = [item for item in range(shard.start, shard.stop) if item != BROKEN]
    features = {layer: values(layer, items, dtype)[rows] for layer in shard.layers}
    rejected = [(sample_id(BROKEN), "truncated image")] if shard.start <= BROKEN < shard.stop else []
    return [sample_id(item) for item in rows], features, rejected


def fill(root: Place, head: Header, layers: Sequence[str] = LAYERS) -> Manifest:
    """Write what a store lacks, and finish it."""
    writer = StoreWriter(root, head)
    for shard in writer.work(layers):
        writer.commit(shard, *computed(shard, head.key.storage_dtype, head.items))
    return writer.finish(samples(head.items), {"spec": "toy"})
