"""The layer pair: found where it was put, on training pairs alone, with an honest p-value."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.align.config import AlignConfig
from pipeline.align.layer_scores import METRICS, LayerScores, layers
from pipeline.align.run import align
from pipeline.errors import UnknownNameError, UserError
from tests.align.conftest import MakeStores, Stores


def test_finds_the_clear_views(stores: Stores) -> None:
    found = layers(stores.image, stores.text)
    assert found.chosen == (1, 1)
    assert found.image_layers == ["block0", "block1", "output"]
    assert found.rows == 200
    assert found.k == 12
    assert found.chosen_p_value < 0.01
    assert found.score[1][1] > found.score[2][2] > found.score[0][0]
    assert found.p_value[0][0] > 0.01
    assert found.calibrated[0][0] < 0.02
    assert "Use image layer block1 and text layer block1" in found.advice


def test_cka_finds_them_too(stores: Stores, tmp_path: Path) -> None:
    found = layers(stores.image, stores.text, metric="cka")
    assert (found.metric, found.k, found.chosen) == ("cka", None, (1, 1))
    assert found.chosen_p_value < 0.01
    assert found.p_value[0][0] > 0.01
    assert "Use image layer block1 and text layer block1: a CKA of 0." in found.advice
    settings = {"dim": 4, "training": {"max_steps": 2}}
    stated: dict[str, Any] = {
        "image": (stores.image,),
        "text": (stores.text,),
        "settings": settings,
        "seeds": (1,),
        "layers": "pair",
    }
    for metric in ("mutual_knn", "cka"):
        align(AlignConfig(out=tmp_path, layer_metric=metric, **stated))
        scores = json.loads((tmp_path / "layer_pairs.json").read_text())
        assert scores["metric"] == metric
    assert json.loads((tmp_path / "run.json").read_text())["config"]["layer_metric"] == "cka"


def test_metric_that_does_not_exist(stores: Stores) -> None:
    with pytest.raises(UnknownNameError, match=r"layer metric.*cka"):
        layers(stores.image, stores.text, metric="ckq")


def test_survives_json(stores: Stores) -> None:
    found = layers(stores.image, stores.text)
    assert LayerScores.from_json({**found.to_json(), "later": 1}) == found


@pytest.mark.parametrize("hidden", ["val", "test"])
def test_sees_training_pairs_only(stores: Stores, make_stores: MakeStores, hidden: str) -> None:
    """Other features in validation or test rows change nothing."""
    from pipeline.store.reader import FeatureStore

    split = FeatureStore.open(stores.image).samples.split
    rows = np.array([name == hidden for name in split])

    def spoil(name: str, values: dict[str, Any]) -> None:
        if name == "image":
            values["block1"][rows] = 7.0
            values["output"][rows] = -3.0

    spoiled = make_stores(change=spoil)
    assert layers(spoiled.image, spoiled.text) == layers(stores.image, stores.text)


def test_says_when_nothing_stands_out(make_stores: MakeStores) -> None:
    def shuffle(name: str, values: dict[str, Any]) -> None:
        if name == "image":
            order = np.random.default_rng(5).permutation(300)
            for layer in values.values():
                layer[:] = layer[order]

    paths = make_stores(change=shuffle)
    found = layers(paths.image, paths.text)
    assert found.chosen_p_value > 0.05
    assert "No pair of layers stands out" in found.advice


def test_constant_layer_is_left_out_and_named(make_stores: MakeStores) -> None:
    def flatten(name: str, values: dict[str, Any]) -> None:
        values["block0"][:] = 1.0

    paths = make_stores(change=flatten)
    found = layers(paths.image, paths.text)
    assert found.left_out == ["block0", "block0"]
    assert found.image_layers == ["block1", "output"]
    assert found.chosen == (0, 0)


def test_large_sets_are_sampled(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "mutual_knn", METRICS["mutual_knn"]._replace(most=100))
    found = layers(stores.image, stores.text, seed=3)
    assert found.rows == 100
    assert found.chosen == (1, 1)


def test_scores_are_kept_for_the_next_run(stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"dim": 4, "training": {"max_steps": 2}}
    config = AlignConfig(
        image=(stores.image,), text=(stores.text,), out=tmp_path, layers="pair", seeds=(1,), settings=settings
    )
    align(config)

    def never(*arguments: Any, **more: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("pipeline.align.layer_choice.score_layers", never)
    assert align(config)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("11", "auto, pair, stack, last, grow, spread, or an image layer and a text layer"),
        ("1,2,0", "auto, pair, stack, last, grow, spread, or an image layer and a text layer"),
        ("block9,last", "a known layer .*block0"),
        ("7,0", "a layer index between -3 and 2"),
    ],
)
def test_layers_that_do_not_exist(stores: Stores, tmp_path: Path, expression: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        align(AlignConfig(image=(stores.image,), text=(stores.text,), out=tmp_path, layers=expression))


def test_two_images_are_too_few(make_stores: MakeStores) -> None:
    paths = make_stores(train=2, val=3, test=0)
    with pytest.raises(UserError, match="at least 3 training images to compare layers"):
        layers(paths.image, paths.text)
