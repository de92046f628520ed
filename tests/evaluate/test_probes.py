"""Probes of a data set: which rows they learn from, what they say against scikit-learn, and how it is shown."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from pipeline.evaluate import features as module
from pipeline.evaluate.config import EvaluateConfig, ZeroShotConfig
from pipeline.evaluate.data import ZeroShotSet, zero_shot_set
from pipeline.evaluate.features import probe_rows
from pipeline.evaluate.run import evaluate
from pipeline.store.views import Side
from tests.evaluate.conftest import World


def classes_of(world: World, split: str = "test") -> ZeroShotSet:
    image, prompts = Side.open("image", [world.image]), Side.open("text", [world.text / "classes"])
    return zero_shot_set("", image, prompts, split)


def config(world: World, *runs: Path, **changes: Any) -> EvaluateConfig:
    stated: dict[str, Any] = {"image": (world.image,), "text": (world.text,), "bootstrap": 100, "examples": 0}
    return EvaluateConfig(runs=runs, out=world.root / "out", **(stated | changes))


def test_rows_are_the_training_split_s(world: World) -> None:
    rows = probe_rows(classes_of(world), "train")
    assert rows is not None
    splits = np.array(world.image_samples.split)
    assert set(splits[rows.train]) == {"train"}
    assert set(splits[rows.test]) == {"test"}
    names = classes_of(world).classes
    assert [names[t] for t in rows.train_target] == [world.labels[row] for row in rows.train]
    assert rows.split == "trained on split train, tested on split test"


def test_without_a_training_split_half_of_the_labelled_images(world: World) -> None:
    data = classes_of(world)
    rows = probe_rows(data, "nothing")
    assert rows is not None
    assert sorted([*rows.train, *rows.test]) == sorted(data.rows)
    for c in range(3):
        assert abs(int((rows.train_target == c).sum()) - int((rows.test_target == c).sum())) <= 1
    assert "trained on a stratified half of split test (seed 0), tested on the other half" in rows.split
    same = probe_rows(data, "nothing")
    assert same is not None
    assert same.test.tolist() == rows.test.tolist()


def test_many_rows_are_sampled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 6)
    rows = probe_rows(classes_of(world), "train")
    assert rows is not None
    assert len(rows.train) == 6
    assert "6 of 10 training images, a stratified sample" in rows.split


def test_knn_is_scikit_learn_s(make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(images=200, pictures=False)
    values = evaluate(config(world, world.add_run("cca")))
    rows = probe_rows(classes_of(world), "train")
    assert rows is not None
    features = world.image_features["output"].astype(np.float32)
    centred = features - features[rows.train].mean(0)

    def weights(distance: Any) -> Any:
        return np.exp((1 - distance) / 0.07)

    theirs = KNeighborsClassifier(n_neighbors=20, metric="cosine", weights=weights)
    expected = theirs.fit(centred[rows.train], rows.train_target).score(centred[rows.test], rows.test_target)
    assert values["probe_knn_last_layer_acc1"] == pytest.approx(expected)
    assert values["probe_train_n"] == 50
    assert values["probe_n"] == 100


def test_the_numbers_stand_everywhere(world: World) -> None:
    runs = [world.add_run("info_nce"), world.add_run("cca", steps=0)]
    runs.append(world.add_run("inner", layers={"image": ["block.0"], "text": ["output"]}))
    extra = ZeroShotConfig(name="other", image=(world.image,), classes=(world.text / "classes",), split="val")
    values = evaluate(config(world, *runs, zero_shot=(extra,)))
    for run in ("info_nce", "cca", "inner"):
        for prefix in ("", "other/"):
            for method in ("knn", "linear"):
                for features in ("last_layer", "chosen_layers", "aligned"):
                    assert 0 <= values[run][f"{prefix}probe_{method}_{features}_acc1"] <= 1
    assert values["cca"]["probe_linear_last_layer_acc1"] == values["inner"]["probe_linear_last_layer_acc1"]
    with (world.root / "out" / "probes.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    kinds = [(row["set"], row["features"], row["runs"]) for row in rows if row["method"] == "knn"]
    assert len(set(kinds)) == len(kinds) == 2 * (1 + 2 + 3)
    assert all(float(row["low"]) <= float(row["acc1"]) <= float(row["high"]) for row in rows)
    page = (world.root / "out" / "report.html").read_text()
    assert ">Probes<" in page
    assert "chosen layers<small>frozen, block.0 (inner)</small>" in page


def test_probes_can_be_switched_off(world: World) -> None:
    values = evaluate(config(world, world.add_run("cca"), probes=False))
    assert not [name for name in values if "probe" in name]
    assert ">Probes<" not in (world.root / "out" / "report.html").read_text()
