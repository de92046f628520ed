"""All pairs of layers by CKA against its definition with U-centred kernels; shuffles are CKA of shuffled rows."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics import similarity
from pipeline.metrics.similarity import compare_layers_by_cka
from tests.drawing import draws

Matrix = NDArray[np.float64]


def hsic(k: Matrix, m: Matrix) -> float:
    """HSIC_u, term by term, of kernels without their diagonals (Song et al. 2012, equation 5)."""
    n, one = len(k), np.ones(len(k))
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    rest = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
    return float(np.trace(k @ m) + rest) / (n * (n - 3))


def slow_cka(x: Any, y: Any) -> float:
    """Unbiased linear CKA by its definition."""
    a, b = (np.asarray(part, dtype=np.float64) for part in (x, y))
    k, m = (part @ part.T for part in (a - a.mean(0), b - b.mean(0)))
    return hsic(k, m) / float(np.sqrt(hsic(k, k) * hsic(m, m)))


def cka(x: Any, y: Any) -> float:
    return float(compare_layers_by_cka([x], [y], permutations=0).score[0, 0])


def pair(rows: int, d: int, e: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, d, generator=generator, dtype=torch.float64) + 2
    return x, x @ torch.randn(d, e, generator=generator, dtype=torch.float64) + torch.randn(
        rows, e, generator=generator, dtype=torch.float64
    )


@settings(max_examples=draws(60))
@given(rows=st.integers(5, 30), d=st.integers(1, 40), e=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_it_equals_its_definition(rows: int, d: int, e: int, seed: int) -> None:
    x, y = pair(rows, d, e, seed)
    assert cka(x, y) == pytest.approx(slow_cka(x, y), rel=1e-4, abs=1e-5)


def test_rotation_scale_shift_and_self() -> None:
    x, y = pair(50, 8, 6, 1)
    q = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    assert cka(x, x) == pytest.approx(1.0, abs=1e-5)
    assert cka(x, 3 * x @ q + 5) == pytest.approx(1.0, abs=1e-5)
    assert cka(x, y) == pytest.approx(cka(y, x), abs=1e-5)
    assert cka(1e6 * x, y) == pytest.approx(cka(x, y), abs=1e-5)


def test_wide_unrelated_features_do_not_look_alike() -> None:
    """To the biased estimator they do: that grows with width."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 500, generator=generator), torch.randn(60, 500, generator=generator)
    assert abs(cka(x, y)) < 0.1


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
        expected = [[slow_cka(x, y) for y in b] for x in a]
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
        expected = [[slow_cka(x, y[order]) for y in text] for x in image]
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


def test_rows_and_permutations_within_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    image, text = layers()
    four = compare_layers_by_cka([x[:4] for x in image], [x[:4] for x in text], permutations=0)
    assert four.rows == 4
    np.testing.assert_allclose(four.score, [[slow_cka(x[:4], y[:4]) for y in text] for x in image], atol=1e-5)
    assert (four.p_value == 1).all()
    monkeypatch.setattr(similarity, "MOST_CKA_ROWS", 60)
    assert compare_layers_by_cka(image, text, permutations=0).rows == 60
    monkeypatch.setattr(similarity, "MOST_CKA_ROWS", 59)
    with pytest.raises(UserError, match="the same 4 to 59 rows"):
        compare_layers_by_cka(image, text)
    for permutations in (-1, 1_000_001):
        with pytest.raises(UserError, match=f"expected permutations between 0 and 1000000, found {permutations}"):
            compare_layers_by_cka(image, text, permutations=permutations)
    with pytest.raises(UserError, match="the same 4 to 59 rows"):
        compare_layers_by_cka(image, [])


def test_the_defaults_are_those_of_mutual_neighbours() -> None:
    image, text = ([x[:12] for x in side] for side in layers())
    said = compare_layers_by_cka(image, text, permutations=200, alpha=0.05, seed=0)
    unsaid = compare_layers_by_cka(image, text)
    np.testing.assert_array_equal(said.null, unsaid.null)
    np.testing.assert_array_equal(said.threshold, unsaid.threshold)
    together = np.sort(np.concatenate([said.score[None], said.null]), axis=0)
    np.testing.assert_array_equal(said.threshold, together[int(np.ceil(0.95 * 201)) - 1])
