"""Settings: presets, changes laid over them, and every mistake in one sentence."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.align.config import AlignConfig, align_config
from pipeline.align.recipe import METHODS, make_recipe, merge
from pipeline.config import build
from pipeline.errors import UnknownNameError, UserError

WANTED = (
    "info_nce info_nce_mlp fusemix siglip dcl soft_targets modest_align variance_aware entropy_schedule cosine_spread "
    "structure combined cca procrustes ridge pls asif modest_align_published structure_published cca_then_train "
    "fewpairs"
)


def config_of(**values: Any) -> AlignConfig:
    return build(AlignConfig, {"image": ["i"], "text": ["t"], "out": "o", **values}, where="test")


@pytest.mark.parametrize("method", METHODS)
def test_every_preset_is_a_recipe(method: str) -> None:
    assert make_recipe(method)


def test_table_holds_what_it_promises() -> None:
    assert set(WANTED.split()) <= set(METHODS)


def test_published_settings() -> None:
    structure = make_recipe("structure_published")
    assert (structure.structure.weight, structure.structure.temperature, structure.structure.levels) == (10, 0.05, 1)
    assert structure.structure.warm_up_steps == 1000
    assert not structure.temperature.learned
    assert structure.training.betas == (0.9, 0.95)
    modest = make_recipe("modest_align_published")
    assert (modest.perturbation.sigma, modest.perturbation.mode) == (0.01, "absolute")
    assert modest.mix.enabled
    assert modest.training.weight_decay == 0.1
    assert (modest.temperature.form, modest.temperature.initial) == ("raw", 0.07)


def test_changes_are_laid_over_the_preset() -> None:
    recipe = make_recipe("structure", {"structure": {"levels": 3}, "dim": 32})
    assert (recipe.structure.weight, recipe.structure.levels, recipe.dim) == (10.0, 3, 32)
    assert make_recipe("structure").structure.levels == 1


def test_merge_touches_neither_side() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merge(base, {"a": {"b": 9}, "d": {"e": 1}}) == {"a": {"b": 9, "c": 2}, "d": {"e": 1}}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}


def test_unknown_method_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'structure'"):
        make_recipe("structur")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dimm": 3}, "dimm is unknown"),
        ({"structure": {"levels": "3"}}, r"structure\.levels should be int"),
        ({"training": {"batch_size": 1}}, "batch_size at least 2"),
        ({"training": {"betas": [0.9]}}, "betas two numbers"),
        ({"dim": 0}, "dim above 0"),
        ({"start": "cca", "projector": "residual_mlp"}, "linear where training starts from CCA"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_of(settings=settings)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image": []}, "--image: expected a value, or several, found none"),
        ({"seeds": []}, "--seed: expected a value, or several, found none"),
        ({"seeds": [1, 1]}, "--seed: expected each value once, found 1 twice"),
        ({"seeds": [-1]}, "--seed: expected 0 to 9223372036854775807, found -1"),
        ({"pairs": 1}, "--pairs: expected 2 or more, found 1"),
        ({"stack": 0}, "stack: expected 1 or more, found 0"),
        ({"layer_metric": "cosine"}, r"--layer-metric: expected a known layer metric \(mutual_knn, cka\)"),
        ({"log_to": "paper"}, r"--log-to: expected a known logger \(dvclive, tensorboard, wandb\)"),
        ({"validation_split": "train"}, "validation_split: expected another split than train_split, found train"),
        ({"method": "magic"}, "a known method"),
    ],
)
def test_wrong_config(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_of(**values)


def test_params_become_a_config() -> None:
    params = {
        "image_encoder": "vit",
        "text_encoder": "minilm",
        "align": {"dataset": "birds", "layers": "last", "seeds": [1, 2], "settings": {"dim": 64}},
    }
    config = align_config(params, "structure", Path("root"))
    assert config.image == (Path("root/data/1_features/birds/vit"),)
    assert config.out == Path("root/data/2_projectors/structure")
    assert (config.layers, config.seeds, config.recipe().dim) == ("last", (1, 2), 64)
    with pytest.raises(UserError, match="a section 'align'"):
        align_config({}, "structure")
