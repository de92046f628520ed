"""All pairs of layers by CKA: each equals `linear_cka`, shuffles equal CKA of shuffled rows."""

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.metrics.cka import linear_cka
from pipeline.metrics.cka_pairs import compare_layers_by_cka


def layers(rows: int = 60) -> tuple[list[Any], list[Any]]:
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((rows, 3))
    image = [latent @ rng.standard_normal((3, 7)) + 5, rng.standard_normal((rows, 9)), 1e4 * rng.random((rows, 2))]
    text = [latent @ rng.standard_normal((3, 8)), rng.standard_normal((rows, 4))]
    return image, text


def test_scores_are_unbiased_cka() -> None:
    image, text = layers()
    for a, b in ((image, text), (text, image)):
        found = compare_layers_by_cka(a, b, permutations=50)
        expected = [[linear_cka(x, y, unbiased=True) for y in b] for x in a]
        np.testing.assert_allclose(found.score, expected, atol=1e-5)
        assert found.best == (0, 0)
        assert found.best_p_value == pytest.approx(1 / 51)
        assert found.p_value[1, 1] > 0.02
        assert (found.k, found.rows) == (None, 60)


def test_null_is_cka_of_shuffled_rows() -> None:
    image, text = layers()
    found = compare_layers_by_cka(image, text, permutations=2, seed=4)
    generator = torch.Generator().manual_seed(4)
    for null in found.null:
        order = torch.randperm(60, generator=generator).numpy()
        expected = [[linear_cka(x, y[order], unbiased=True) for y in text] for x in image]
        np.testing.assert_allclose(null, expected, atol=1e-5)


def test_scale_and_rotation_change_nothing() -> None:
    image, text = layers()
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((7, 7)))[0]
    turned = [1e-6 * image[0] @ turn + 2, *image[1:]]
    first, second = (compare_layers_by_cka(side, text, permutations=0).score for side in (image, turned))
    np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda image, text: ([x[:3] for x in image], [x[:3] for x in text]), "the same 4 to 3000 rows"),
        (lambda image, text: ([image[0][:50]], text), "the same 4 to 3000 rows"),
        (lambda image, text: ([], text), "the same 4 to 3000 rows"),
        (lambda image, text: ([np.ones((60, 3))], text), "vary between rows"),
        (lambda image, text: ([np.full((60, 3), np.nan)], text), "finite"),
    ],
)
def test_hostile_input_is_told(change: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compare_layers_by_cka(*change(*layers()))
