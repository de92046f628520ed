"""The whole stage against CLIP_benchmark's own `evaluate` functions, run on the embeddings of one seed.

Skipped where clip-benchmark is not installed (`pip install --no-deps clip-benchmark`).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.run import evaluate
from pipeline.projectors.run_record import AlignedRun
from pipeline.store.reader import FeatureStore
from tests.evaluate.conftest import World


class Lookup:
    """A model as CLIP_benchmark takes it: images are rows, texts are looked up in a table."""

    def __init__(self, world: World, run: AlignedRun) -> None:
        prompts = FeatureStore.open(world.text / "classes")
        self.texts = [*world.text_samples.content, *prompts.samples.content]
        features = [world.text_features["output"].astype(np.float32), prompts.numpy("output")]
        self.text = run.encode("text", torch.from_numpy(np.concatenate(features)), run.seeds[0])
        self.image = run.encode("image", torch.from_numpy(world.image_features["output"].astype(np.float32)), 1)

    def tokenize(self, texts: list[str]) -> Tensor:
        return torch.tensor([self.texts.index(text) for text in texts])

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.text[tokens]

    def encode_image(self, rows: Tensor) -> Tensor:
        return self.image[rows]


class Loader:
    """Batches of (rows, targets); `dataset.classes` is what the scorer asks for."""

    def __init__(self, batches: list[tuple[Tensor, Any]], classes: list[str]) -> None:
        self.batches, self.dataset = batches, self
        self.classes = classes

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        return iter(self.batches)


@pytest.fixture
def evaluated(make_world: Any) -> tuple[World, Lookup, list[int], dict[str, Any]]:
    world = make_world(images=120, classes=[f"class {c}" for c in range(7)], pictures=False)
    path = world.add_run("info_nce", seeds=(1,), noise=0.6)
    config = EvaluateConfig(
        runs=(path,), image=(world.image,), text=(world.text,), out=world.root / "out", bootstrap=100, ks=(1, 4, 10, 37)
    )
    rows = [row for row, split in enumerate(world.image_samples.split) if split == "test"]
    return world, Lookup(world, AlignedRun.open(path)), rows, evaluate(config)


def test_retrieval(evaluated: tuple[World, Lookup, list[int], dict[str, Any]]) -> None:
    theirs: Any = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval", exc_type=ImportError)
    world, model, rows, ours = evaluated
    samples = world.text_samples
    texts = [
        [text for text, owner in zip(samples.content, samples.image_id, strict=True) if owner == f"im{row:03d}"]
        for row in rows
    ]
    loader = Loader([(torch.tensor(rows[at : at + 16]), texts[at : at + 16]) for at in range(0, len(rows), 16)], [])
    found = theirs.evaluate(model, loader, model.tokenize, "cpu", amp=False, recall_k_list=[1, 4, 10, 37])
    assert len(found) == 8
    for name, value in found.items():
        assert ours[name] == pytest.approx(value, abs=1e-7), name


@pytest.mark.parametrize("form", ["templates", "dictionary"])
def test_zero_shot(
    evaluated: tuple[World, Lookup, list[int], dict[str, Any]], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Templates with the class name in {c}, and a dictionary of prompts for each class."""
    theirs: Any = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification", exc_type=ImportError)
    # Its accuracy calls float() on arrays of one element, which numpy 2.4 refuses.
    monkeypatch.setattr(theirs, "float", lambda value: np.asarray(value).item(), raising=False)
    world, model, rows, ours = evaluated
    classes = sorted(set(world.labels))
    templates: Any = ["a photo of {c}", "a drawing of {c}"]
    if form == "dictionary":
        templates = {name: [template.format(c=name) for template in templates] for name in classes}
    target = torch.tensor([classes.index(world.labels[row]) for row in rows])
    loader = Loader([(torch.tensor(rows), target)], classes)
    found = theirs.evaluate(model, loader, model.tokenize, classes, templates, "cpu", amp=False)
    assert set(found) == {"acc1", "acc5", "mean_per_class_recall"}
    for name, value in found.items():
        assert ours[name] == pytest.approx(value, abs=1e-7), name
