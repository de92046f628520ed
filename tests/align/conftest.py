"""Synthetic stores: two random linear views of one latent, so that learning can be checked."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.store.key import FeatureKey
from pipeline.store.manifest import Header
from pipeline.store.samples import Samples
from pipeline.store.writer import StoreWriter

Layers = Mapping[str, NDArray[np.float32]]
LATENT, WIDTHS = 8, {"image": 24, "text": 16}


@dataclass(frozen=True)
class Stores:
    """Paths of an image and a text store."""

    image: Path
    text: Path


MakeStores = Callable[..., Stores]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, and on a busy machine waiting threads cost minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_store(root: Path, modality: str, samples: Samples, layers: Layers) -> Path:
    key = FeatureKey(
        modality=modality,
        dataset_digest="synthetic",
        encoder={"spec": f"random:{modality}"},
        preprocessing={},
        pooling="auto",
        compute_dtype="float32",
        storage_dtype="float32",
    )
    writer = StoreWriter(root, Header(key=key, items=len(samples), layer_names=tuple(layers)))
    for shard in writer.work(tuple(layers)):
        rows = slice(shard.start, shard.stop)
        writer.commit(shard, samples.sample_id[rows], {name: values[rows] for name, values in layers.items()})
    writer.finish(samples, {"spec": f"random:{modality}"})
    return root


def views(latent: NDArray[np.float32], width: int, seed: int) -> dict[str, NDArray[np.float32]]:
    """Layers of one encoder: noise, a clear view of the latent, and a blurred one as the last."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((LATENT, width)) / np.sqrt(LATENT)
    noise = rng.standard_normal((3, len(latent), width))
    signal = latent @ mix
    layers = {"block0": noise[0], "block1": signal + 0.1 * noise[1], "output": signal + 0.6 * noise[2]}
    return {name: (5 * values + 2).astype(np.float32) for name, values in layers.items()}


@pytest.fixture(scope="session")
def make_stores(tmp_path_factory: pytest.TempPathFactory) -> MakeStores:
    """Return a maker of stores with `train`, `val`, `test` images and `captions` captions each."""

    def make(
        train: int = 200,
        val: int = 60,
        test: int = 40,
        captions: int = 2,
        change: Callable[[str, dict[str, NDArray[np.float32]]], None] | None = None,
    ) -> Stores:
        root = tmp_path_factory.mktemp("stores")
        rng = np.random.default_rng(0)
        count = train + val + test
        order = rng.permutation(count)
        split = [("train", "val", "test")[int(i >= train) + int(i >= train + val)] for i in order]
        latent = rng.standard_normal((count, LATENT)).astype(np.float32)
        ids = [f"im{i:04d}" for i in range(count)]
        owner = np.repeat(np.arange(count), captions)
        jitter = 0.1 * rng.standard_normal((len(owner), LATENT))
        names = [f"{ids[i]}#{k % captions}" for k, i in enumerate(owner)]
        image_samples = Samples(ids, ids, split, [""] * count, ids)
        text_samples = Samples(names, [ids[i] for i in owner], [split[i] for i in owner], [""] * len(owner), names)
        layers = {
            "image": views(latent, WIDTHS["image"], 1),
            "text": views((latent[owner] + jitter).astype(np.float32), WIDTHS["text"], 2),
        }
        for side, values in layers.items():
            if change is not None:
                change(side, values)
        return Stores(
            write_store(root / "image", "image", image_samples, layers["image"]),
            write_store(root / "text", "text", text_samples, layers["text"]),
        )

    return make


@pytest.fixture(scope="session")
def stores(make_stores: MakeStores) -> Stores:
    """Return stores of 200 training, 60 validation and 40 test images, two captions each."""
    return make_stores()
