"""The learning-rate finder: the curve, the suggestion, what it leaves alone, what it refuses."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch

from pipeline.align.fit import initial_projectors
from pipeline.align.lr_finder import FoundRate, RateRow, find_learning_rate
from pipeline.align.lr_finder import _has_diverged as has_diverged
from pipeline.align.lr_finder import _suggestion as suggestion
from pipeline.align.methods import make_recipe
from pipeline.align.pairs import PairFeatures
from pipeline.align.recipe import Recipe
from pipeline.align.train import train
from pipeline.align.validation import selection_score
from pipeline.errors import PipelineError, UserError
from tests.align.test_train import pairs

DATA = pairs(120, 0)


def recipe(method: str = "info_nce", **training: float) -> Recipe:
    return make_recipe(method, {"dim": 6, "training": {"batch_size": 64, "max_steps": 40, **training}})


def find(method: str = "info_nce", data: PairFeatures = DATA, **changes: Any) -> FoundRate:
    made = recipe(method)
    return find_learning_rate(data, made, initial_projectors(data, data, made, 1), seed=1, **changes)


def test_rates_rise_exponentially_and_the_average_is_the_formula() -> None:
    rows = find(lowest=1e-4, highest=0.1, steps=31, smoothing=0.5).rows
    assert rows[0].rate == pytest.approx(1e-4)
    ratios = [later.rate / row.rate for row, later in itertools.pairwise(rows)]
    assert ratios == pytest.approx([1000 ** (1 / 30)] * (len(rows) - 1))
    average = 0.0
    for step, row in enumerate(rows, start=1):
        average = 0.5 * average + 0.5 * row.loss
        assert row.smoothed == pytest.approx(average / (1 - 0.5**step))


@pytest.mark.parametrize("method", ["info_nce", "combined", "dcl", "siglip", "fusemix"])
def test_suggestion_lies_below_the_lowest_loss(method: str) -> None:
    found = find(method)
    assert found.rows[0].rate < found.rate < found.lowest_loss_rate <= found.rows[-1].rate


def test_suggestion_is_where_the_curve_falls_fastest() -> None:
    losses = [5.0, 5.0, 4.9, 4.5, 3.0, 1.5, 1.2, 1.1, 2.0, 6.0]
    rows = [RateRow(rate=10.0**step, loss=loss, smoothed=loss) for step, loss in enumerate(losses)]
    found = suggestion(rows)
    assert (found.rate, found.lowest_loss_rate) == (10.0**4, 10.0**7)


def test_suggested_rate_learns_where_a_timid_or_a_reckless_one_does_not() -> None:
    validation = pairs(50, 1)

    def score(rate: float) -> float:
        made = recipe(learning_rate=rate)
        start = initial_projectors(DATA, validation, made, 1)
        return selection_score(train(DATA, validation, made, start, seed=1).validation)

    assert score(find().rate) > max(score(1e-5), score(100.0)) + 0.1


def test_projectors_and_random_state_are_left_alone() -> None:
    made = recipe()
    projectors = initial_projectors(DATA, DATA, made, 1)
    before = [{name: value.clone() for name, value in each.state_dict().items()} for each in projectors]
    state = torch.random.get_rng_state()
    one = find_learning_rate(DATA, made, projectors, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    for each, old in zip(projectors, before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in each.state_dict().items())
    assert find_learning_rate(DATA, made, projectors, seed=1) == one
    assert find_learning_rate(DATA, made, projectors, seed=2) != one


@pytest.mark.parametrize(
    ("losses", "ends"),
    [([3.4, 3.39, 3.43], False), ([3.4, 3.39, 4.0], True), ([3.4, 1.0, 4.5], False), ([3.4, 1.0, 4.7], True)],
)
def test_noise_is_no_divergence(losses: list[float], ends: bool) -> None:
    rows = [RateRow(rate=10.0**step, loss=loss, smoothed=loss) for step, loss in enumerate(losses)]
    assert has_diverged(rows) == ends


def test_few_pairs_with_noisy_batches_find_a_rate() -> None:
    few = pairs(30, 0, captions=3)
    assert 1e-5 < find("modest_align", few).rate < 1


def test_stops_when_the_loss_runs_away() -> None:
    found = find(highest=1e4, steps=200)
    assert len(found.rows) < 200
    assert all(math.isfinite(row.loss) for row in found.rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lowest": 0.0}, "0 < lowest < highest"),
        ({"lowest": 2.0}, r"0 < lowest < highest, found 2\.0 and 1\.0"),
        ({"highest": math.inf}, "0 < lowest < highest"),
        ({"steps": 9}, "10 steps or more, found 9"),
        ({"smoothing": 1.0}, r"smoothing in \[0, 1\)"),
    ],
)
def test_impossible_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find(**changes)


def test_loss_that_never_falls() -> None:
    spoilt = dataclasses.replace(DATA, image=torch.full_like(DATA.image, torch.nan))
    with pytest.raises(PipelineError, match=r"learning-rate finder: expected a loss that falls .*found 0 steps"):
        find(data=spoilt)
