"""One pair, twins, constants, NaN, other widths, more neighbours than rows: a sentence, or numbers that are finite."""

import math

import pytest
import torch

from pipeline.align.fit import Trained, initial_projectors
from pipeline.align.layer_scores import layers
from pipeline.align.pairs import PairFeatures
from pipeline.align.recipe import make_recipe
from pipeline.align.train import train
from pipeline.errors import PipelineError, UserError
from tests.align.conftest import MakeStores

METHODS = [
    "info_nce",
    "siglip",
    "dcl",
    "soft_targets",
    "fusemix",
    "modest_align",
    "variance_aware",
    "structure",
    "combined",
]


def pairs(images: int, width: int = 6, seed: int = 0) -> PairFeatures:
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(images, width, generator=generator), torch.randn(images, 5, generator=generator)
    return PairFeatures(image, text, torch.arange(images + 1))


def run(method: str, data: PairFeatures, validation: PairFeatures | None = None, **training: int) -> Trained:
    options = {"max_steps": 6, "validations": 1, **training}
    recipe = make_recipe(method, {"dim": 4, "training": options})
    validation = validation or pairs(5, seed=1)
    return train(data, validation, recipe, initial_projectors(data, validation, recipe, 1), seed=1)


@pytest.mark.parametrize("method", METHODS)
def test_one_pair_is_one_sentence(method: str) -> None:
    least = (
        "4 pairs in a batch that is mixed" if method == "fusemix" else "square similarity matrix of at least 2 pairs"
    )
    with pytest.raises(UserError, match=rf"{least}, found .*1.*use more pairs"):
        run(method, pairs(1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["constant", "zero", "twins"])
def test_rows_without_a_difference_train_without_a_word(method: str, kind: str) -> None:
    data = pairs(8)
    rows = {"constant": torch.ones, "zero": torch.zeros}
    for side in (data.image, data.text):
        side[:] = rows[kind](side.shape) if kind in rows else side[:1]
    assert all(math.isfinite(row["loss"]) for row in run(method, data).history)


@pytest.mark.parametrize(("method", "least"), [("info_nce", 2), ("combined", 2), ("fusemix", 4)])
@pytest.mark.parametrize("images", [9, 11, 13])
def test_no_batch_is_left_too_small(method: str, least: int, images: int) -> None:
    """9 pairs in batches of 2 would leave one alone."""
    assert run(method, pairs(images), batch_size=least, max_steps=20).steps == 20


def test_features_that_are_no_numbers() -> None:
    data = pairs(8)
    data.text[2, 1] = math.nan
    with pytest.raises(PipelineError, match="step 6: expected a finite loss, found nan"):
        run("combined", data)
    with pytest.raises(UserError, match="finite"):
        run("combined", pairs(8), data)


def test_features_of_another_width() -> None:
    expected = r"linear projector: expected features of shape \[N, 6\], found \[8, 7\]; use the layers"
    recipe = make_recipe("info_nce", {"dim": 4})
    with pytest.raises(UserError, match=expected):
        train(pairs(8, width=7), pairs(5), recipe, initial_projectors(pairs(8), pairs(5), recipe, 1), seed=1)
    with pytest.raises(UserError, match=expected):
        run("info_nce", pairs(8), pairs(8, width=7))


def test_more_neighbours_than_rows(make_stores: MakeStores) -> None:
    """⌈2·∛3⌉ = 3 neighbours, where each of 3 images has 2."""
    paths = make_stores(train=3, val=4, test=1)
    found = layers(paths.image, paths.text)
    assert (found.rows, found.k) == (3, 2)
