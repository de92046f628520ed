"""The learning-rate finder: the curve, the suggestion, what it refuses; `auto` finds each seed a rate, once."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.align import run
from pipeline.align import train as training
from pipeline.align.config import AlignConfig
from pipeline.align.fit import initial_projectors, selection_score
from pipeline.align.pairs import PairFeatures
from pipeline.align.recipe import Recipe, TrainingOptions, make_recipe
from pipeline.align.run import align, fit_seed
from pipeline.align.train import FoundRate, RateRow, find_learning_rate, train
from pipeline.align.train import _has_diverged as has_diverged
from pipeline.align.train import _suggestion as suggestion
from pipeline.errors import PipelineError, UserError
from pipeline.projectors.run_record import AlignedRun
from tests.align.conftest import Stores
from tests.align.test_train import pairs

DATA = pairs(120, 0)


def recipe(method: str = "info_nce", **training: float) -> Recipe:
    return make_recipe(method, {"dim": 6, "training": {"batch_size": 64, "max_steps": 40, **training}})


def find(method: str = "info_nce", data: PairFeatures = DATA) -> FoundRate:
    made = recipe(method)
    return find_learning_rate(data, made, initial_projectors(data, data, made, 1), seed=1)


def test_rates_rise_exponentially_and_the_average_is_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LOWEST": 1e-4, "HIGHEST": 0.1, "STEPS": 31, "SMOOTHING": 0.5}.items():
        monkeypatch.setattr(training, name, value)
    rows = find().rows
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


def test_stops_when_the_loss_runs_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "HIGHEST", 1e4)
    monkeypatch.setattr(training, "STEPS", 200)
    found = find()
    assert len(found.rows) < 200
    assert all(math.isfinite(row.loss) for row in found.rows)


def test_loss_that_never_falls() -> None:
    spoilt = dataclasses.replace(DATA, image=torch.full_like(DATA.image, torch.nan))
    with pytest.raises(PipelineError, match=r"learning-rate finder: expected a loss that falls .*found 0 steps"):
        find(data=spoilt)


SHORT: dict[str, Any] = {"dim": 8, "training": {"max_steps": 40, "validations": 4, "batch_size": 64}}


def settings(rate: object) -> dict[str, Any]:
    return SHORT | {"training": SHORT["training"] | {"learning_rate": rate}}


def aligned(stores: Stores, out: Path, rate: object = "auto", seeds: tuple[int, ...] = (1, 2)) -> AlignedRun:
    config = AlignConfig(
        image=(stores.image,),
        text=(stores.text,),
        out=out,
        method="info_nce",
        settings=settings(rate),
        seeds=seeds,
        layers="block1,block1",
        device="cpu",
    )
    return AlignedRun.open(align(config))


def rates(opened: AlignedRun) -> list[float]:
    return [entry["learning_rate"] for entry in opened.record["seeds"]]


def test_a_found_rate_trains_as_the_same_number_does(stores: Stores, tmp_path: Path) -> None:
    found = aligned(stores, tmp_path / "found")
    assert found.config["recipe"]["training"]["learning_rate"] == "auto"
    for seed, rate in zip((1, 2), rates(found), strict=True):
        said = aligned(stores, tmp_path / f"said-{seed}", rate, (seed,))
        assert rates(said) == [rate]
        for side in ("image", "text"):
            one, two = (each.projector(side, seed).state_dict() for each in (found, said))
            assert all(torch.equal(one[name], two[name]) for name in one)


def test_each_seed_looks_for_its_own_and_history_shows_it(stores: Stores, tmp_path: Path) -> None:
    opened = aligned(stores, tmp_path / "run")
    assert len(set(rates(opened))) == 2
    for entry, rate in zip(opened.record["seeds"], rates(opened), strict=True):
        lines = (opened.folder / entry["folder"] / "history.jsonl").read_text().splitlines()
        assert max(json.loads(line)["lr"] for line in lines) == pytest.approx(rate, rel=0.02)


def test_a_finished_seed_is_not_looked_at_again(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = aligned(stores, tmp_path / "run")

    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(run, "find_learning_rate", never)
    assert rates(aligned(stores, tmp_path / "run")) == rates(before)


def test_the_finder_gets_the_start_and_the_seed() -> None:
    data, validation = pairs(120, 0), pairs(50, 1)
    recipe = make_recipe("info_nce", {"dim": 6, "training": SHORT["training"] | {"learning_rate": "auto"}})
    start = initial_projectors(data, validation, recipe, 7)
    expected = find_learning_rate(data, recipe, start, seed=7).rate
    assert fit_seed(recipe, data, validation, 7).learning_rate == expected


def test_training_itself_wants_a_number() -> None:
    data = pairs(40, 0)
    recipe = make_recipe("info_nce", {"dim": 6, "training": {"learning_rate": "auto"}})
    with pytest.raises(UserError, match=r"training\.learning_rate: expected a learning rate that was found before"):
        train(data, data, recipe, initial_projectors(data, data, recipe, 1), seed=1)


@pytest.mark.parametrize("method", ["cca", "procrustes", "asif", "fewpairs"])
def test_closed_forms_have_no_rate_to_find(method: str) -> None:
    with pytest.raises(UserError, match=r"training\.learning_rate as a number: \w+ trains nothing, found auto"):
        make_recipe(method, {"training": {"learning_rate": "auto"}})


@pytest.mark.parametrize("rate", ["automatic", True, None, -1, 0])
def test_other_words_are_no_rate(rate: object) -> None:
    with pytest.raises(UserError, match=r"training\.learning_rate"):
        make_recipe("info_nce", {"training": {"learning_rate": rate}})


def test_a_stated_rate_is_kept_as_it_was_written_before() -> None:
    """Finished seeds and cells are known by the digest of this: nothing may be added, 1 stays 1.0."""
    assert dataclasses.asdict(TrainingOptions())["learning_rate"] == 0.001
    made: Recipe = make_recipe("info_nce", {"training": {"learning_rate": 1}})
    assert json.dumps(made.training.learning_rate) == "1.0"
