"""The check of layer scores: the rank correlation against scipy, no row of the test split, hostile input."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from pipeline.align.layer_scores import LEAST_PAIRS, LayerScores, check_layers, layers, rank_correlation, spread
from pipeline.align.methods import make_recipe
from pipeline.errors import UserError
from pipeline.progress import Update
from tests.align.conftest import MakeStores, Stores
from tests.commands.running import done, refused

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
