"""A run over a store of several shards, small enough that its index takes milliseconds."""

from pathlib import Path
from typing import Any

import torch

from pipeline.apps.config import IndexConfig
from pipeline.projectors.base import LinearProjector
from pipeline.projectors.run_record import AlignedRun, save_projector
from pipeline.store.key import FeatureKey
from pipeline.store.manifest import Header
from pipeline.store.reader import FeatureStore
from pipeline.store.samples import Samples
from pipeline.store.writer import StoreWriter

ROWS, WIDTH, SHARD_ROWS = 600, 8, 70


def write_run(folder: Path, rows: int = ROWS, shard_rows: int = SHARD_ROWS) -> Path:
    """Write stores of random features and a run over them; every fifth image is a test image."""
    draw = torch.Generator().manual_seed(0)
    names = [f"i{number:05}" for number in range(rows)]
    splits = ["test" if number % 5 == 0 else "train" for number in range(rows)]
    images = Samples(names, names, splits, [""] * rows, [f"{name}.png" for name in names])
    texts = Samples([f"{name}#0" for name in names], names, [""] * rows, [""] * rows, [f"about {n}" for n in names])
    stores = {
        side: [_store(folder / side, side, samples, torch.randn(rows, WIDTH, generator=draw), shard_rows)]
        for side, samples in (("image", images), ("text", texts))
    }
    torch.manual_seed(0)
    for side in ("image", "text"):
        save_projector(folder / "run" / "seed-7", side, LinearProjector(WIDTH, 4))
    AlignedRun.write(
        folder / "run",
        {
            "method": "random",
            "config": {"train_split": "train"},
            "layers": {"image": ["output"], "text": ["output"]},
            "stores": stores,
            "dim": 4,
            "seeds": [{"seed": 7, "folder": "seed-7"}],
        },
    )
    return folder / "run"


def config(folder: Path, **changes: Any) -> IndexConfig:
    """Return what builds the index of `write_run(folder)` in `folder/index`."""
    return IndexConfig(**{"run": folder / "run", "out": folder / "index", "parts": 3, "k": 5, **changes})


def index_bytes(folder: Path) -> dict[str, bytes]:
    """Return the bytes of an index, but for its record, which has times in it."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "index.json"}


def _store(root: Path, modality: str, samples: Samples, rows: torch.Tensor, shard_rows: int) -> dict[str, Any]:
    key = FeatureKey(
        modality=modality,
        dataset_digest="d",
        encoder={"name": modality},
        preprocessing={},
        pooling="auto",
        compute_dtype="float32",
        storage_dtype="float32",
    )
    writer = StoreWriter(root, Header(key=key, items=len(samples), layer_names=("output",), shard_rows=shard_rows))
    for shard in writer.pending(["output"]):
        part = slice(shard.start, shard.stop)
        writer.commit(shard, samples.sample_id[part], {"output": rows[part].numpy()}, [])
    writer.finish(samples, {"spec": "random"})
    store = FeatureStore.open(root)
    digests = {"key_digest": store.key.digest(), "content_digest": store.content_digest}
    return {**digests, "key": store.key.to_json(), "spec": "random", "path": str(root)}
