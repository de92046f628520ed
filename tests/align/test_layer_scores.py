"""The layer pair, found where it was put on training pairs alone; whether its score says how well a pair aligns."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from pipeline.align.config import AlignConfig
from pipeline.align.layer_scores import (
    LEAST_PAIRS,
    METRICS,
    LayerScores,
    check_layers,
    layers,
    rank_correlation,
    spread,
)
from pipeline.align.recipe import make_recipe
from pipeline.align.run import align
from pipeline.errors import UnknownNameError, UserError
from pipeline.progress import Update
from tests.align.conftest import MakeStores, Stores
from tests.commands.running import done, refused


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
    assert "more than shuffled pairings reach (p = 0.0" in found.advice
    assert found.advice.endswith("; whether that is less is not tested.")


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
        align(AlignConfig(out=tmp_path, layer_metric=metric, replace=True, **stated))
        scores = json.loads((tmp_path / "layer_pairs.json").read_text())
        assert scores["metric"] == metric
    assert json.loads((tmp_path / "run.json").read_text())["config"]["layer_metric"] == "cka"


def test_metric_that_does_not_exist(stores: Stores) -> None:
    with pytest.raises(UnknownNameError, match=r"layer metric.*cka"):
        layers(stores.image, stores.text, metric="ckq")


def test_survives_json(stores: Stores) -> None:
    found = layers(stores.image, stores.text)
    assert LayerScores.from_json({**dataclasses.asdict(found), "later": 1}) == found


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
        align(AlignConfig(image=(stores.image,), text=(stores.text,), out=tmp_path, layers=expression, replace=True))


def test_two_images_are_too_few(make_stores: MakeStores) -> None:
    paths = make_stores(train=2, val=3, test=0)
    with pytest.raises(UserError, match="at least 3 training images to compare layers"):
        layers(paths.image, paths.text)


SHORT = make_recipe("info_nce", {"dim": 8, "training": {"max_steps": 40, "validations": 2, "learning_rate": 0.02}})


def scores_of(table: NDArray[np.float64]) -> LayerScores:
    return LayerScores(
        k=3,
        rows=10,
        image_layers=[f"i{row}" for row in range(table.shape[0])],
        text_layers=[f"t{column}" for column in range(table.shape[1])],
        score=table.tolist(),
        calibrated=table.tolist(),
        p_value=table.tolist(),
        chosen=(0, 0),
        chosen_p_value=0.1,
    )


@pytest.mark.parametrize("values", [10, 3], ids=["few ties", "many ties"])
@pytest.mark.parametrize("seed", range(3))
def test_rank_correlation_agrees_with_scipy(values: int, seed: int) -> None:
    x, y = np.random.default_rng(seed).integers(0, values, size=(2, 12)).astype(np.float64)
    assert rank_correlation(x, y) == pytest.approx(float(stats.spearmanr(x, y).statistic))


def test_rank_correlation_of_a_constant_is_no_number() -> None:
    assert np.isnan(rank_correlation(np.ones(5), np.arange(5.0)))


@pytest.mark.parametrize("count", [4, 7, 20, 35, 100])
def test_spread_has_the_best_the_worst_and_the_last_layers(count: int) -> None:
    table = np.random.default_rng(0).random((7, 5))
    found = spread(scores_of(table), count)
    values = [table[pair] for pair in found]
    assert len(set(found)) == len(found) == min(count, table.size)
    assert values == sorted(values, reverse=True)
    assert (values[0], values[-1]) == (table.max(), table.min())
    assert (6, 4) in found


def test_score_and_recall_agree_on_clear_and_noisy_views(stores: Stores) -> None:
    scores = layers(stores.image, stores.text)
    told: list[Update] = []
    found = check_layers(stores.image, stores.text, scores, recipe=SHORT, progress=told.append)
    assert (told[-1].done, told[-1].total) == (9, 9)
    assert (found.training_images, found.validation_images) == (200, 60)
    assert found.rank_correlation > 0.5
    assert -1 <= found.low <= found.rank_correlation <= found.high <= 1
    assert found.pairs[0].recall > found.pairs[-1].recall
    assert "over 9 pairs of layers" in found.sentence


def test_never_looks_at_the_test_split(stores: Stores, make_stores: MakeStores) -> None:
    spoilt = make_stores(change=_spoil_tests)
    found = [
        check_layers(each.image, each.text, layers(each.image, each.text), pairs=4, recipe=SHORT)
        for each in (stores, spoilt)
    ]
    assert found[0] == found[1]


def _spoil_tests(side: str, values: dict[str, NDArray[np.float32]]) -> None:
    rng = np.random.default_rng(0)
    order = rng.permutation(300)
    rows = order >= 260 if side == "image" else np.repeat(order >= 260, 2)
    for layer in values.values():
        layer[rows] = 1e6


@pytest.mark.parametrize("count", [1, LEAST_PAIRS - 1])
def test_too_few_pairs(count: int) -> None:
    with pytest.raises(UserError, match=r"--check: expected 4 pairs of layers or more.*found"):
        spread(scores_of(np.ones((3, 3))), count)
    with pytest.raises(UserError, match="extract more layers"):
        spread(scores_of(np.ones((1, count))), 20)


def test_command_says_it_in_a_sentence_and_in_json(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.align.layer_scores.make_recipe", lambda name: SHORT)
    said = done("layers", stores.image, stores.text, "--check", "--check-pairs", 4)
    assert "Rank correlation of score and validation recall over 4 pairs of layers: " in said.out
    assert "pairs of layers checked: 4 of 4" in said.err
    record = done("layers", stores.image, stores.text, "--check", "--check-pairs", 4, "--json").json()["check"]
    assert len(record["pairs"]) == 4
    assert record["low"] <= record["rank_correlation"] <= record["high"]
    assert "check" not in done("layers", stores.image, stores.text, "--json").json()


def test_command_refuses(stores: Stores, tmp_path: Path) -> None:
    assert "--check-pairs: expected 1 or more, found 0" in refused(
        "layers", stores.image, stores.text, "--check", "--check-pairs", 0
    )
    assert "--check: expected 4 pairs" in refused("layers", stores.image, stores.text, "--check", "--check-pairs", 2)
