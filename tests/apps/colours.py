"""A run on pictures of plain colours, with stores and encoders small enough to compute by hand."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pipeline.projectors.base import IdentityProjector
from pipeline.projectors.run_record import AlignedRun, save_projector
from pipeline.store.key import FeatureKey
from pipeline.store.manifest import Header
from pipeline.store.reader import FeatureStore
from pipeline.store.samples import Samples
from pipeline.store.writer import StoreWriter
from tests.apps import tiny

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250), "violet": (250, 10, 250)}
ODD = "a/b ?#&=<b>%2e.png"
ODD_CAPTION = '<img src="/x" onerror="document.title=1"> red green blue'


def write_store(root: Path, modality: str, samples: Samples, rows: torch.Tensor, data: Path) -> dict[str, Any]:
    """Write a store and return its record for run.json."""
    preprocessing = {"decode": {"version": 1}} if modality == "image" else {}
    name = "colours" if modality == "image" else "words"
    key = FeatureKey(
        modality=modality,
        dataset_digest="d",
        encoder={"name": name, "version": 1},
        preprocessing=preprocessing,
        pooling="auto",
        compute_dtype="float32",
        storage_dtype="float16",
    )
    writer = StoreWriter(root, Header(key=key, items=len(samples), layer_names=("output",)))
    for shard in writer.pending(["output"]):
        writer.commit(shard, samples.sample_id, {"output": rows.half().numpy()}, [])
    spec = f"tests.apps.tiny:{name.title()}"
    writer.finish(samples, {"spec": spec, "dataset": str(data)})
    store = FeatureStore.open(root)
    return {
        "key_digest": store.key.digest(),
        "content_digest": store.content_digest,
        "key": store.key.to_json(),
        "spec": spec,
        "path": str(root),
    }


def write_run(path: Path, stores: dict[str, list[dict[str, Any]]], seeds: tuple[int, ...] = (7,)) -> Path:
    """Write a run of identity projectors over stores and return its folder."""
    for seed in seeds:
        for side in ("image", "text"):
            save_projector(path / f"seed-{seed}", side, IdentityProjector(3, 3))
    record = {
        "method": "identity",
        "config": {},
        "layers": {"image": ["output"], "text": ["output"]},
        "stores": stores,
        "dim": 3,
        "seeds": [{"seed": seed, "folder": f"seed-{seed}"} for seed in seeds],
    }
    AlignedRun.write(path, record)
    return path


def make_run(folder: Path, seeds: tuple[int, ...] = (7,), odd: bool = False) -> Path:
    """Write four pictures, their stores and a run into a folder; return the run's folder.

    `odd` adds a grey picture with a name and a caption that want to be something else.
    """
    colours = {**COLOURS, ODD: (90, 90, 90)} if odd else COLOURS
    names = list(colours)
    files = [f"{place}.png" if name == ODD else f"{name}.png" for place, name in enumerate(names)]
    for file, colour in zip(files, colours.values(), strict=True):
        Image.new("RGB", (9, 7), colour).save(folder / file)
    splits = ["train" if name in ("red", "green") else "test" for name in names]
    rows = torch.tensor(list(colours.values())).float() / 255
    images = Samples(names, names, splits, [""] * len(names), files)
    special = {"violet": "red and blue", ODD: ODD_CAPTION}
    texts = [special.get(name, f"something {name}") for name in names]
    captions = Samples([f"{name}#0" for name in names], names, [""] * len(names), [""] * len(names), texts)
    counts = torch.tensor([[text.split().count(word) for word in tiny.WORDS] for text in texts]).float()
    stores = {
        "image": [write_store(folder / "image", "image", images, rows, folder)],
        "text": [write_store(folder / "text", "text", captions, counts, folder)],
    }
    return write_run(folder / "run", stores, seeds)
