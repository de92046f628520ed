"""A small made-up world: pictures, stores of both modalities, and runs, all written by the package's own writers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.projectors.base import LinearProjector
from pipeline.projectors.run_record import AlignedRun, save_projector
from pipeline.store.key import FeatureKey
from pipeline.store.manifest import Header
from pipeline.store.reader import FeatureStore
from pipeline.store.samples import Samples
from pipeline.store.writer import StoreWriter

LAYERS = ("block.0", "output")
WIDTH = 12
SHARD_ROWS = 16


def write_store(
    root: Path, modality: str, samples: Samples, features: dict[str, np.ndarray[Any, Any]], **changes: Any
) -> FeatureStore:
    """Write and open a store; `provenance` and fields of the key can be changed."""
    provenance = changes.pop("provenance", {"spec": f"package:tiny-{modality}"})
    fields: dict[str, Any] = {
        "dataset_digest": "d" * 8,
        "encoder": {"name": f"tiny-{modality}"},
        "preprocessing": {"size": 8},
        "pooling": "auto",
        "compute_dtype": "fp32",
        "storage_dtype": "float32",
    }
    key = FeatureKey(modality=modality, **(fields | changes))
    writer = StoreWriter(root, Header(key=key, items=len(samples), shard_rows=SHARD_ROWS, layer_names=LAYERS))
    for shard in writer.pending(LAYERS):
        part = {name: values[shard.start : shard.stop] for name, values in features.items()}
        writer.commit(shard, samples.sample_id[shard.start : shard.stop], part, [])
    writer.finish(samples, provenance)
    return FeatureStore.open(root)


@dataclass
class World:
    """Where everything lies, and what it was made from."""

    root: Path
    image: Path
    text: Path
    data: Path
    labels: list[str]
    image_features: dict[str, np.ndarray[Any, Any]]
    text_features: dict[str, np.ndarray[Any, Any]]
    image_samples: Samples
    text_samples: Samples
    records: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add_run(
        self,
        name: str,
        *,
        noise: float = 0.3,
        seeds: Sequence[int] = (1, 2),
        method: str = "",
        steps: int = 10,
        **record: Any,
    ) -> Path:
        """Write a run of linear projectors near the identity; more noise, worse retrieval."""
        path = self.root / "runs" / name
        entries = []
        for seed in seeds:
            generator = torch.Generator().manual_seed(1000 * seed + len(name))
            for side in ("image", "text"):
                projector = LinearProjector(WIDTH, WIDTH)
                with torch.no_grad():
                    for value in projector.parameters():
                        start = torch.eye(WIDTH) if value.ndim == 2 else torch.zeros(WIDTH)
                        value.copy_(start + noise * torch.randn(value.shape, generator=generator))
                save_projector(path / f"seed-{seed}", side, projector)
            if steps:
                lines = [
                    f'{{"step": {t}, "loss": {2 / (t + 1)}, "lambda_i2t": 0.6, "lambda_t2i": 0.4}}\n' for t in range(5)
                ]
                (path / f"seed-{seed}" / "history.jsonl").write_text("".join(lines))
            entries.append({"seed": seed, "folder": f"seed-{seed}", "steps": steps, "seconds": 0.5, "validation": {}})
        stores = {
            side: [
                {
                    "key_digest": store.key.digest(),
                    "content_digest": store.content_digest,
                    "key": store.key.to_json(),
                    "spec": f"package:tiny-{side}",
                    "path": str(store.root),
                }
            ]
            for side, store in (("image", FeatureStore.open(self.image)), ("text", FeatureStore.open(self.text)))
        }
        base: dict[str, Any] = {
            "method": method or name,
            "config": {"pairs": None, "temperature": {"initial": 0.07}},
            "layers": {"image": ["output"], "text": ["output"]},
            "stores": stores,
            "dim": WIDTH,
            "seeds": entries,
            "layer_scores": None,
            "versions": {"torch": "2.13.0"},
            "created": "2026-01-01T00:00:00+00:00",
        }
        AlignedRun.write(path, base | record)
        return path


def build_world(
    root: Path,
    *,
    images: int = 40,
    classes: Sequence[str] = ("cat", "dog", "<b>owl</b>"),
    pictures: bool = True,
    captions: Callable[[int], int] = lambda i: 1 + i % 3,
    seed: int = 0,
) -> World:
    """Make a world of so many images, half of them in the test split."""
    rng = np.random.default_rng(seed)
    data = root / "data"
    (data / "images").mkdir(parents=True)
    ids = [f"im{i:03d}" for i in range(images)]
    splits = ["test" if i % 2 else "train" if i % 4 else "val" for i in range(images)]
    labels = [classes[i % len(classes)] for i in range(images)]
    centres = rng.normal(size=(len(classes), WIDTH))
    base = centres[np.arange(images) % len(classes)] + rng.normal(size=(images, WIDTH))
    image_features = {name: base + 0.1 * rng.normal(size=base.shape) for name in LAYERS}
    owners = [i for i in range(images) for _ in range(captions(i))]
    rng.shuffle(owners)
    counter = [0] * images
    caption_ids = []
    for owner in owners:
        caption_ids.append(f"{ids[owner]}#{counter[owner]}")
        counter[owner] += 1
    text_features = {name: base[owners] + 0.5 * rng.normal(size=(len(owners), WIDTH)) for name in LAYERS}
    if pictures:
        for i, name in enumerate(ids):
            Image.new("RGB", (20 + i, 30), (i * 6 % 256, 90, 160)).save(data / "images" / f"{name}.jpg")
    image_samples = Samples(ids, ids, splits, labels, [f"images/{name}.jpg" for name in ids])
    text_samples = Samples(
        caption_ids,
        [ids[owner] for owner in owners],
        [""] * len(owners),
        [""] * len(owners),
        [f"caption <script>alert({row})</script> & of {ids[owner]}" for row, owner in enumerate(owners)],
    )
    world = World(
        root, root / "image", root / "text", data, labels, image_features, text_features, image_samples, text_samples
    )
    provenance = {"spec": "package:tiny-image", "dataset": str(data), "dataset_name": "made-up"}
    write_store(world.image, "image", image_samples, _float32(image_features), provenance=provenance)
    write_store(world.text, "text", text_samples, _float32(text_features))
    prompts = [(name, template) for name in classes for template in ("a photo of {}", "a drawing of {}")]
    class_samples = Samples(
        [f"{name}#{template}" for name, template in prompts],
        [""] * len(prompts),
        [""] * len(prompts),
        [name for name, _ in prompts],
        [template.format(name) for name, template in prompts],
    )
    prompt_rows = np.repeat(centres, 2, axis=0) + 0.2 * rng.normal(size=(len(prompts), WIDTH))
    write_store(world.text / "classes", "text", class_samples, _float32(dict.fromkeys(LAYERS, prompt_rows)))
    return world


def _float32(features: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: values.astype(np.float32) for name, values in features.items()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return build_world(tmp_path)


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[..., World]:
    def make(**settings: Any) -> World:
        return build_world(tmp_path / f"world-{len(list(tmp_path.iterdir()))}", **settings)

    return make
