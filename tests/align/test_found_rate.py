"""`training.learning_rate: auto`: each seed's rate is found before it trains, written down, never looked for twice."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.align import fit
from pipeline.align.config import AlignConfig
from pipeline.align.fit import fit_seed, initial_projectors
from pipeline.align.lr_finder import find_learning_rate
from pipeline.align.methods import make_recipe
from pipeline.align.recipe import Recipe, TrainingOptions
from pipeline.align.run import align
from pipeline.align.train import train
from pipeline.errors import UserError
from pipeline.projectors.run_record import AlignedRun
from tests.align.conftest import Stores
from tests.align.test_train import pairs

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
        lines = (opened.path / entry["folder"] / "history.jsonl").read_text().splitlines()
        assert max(json.loads(line)["lr"] for line in lines) == pytest.approx(rate, rel=0.02)


def test_a_finished_seed_is_not_looked_at_again(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = aligned(stores, tmp_path / "run")

    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(fit, "find_learning_rate", never)
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
