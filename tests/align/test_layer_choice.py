"""Stacks of layers: the score against ridge CCA on the layers themselves, and which layers are kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.align.config import AlignConfig
from pipeline.align.layer_choice import CUTS, RIDGES, ChosenLayers, LayerGram, choose_layers, grow, spread_layers
from pipeline.align.pairs import split_pairs
from pipeline.errors import UserError
from pipeline.metrics.retrieval import retrieval_metrics
from pipeline.progress import silent
from pipeline.projectors.base import unit_rows
from pipeline.projectors.closed_form import fit_closed_form
from pipeline.store.views import Side
from tests.align.conftest import MakeStores, Stores

N, M = 80, 50


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def side(seed: int) -> list[Tensor]:
    """Return three layers [N + M, D]: noise, and two views that see five dimensions of a latent of eight each."""
    latent = normal(N + M, 8, seed=0)
    clear = [latent[:, :5] @ normal(5, 12, seed=seed), latent[:, 3:] @ normal(5, 9, seed=seed + 1)]
    return [normal(N + M, 10, seed=seed + 2)] + [
        view + 0.3 * normal(*view.shape, seed=seed + 3 + i) for i, view in enumerate(clear)
    ]


def grams(layers: list[Tensor]) -> list[LayerGram]:
    return [LayerGram.of(layer[:N], layer[N:]) for layer in layers]


def test_score_is_that_of_ridge_cca_on_the_concatenated_layers() -> None:
    image, text = side(1), side(20)
    found = grow((grams(image), grams(text)), ((1, 2), (0, 2)), (False, False))
    x, y = torch.cat(image[1:], dim=1), torch.cat([text[0], text[2]], dim=1)
    fit = fit_closed_form(
        "cca",
        x[:N],
        y[:N],
        ridges=(RIDGES[0],),
        inputs=(
            {"normalise_input": "unit", "blocks": [12, 9]},
            {"normalise_input": "unit", "blocks": [10, 9]},
        ),
        options={"text_ratio": RIDGES[1] / RIDGES[0]},
    )
    with torch.no_grad():
        metrics = retrieval_metrics(fit.image(x[N:]), fit.text(y[N:]), np.arange(M), ks=CUTS).metrics
    expected = [value for name, value in metrics.items() if "recall@" in name]
    assert found.score == pytest.approx(sum(expected) / len(expected), abs=0.011)  # a rank may tip in float32


def test_keeps_what_helps_and_leaves_noise() -> None:
    for start in (((2,), (1, 2)), ((1, 2), (2,))):
        found = grow((grams(side(1)), grams(side(20))), start, gain=0.02)
        assert found.stack == ((1, 2), (1, 2))
        assert found.score > found.base + 0.1
        assert found.trials[found.stack] == found.score
        assert found.trials[start] == found.base


def test_a_side_that_must_not_grow_does_not() -> None:
    found = grow((grams(side(1)), grams(side(20))), ((2,), (1, 2)), (True, False))
    assert found.stack == ((1, 2), (1, 2))
    assert all(text == (1, 2) for _, text in found.trials)


def test_no_more_layers_than_allowed() -> None:
    found = grow((grams(side(1)), grams(side(20))), ((2,), (2,)), most=1)
    assert found.stack == ((2,), (2,))


def test_no_more_columns_than_allowed() -> None:
    sides = grams(side(1)), grams(side(20))
    assert grow(sides, ((2,), (1, 2)), gain=0.02, widest=21).stack == ((1, 2), (1, 2))
    assert grow(sides, ((2,), (1, 2)), gain=0.02, widest=20).stack == ((2,), (1, 2))


@pytest.mark.parametrize(
    ("count", "widest", "expected"),
    [
        (3, 48, ["block0", "block1", "output"]),
        (5, 99, ["block0", "block1", "output"]),
        (3, 47, ["block0", "output"]),
        (2, 99, ["block0", "output"]),
        (3, 31, ["output"]),
        (3, 1, ["output"]),
        (1, 99, ["output"]),
    ],
)
def test_spread_takes_what_fits(stores: Stores, count: int, widest: int, expected: list[str]) -> None:
    config = AlignConfig(image=(stores.image,), text=(stores.text,), out=Path("o"))
    image, text = Side.open("image", config.image), Side.open("text", config.text)
    train = split_pairs(image, text, config, silent).train
    assert [layer.name for layer in spread_layers(text, train, count, widest=widest)] == expected


def test_does_not_depend_on_scale_or_shift_of_the_inner_products() -> None:
    layers = side(1)
    one, other = LayerGram.of(layers[0][:N], layers[0][N:]), LayerGram.of(7 * layers[0][:N], 7 * layers[0][N:])
    torch.testing.assert_close(one.train, other.train)
    rows = unit_rows(layers[0][:N])
    torch.testing.assert_close(one.train.sum(dim=0), torch.zeros(N), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        one.validation[0], (unit_rows(layers[0][N:])[0] - rows.mean(0)) @ (rows - rows.mean(0)).T
    )


def test_duplicate_rows_and_few_rows_stay_finite() -> None:
    repeated = [layer[[0, 0, 1, 1, 2]] for layer in side(1)]
    found = grow(([LayerGram.of(x[:3], x[3:]) for x in repeated],) * 2, ((2,), (2,)))
    assert 0 <= found.score <= 1


def chosen(stores: Stores, expression: str, **more: Any) -> ChosenLayers:
    config = AlignConfig(image=(stores.image,), text=(stores.text,), out=Path("o"), layers=expression, **more)
    image, text = Side.open("image", config.image), Side.open("text", config.text)
    splits = split_pairs(image, text, config, silent)
    return choose_layers((image, text), splits.train, splits.validation, config)


def names(found: ChosenLayers) -> tuple[list[str], list[str]]:
    return [layer.name for layer in found.image], [layer.name for layer in found.text]


@pytest.mark.parametrize(
    ("expression", "image", "text"),
    [
        ("grow", ["block1", "output"], ["block1", "output"]),
        ("grow,last", ["block1", "output"], ["output"]),
        ("1, grow", ["block1"], ["block1", "output"]),
        ("spread", ["block0", "block1", "output"], ["block0", "block1", "output"]),
        ("last,spread", ["output"], ["block0", "block1", "output"]),
        ("pair", ["block1"], ["block1"]),
    ],
)
def test_expressions(stores: Stores, expression: str, image: list[str], text: list[str]) -> None:
    assert names(chosen(stores, expression)) == (image, text)


def test_constant_layers_do_not_count(make_stores: MakeStores) -> None:
    def flatten(name: str, values: dict[str, Any]) -> None:
        if name == "text":
            values["block0"][:] = 1.0

    paths = make_stores(change=flatten)
    assert names(chosen(paths, "spread")) == (["block0", "block1", "output"], ["block1", "output"])
    assert names(chosen(paths, "grow"))[1] == ["block1", "output"]


def test_test_rows_change_nothing(stores: Stores, make_stores: MakeStores) -> None:
    from pipeline.store.reader import FeatureStore

    rows = np.array([name == "test" for name in FeatureStore.open(stores.image).samples.split])

    def spoil(name: str, values: dict[str, Any]) -> None:
        if name == "image":
            values["block1"][rows] = 7.0

    assert names(chosen(make_stores(change=spoil), "grow")) == names(chosen(stores, "grow"))


def test_one_encoder_of_several_after_the_other(stores: Stores) -> None:
    both = Side.open("image", (stores.image, stores.image))
    config = AlignConfig(image=(stores.image,), text=(stores.text,), out=Path("o"))
    train = split_pairs(both, Side.open("text", config.text), config, silent).train
    assert [tuple(layer) for layer in spread_layers(both, train, 2)] == [
        (0, "block0"),
        (0, "output"),
        (1, "block0"),
        (1, "output"),
    ]


def test_two_training_images_are_too_few(make_stores: MakeStores) -> None:
    with pytest.raises(UserError, match="3 training and 2 validation images to grow"):
        chosen(make_stores(train=2, val=3, test=0), "grow")


def test_a_side_of_constant_layers(make_stores: MakeStores) -> None:
    def flatten(name: str, values: dict[str, Any]) -> None:
        for layer in values.values():
            layer[:] = 1.0

    with pytest.raises(UserError, match="a layer that tells samples apart"):
        chosen(make_stores(change=flatten), "spread")
