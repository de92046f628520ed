"""Stores in miniature: the pairs of tests/align, and a zero-shot set over the same latent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.evaluate.config import ZeroShotConfig
from pipeline.store.samples import Samples
from pipeline.sweep.config import SweepConfig, methods_of
from tests.align.conftest import LATENT, WIDTHS, Stores, _one_thread, make_stores, stores, views, write_store

__all__ = ["_one_thread", "make_stores", "stores"]

CLASSES = ("cat", "dog", "owl", "elk", "bee", "fox")
QUICK: dict[str, Any] = {"dim": 8, "training": {"max_steps": 30, "validations": 3, "learning_rate": 0.01}}

MakeSweep = Callable[..., SweepConfig]


@pytest.fixture(scope="session")
def class_set(tmp_path_factory: pytest.TempPathFactory) -> ZeroShotConfig:
    """Return 60 images of six classes, two prompts a class; all are views of one latent a class."""
    root = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(5)
    centre = rng.standard_normal((len(CLASSES), LATENT)).astype(np.float32)
    target, owner = np.arange(60) % len(CLASSES), np.repeat(np.arange(len(CLASSES)), 2)
    ids = [f"p{i:02d}" for i in range(60)]
    names = [CLASSES[i] for i in target]
    images = Samples(ids, ids, ["test"] * 60, names, ids)
    prompts = [f"a {CLASSES[c]} {k % 2}" for k, c in enumerate(owner)]
    texts = Samples(prompts, [""] * 12, [""] * 12, [CLASSES[c] for c in owner], prompts)
    near = centre[target] + 0.3 * rng.standard_normal((60, LATENT)).astype(np.float32)
    return ZeroShotConfig(
        name="zoo",
        image=(write_store(root / "image", "image", images, views(near, WIDTHS["image"], 1)),),
        classes=(write_store(root / "text", "text", texts, views(centre[owner], WIDTHS["text"], 2)),),
    )


@pytest.fixture
def make_sweep(stores: Stores, class_set: ZeroShotConfig, tmp_path: Path) -> MakeSweep:
    """Return a maker of sweeps over the small stores, measured on the test split."""

    def make(out: str = "sweep", methods: Any = ("cca", "info_nce"), **changes: Any) -> SweepConfig:
        values: dict[str, Any] = {"pairs": (50, 100), "seeds": (1, 42), "split": "test", "settings": QUICK} | changes
        values = {"image": (stores.image,), "text": (stores.text,), "classes": (class_set,)} | values
        return SweepConfig(out=tmp_path / out, methods=methods_of(methods, "test"), **values)

    return make
