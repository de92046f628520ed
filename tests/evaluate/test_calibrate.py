"""Temperature scaling: fitted on validation rows alone, better there, and shown beside each run's own temperature."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.data import TestPairs, pairs_of_split, zero_shot_set
from pipeline.evaluate.run import evaluate
from pipeline.evaluate.single import BOUNDS, evenly, retrieval_temperatures, validation_pairs, zero_shot_temperatures
from pipeline.metrics.calibration import confidences
from pipeline.projectors.run_record import AlignedRun
from pipeline.store.views import Side
from tests.evaluate.conftest import World, write_store


def sides(world: World) -> tuple[Side, Side]:
    return Side.open("image", [world.image]), Side.open("text", [world.text])


def fitted(world: World, run: AlignedRun) -> tuple[list[dict[str, float]], list[float]]:
    image, text = sides(world)
    prompts = Side.open("text", [world.root / "text" / "classes"])
    pairs = pairs_of_split(image, text, "test")
    zero_shot = zero_shot_temperatures(run, zero_shot_set("", image, prompts, "test"))
    return retrieval_temperatures(run, validation_pairs(run, pairs)), zero_shot


def config(world: World, run: Any, **changes: Any) -> EvaluateConfig:
    stated: dict[str, Any] = {"runs": (run,), "image": (world.image,), "text": (world.text,), "out": world.root / "out"}
    return EvaluateConfig(**(stated | {"bootstrap": 100, "examples": 0} | changes))


def test_the_likelihood_of_validation_captions_peaks_there(make_world: Callable[..., World]) -> None:
    world = make_world(images=200, pictures=False)
    run = AlignedRun.open(world.add_run("cca", noise=0.1))
    image, text = sides(world)
    data = validation_pairs(run, pairs_of_split(image, text, "test"))
    assert data is not None
    assert data.split == "val"
    assert len(data.pairs.image_rows) == 50
    for seed, found in zip(run.seeds, retrieval_temperatures(run, data), strict=True):
        images = run.encode("image", torch.from_numpy(_features(world, "image", data)), seed)
        captions = run.encode("text", torch.from_numpy(_features(world, "text", data)), seed)
        owner = torch.from_numpy(data.pairs.caption_image)
        order, offsets = owner.argsort(stable=True), torch.cat([torch.zeros(1).long(), owner.bincount().cumsum(0)])
        asked: dict[str, tuple[Any, ...]] = {
            "image_retrieval": (captions, images, owner, None),
            "text_retrieval": (images, captions, order, offsets),
        }
        for direction, (queries, gallery, positives, bounds) in asked.items():
            value = found[direction]
            assert BOUNDS[0] < value < BOUNDS[1]
            factors = (1.0, 0.8, 0.95, 1.05, 1.25)
            near = [confidences(queries, gallery, positives, value * factor, bounds) for factor in factors]
            nll = [float(-np.log(found.match).mean()) for found in near]
            assert nll[0] == min(nll)


def _features(world: World, side: str, data: TestPairs) -> Any:
    if side == "image":
        return world.image_features["output"][data.pairs.image_rows].astype(np.float32)
    return world.text_features["output"][data.pairs.caption_rows].astype(np.float32)


def test_no_test_row_is_looked_at(world: World) -> None:
    run = AlignedRun.open(world.add_run("cca"))
    before = fitted(world, run)
    features = {name: values.astype(np.float32) for name, values in world.image_features.items()}
    for values in features.values():
        values[1::2] = values[1::2][::-1]  # the odd rows are the test split
    world.image = world.root / "shuffled"
    write_store(world.image, "image", world.image_samples, features)
    assert fitted(world, run) == before


def test_both_are_told(make_world: Callable[..., World]) -> None:
    world = make_world(images=120)
    run = world.add_run("info_nce", temperature=1.9, temperature_source="learned", noise=0.05)
    values = evaluate(config(world, run))
    for prefix in ("image_retrieval_", "text_retrieval_", ""):
        assert values[f"{prefix}temperature"] == pytest.approx(1.9)
        assert values[f"{prefix}temperature_scaled"] < 1
        assert values[f"{prefix}ece_scaled"] < values[f"{prefix}ece"]  # 1.9 is far from any use
    page = (world.root / "out" / "report.html").read_text()
    assert page.count("after temperature scaling on validation") == 6  # three figures, label and caption
    assert "text→image ECE, scaled" in page
    header = (world.root / "out" / "plots" / "reliability.csv").read_text().splitlines()[0]
    assert header == "run,direction,temperature,confidence,accuracy,answers"


def test_the_evaluated_split_is_never_fitted_on(world: World) -> None:
    values = evaluate(config(world, world.add_run("cca"), split="val"))
    assert "ece_scaled" not in values
    assert "image_retrieval_ece_scaled" not in values
    page = (world.root / "out" / "report.html").read_text()
    assert "No rows of a validation split for image→text, text→image and zero-shot: not scaled there." in page


@pytest.mark.parametrize(("count", "most"), [(1, 5), (5, 5), (1000, 7)])
def test_rows_are_spread_evenly(count: int, most: int) -> None:
    found = evenly(count, most)
    assert len(found) == min(count, most)
    assert found[0] == 0
    assert found[-1] == count - 1
    assert np.ptp(np.diff(found)) <= 1 if len(found) > 1 else True
