"""Stores and settings that no number can stand on: one clear sentence each, and no report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.run import evaluate
from tests.evaluate.conftest import World, write_store

Change = Callable[[Any], Any]


def features_of(world: World, side: str, change: Change) -> dict[str, Any]:
    """Return a side's features after a change."""
    kept = world.image_features if side == "image" else world.text_features
    return {name: change(values.astype(np.float32)) for name, values in kept.items()}


def config(world: World, run: Path, **changes: Any) -> EvaluateConfig:
    stated: dict[str, Any] = {"image": (world.image,), "text": (world.text,), "bootstrap": 100, "examples": 1}
    return EvaluateConfig(runs=(run,), out=world.root / "out", **(stated | changes))


def spoiled(values: Any) -> Any:
    values[7, 3] = np.nan  # im007 is in the test split
    return values


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda values: np.full_like(values, np.inf),
            "finite features, found NaN or infinity in .* rows, first in 'im",
        ),
        (np.ones_like, "features that differ between samples, found .* equal rows"),
        (lambda values: values[:, :5], "features of width 12, as the run 'cca' takes them, found width 5"),
    ],
    ids=["infinity", "constant", "width"],
)
def test_features_that_cannot_be_used(world: World, side: str, change: Change, message: str) -> None:
    run = world.add_run("cca")
    samples = world.image_samples if side == "image" else world.text_samples
    write_store(world.root / "bad", side, samples, features_of(world, side, change))
    with pytest.raises(UserError, match=message):
        evaluate(config(world, run, **{side: (world.root / "bad",)}))
    assert not (world.root / "out").exists()


def test_a_single_nan_is_named(world: World) -> None:
    write_store(world.root / "bad", "image", world.image_samples, features_of(world, "image", spoiled))
    with pytest.raises(UserError, match=r"layer output: .*in 1 of 20 rows, first in 'im007'"):
        evaluate(config(world, world.add_run("cca"), image=(world.root / "bad",)))


def test_a_cut_off_beyond_the_gallery(world: World) -> None:
    with pytest.raises(UserError, match=r"cut-offs of 20 at most.*found 21"):
        evaluate(config(world, world.add_run("cca"), ks=(1, 21)))


def test_the_usual_cut_offs_on_a_small_gallery_are_called_out(make_world: Callable[..., World]) -> None:
    world = make_world(images=12, pictures=False)  # 6 of them in the test split
    values = evaluate(config(world, world.add_run("cca")))
    assert values["image_retrieval_recall@10"] == 1.0
    assert "Cut-offs beyond the gallery" in (world.root / "out" / "report.html").read_text()


def test_duplicates_are_ties_and_count_against(world: World) -> None:
    def double(values: Any) -> Any:
        values[1::4] = values[3::4]
        return values

    write_store(world.root / "twice", "image", world.image_samples, features_of(world, "image", double))
    values = evaluate(config(world, world.add_run("cca", noise=0.0), image=(world.root / "twice",)))
    assert values["image_retrieval_recall@1"] == 0.0
