"""CSLS as an option: off unless asked for, its bank never holds a test query."""

from typing import Any

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.run import evaluate
from tests.evaluate.conftest import World


def config(world: World, run: Any, **changes: Any) -> EvaluateConfig:
    stated: dict[str, Any] = {"runs": (run,), "image": (world.image,), "text": (world.text,), "out": world.root / "out"}
    return EvaluateConfig(**(stated | {"bootstrap": 100, "examples": 0, "probes": False} | changes))


def test_it_is_off_unless_asked_for(world: World) -> None:
    run = world.add_run("cca")
    plain = evaluate(config(world, run))
    assert not [name for name in plain if "csls" in name]
    both = evaluate(config(world, run, csls=3))
    assert {name: both[name] for name in plain} == plain
    assert {name for name in both if name not in plain} == {
        f"{direction}_recall@{k}_csls" for direction in ("image_retrieval", "text_retrieval") for k in (1, 5, 10)
    }
    assert "Percent with CSLS" in (world.root / "out" / "report.html").read_text()


def test_numbers_are_those_of_the_formula(world: World) -> None:
    from tests.evaluate.test_single import embed

    path = world.add_run("cca", seeds=(1,))
    values = evaluate(config(world, path, csls=3))
    split = dict(zip(world.image_samples.image_id, world.image_samples.split, strict=True))
    images = np.array(world.image_samples.split)
    owners = np.array(world.text_samples.image_id)
    of_caption = np.array([split[name] for name in owners])
    image = embed(world, path, 1, "image", world.image_features["output"])
    text = embed(world, path, 1, "text", world.text_features["output"])
    test_i, test_c = np.flatnonzero(images == "test"), np.flatnonzero(of_caption == "test")
    near_i = np.sort(image[test_i] @ text[of_caption == "train"].T, axis=1)[:, -3:].mean(1)
    near_c = np.sort(text[test_c] @ image[images == "train"].T, axis=1)[:, -3:].mean(1)
    scores = 2 * image[test_i] @ text[test_c].T - near_i[:, None] - near_c[None, :]
    own = np.array([[owners[c] == world.image_samples.image_id[i] for c in test_c] for i in test_i])
    hits = [(scores[:, c] >= scores[own[:, c], c]).sum() <= 1 for c in range(len(test_c))]
    assert values["image_retrieval_recall@1_csls"] == pytest.approx(np.mean(hits))
    hits = [(scores[i, ~own[i]] >= scores[i, own[i]].max()).sum() == 0 for i in range(len(test_i))]
    assert values["text_retrieval_recall@1_csls"] == pytest.approx(np.mean(hits))


def test_a_bank_that_is_too_small_is_told(world: World) -> None:
    with pytest.raises(UserError, match="a bank of 500 images and captions for CSLS, found 10 in split train"):
        evaluate(config(world, world.add_run("cca"), csls=500))
    trained = world.add_run("guilty", config={"train_split": "test"})
    with pytest.raises(UserError, match="found 0 in split test that are no test queries"):
        evaluate(config(world, trained, csls=3))
