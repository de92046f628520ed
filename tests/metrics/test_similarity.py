"""Nearest neighbours, mutual kNN and the layer table against slow loops and the package calibrated-similarity."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics import similarity
from pipeline.metrics.similarity import LayerPairs, Neighbours, compare_layers, nearest_neighbours, neighbour_count
from tests.drawing import draws


def layers(rows: int, widths: list[int], seed: int = 0, noise: float = 1.0) -> list[Tensor]:
    """Return layers that share four directions."""
    shared = torch.randn(rows, 4, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    return [
        shared @ torch.randn(4, d, generator=generator) + noise * torch.randn(rows, d, generator=generator)
        for d in widths
    ]


def slow_mutual(a: Neighbours, b: Neighbours) -> float:
    return float(np.mean([len(set(x) & set(y)) / len(x) for x, y in zip(a.tolist(), b.tolist(), strict=True)]))


@pytest.mark.parametrize(("rows", "k"), [(5000, 35), (1000, 20), (125, 10), (64, 8), (2, 1), (3, 2), (10**6, 200)])
def test_number_of_neighbours(rows: int, k: int) -> None:
    assert neighbour_count(rows) == k


def test_neighbours_equal_scikit_learn() -> None:
    x = layers(200, [12])[0]
    theirs = NearestNeighbors(n_neighbors=8, metric="cosine").fit(x.numpy()).kneighbors(return_distance=False)
    assert nearest_neighbours(x, 8, block=33).tolist() == theirs.tolist()


def test_tables_are_small_whole_numbers_of_the_usual_width() -> None:
    x = layers(64, [5])[0]
    found = nearest_neighbours(x)
    assert (found.dtype, found.shape) == (np.dtype(np.int32), (64, 8))
    assert found.tolist() == nearest_neighbours(7 * x, 8, block=64).tolist()


def test_copies_are_neighbours_and_nobody_is_his_own() -> None:
    x = torch.randn(20, 6).repeat(3, 1)
    found = nearest_neighbours(x, 2)
    assert bool((found % 20 == np.arange(60)[:, None] % 20).all())
    assert bool((found != np.arange(60)[:, None]).all())


@pytest.mark.parametrize(
    ("x", "k", "message"),
    [
        (torch.randn(1, 3), None, "expected rows between 2 and 4611686018427387904, found 1"),
        (torch.randn(5, 3), 5, "expected k between 1 and 4"),
        (torch.randn(5, 3), 0, "k between 1 and 4"),
        (torch.ones(5, 3), 2, "features that differ"),
        (torch.zeros(5, 3), 2, "features that differ"),
        (torch.full((5, 3), torch.nan), 2, "expected finite features, found NaN"),
        (torch.randn(5), 2, r"expected features of shape \[N, D\]"),
    ],
)
def test_hostile_features_are_told(x: Tensor, k: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        nearest_neighbours(x, k)


@settings(max_examples=draws(40))
@given(rows=st.integers(3, 40), seed=st.integers(0, 10**6), data=st.data())
def test_mutual_knn_equals_the_slow_loop(rows: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, rows - 1))
    tables = [nearest_neighbours(x, k) for x in layers(rows, [3, 7], seed)]
    ours = compare_layers(tables, tables, permutations=0).score
    np.testing.assert_allclose(ours, [[slow_mutual(a, b) for b in tables] for a in tables])
    assert ours[0, 0] == ours[1, 1] == 1.0


def permuted(table: Neighbours, order: NDArray[np.int64]) -> Neighbours:
    """Return the neighbours of the features' rows in another order."""
    back = np.argsort(order)
    return back[table[order]].astype(np.int32)


@pytest.mark.parametrize(("image", "text"), [(3, 2), (2, 3), (1, 1)])
def test_scores_and_null_equal_the_slow_loop(image: int, text: int) -> None:
    a = [nearest_neighbours(x, 6) for x in layers(50, [5] * image, 1)]
    b = [nearest_neighbours(x, 6) for x in layers(50, [8] * text, 2)]
    ours = compare_layers(a, b, permutations=7, seed=3)
    generator = torch.Generator().manual_seed(3)
    for number in range(7):
        order = torch.randperm(50, generator=generator).numpy()
        expected = [[slow_mutual(x, permuted(y, order)) for y in b] for x in a]
        np.testing.assert_allclose(ours.null[number], expected)
    np.testing.assert_allclose(ours.score, [[slow_mutual(x, y) for y in b] for x in a])


def test_more_layers_than_bits_in_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [nearest_neighbours(x, 3) for x in layers(20, [4] * 35)]
    whole = compare_layers(tables, tables[:5], permutations=3)
    assert whole.score[33, 2] == pytest.approx(slow_mutual(tables[33], tables[2]))
    monkeypatch.setattr(similarity, "_MOST_BITS", 4)
    parts = compare_layers(tables, tables[:5], permutations=3)
    np.testing.assert_array_equal(parts.score, whole.score)
    np.testing.assert_array_equal(parts.null, whole.null)


def test_permuted_neighbours_are_those_of_permuted_features() -> None:
    """The slow loop's own step, checked on features."""
    x = layers(40, [6])[0]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    expected = nearest_neighbours(x[order], 5)
    assert np.sort(permuted(nearest_neighbours(x, 5), order.numpy())).tolist() == np.sort(expected).tolist()


def test_the_null_is_at_k_over_n_and_related_layers_are_above_it() -> None:
    a = [nearest_neighbours(x) for x in layers(300, [16, 16], 1)]
    unrelated = nearest_neighbours(torch.randn(300, 16, generator=torch.Generator().manual_seed(5)))
    ours = compare_layers([a[0]], [a[1], unrelated], permutations=100)
    assert ours.k == 14
    np.testing.assert_allclose(ours.null.mean(axis=0), 14 / 299, rtol=0.02)
    assert ours.p_value[0, 0] == pytest.approx(1 / 101)
    assert ours.p_value[0, 1] > 0.01
    assert ours.calibrated[0, 1] < 0.02
    assert ours.best == (0, 0)
    assert ours.best_p_value == pytest.approx(1 / 101)


def test_calibration_agrees_with_the_package_of_its_paper() -> None:
    """Same permutations, same statistic: score, threshold and p-value of arXiv 2602.14486 come out the same."""
    package: Any = pytest.importorskip("calibrated_similarity")
    a, b = layers(60, [5, 9], 1), layers(60, [7, 6, 5], 2, noise=3.0)

    def similarity(x: Tensor, y: Tensor) -> float:
        return slow_mutual(nearest_neighbours(x), nearest_neighbours(y))

    ours = compare_layers(
        [nearest_neighbours(x) for x in a], [nearest_neighbours(y) for y in b], permutations=39, seed=4
    )
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            generator = torch.Generator().manual_seed(4)
            score, p_value, threshold = package.calibrate(x, y, similarity, K=39, generator=generator)
            assert ours.calibrated[i, j] == pytest.approx(float(score), abs=1e-6)
            assert ours.p_value[i, j] == pytest.approx(float(p_value), abs=1e-6)
            assert ours.threshold[i, j] == pytest.approx(float(threshold), abs=1e-6)
    generator = torch.Generator().manual_seed(4)
    _, p_value, _ = package.calibrate_layers(a, b, similarity, K=39, generator=generator)
    assert ours.best_p_value == pytest.approx(float(p_value), abs=1e-6)


def test_p_values_thresholds_and_calibration_are_their_formulas() -> None:
    """From the null alone: p = (1 + #{null ≥ score})/(1 + P), the (1 − α) order statistic of all of them."""
    a = [nearest_neighbours(x, 6) for x in layers(50, [5, 5], 1, noise=4.0)]
    b = [nearest_neighbours(x, 6) for x in layers(50, [8, 8, 8], 2, noise=4.0)]
    for alpha in (0.05, 0.3):
        ours = compare_layers(a, b, permutations=19, alpha=alpha)
        for i in range(2):
            for j in range(3):
                score, null = float(ours.score[i, j]), sorted(ours.null[:, i, j].tolist())
                assert ours.p_value[i, j] == pytest.approx((1 + sum(each >= score for each in null)) / 20)
                threshold = sorted([*null, score])[int(np.ceil((1 - alpha) * 20)) - 1]
                assert ours.threshold[i, j] == pytest.approx(threshold)
                calibrated = min(1.0, max(0.0, (score - threshold) / (1 - threshold)))
                assert ours.calibrated[i, j] == pytest.approx(calibrated)
        assert (ours.k, ours.rows, ours.null.shape) == (6, 50, (19, 2, 3))
        best = ours.score.max()
        assert ours.best_p_value == pytest.approx((1 + sum(each.max() >= best for each in ours.null)) / 20)


def test_without_shuffles_scores_stand_as_they_are() -> None:
    table, other = (nearest_neighbours(x, 4) for x in layers(30, [6, 6]))
    ours = compare_layers([table], [table, other], permutations=0)
    np.testing.assert_array_equal(ours.calibrated, ours.score)
    assert ours.p_value.tolist() == [[1.0, 1.0]]
    assert ours.threshold.tolist() == [[0.0, 0.0]]
    assert ours.null.shape == (0, 1, 2)


def test_the_defaults_are_the_papers() -> None:
    tables = [nearest_neighbours(x, 4) for x in layers(30, [6, 6])]
    said = compare_layers(tables[:1], tables[1:], permutations=200, alpha=0.05, seed=0)
    unsaid = compare_layers(tables[:1], tables[1:])
    np.testing.assert_array_equal(said.null, unsaid.null)
    np.testing.assert_array_equal(said.threshold, unsaid.threshold)


def test_the_best_pair_is_the_best_calibrated_then_the_best_then_the_deepest() -> None:
    calibrated = np.array([[0.5, 0.2], [0.5, 0.5]])
    score = np.array([[0.9, 1.0], [0.9, 0.8]])
    blank = np.zeros((2, 2))
    pairs = {"p_value": blank, "threshold": blank, "null": blank[None], "k": None, "rows": 9}
    assert LayerPairs(score=score, calibrated=calibrated, **pairs).best == (1, 0)  # type: ignore[arg-type]
    score[1, 1] = 0.95
    assert LayerPairs(score=score, calibrated=calibrated, **pairs).best == (1, 1)  # type: ignore[arg-type]


def test_equal_scores_prefer_deep_layers() -> None:
    table = nearest_neighbours(layers(30, [6])[0], 4)
    assert compare_layers([table, table], [table, table, table], permutations=3).best == (1, 2)


def test_seeds_repeat() -> None:
    a, b = (nearest_neighbours(x, 5) for x in layers(40, [6, 6]))
    first, again = (compare_layers([a], [b], permutations=5, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first.null, again.null)
    assert not np.array_equal(first.null, compare_layers([a], [b], permutations=5, seed=2).null)


def test_tables_that_do_not_fit_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = nearest_neighbours(torch.randn(20, 4), 3), nearest_neighbours(torch.randn(20, 4), 4)
    with pytest.raises(UserError, match="tables of one shape"):
        compare_layers([a], [b])
    with pytest.raises(UserError, match="table of neighbours"):
        compare_layers([], [])
    with pytest.raises(UserError, match="a layer on each side"):
        compare_layers([a], [])
    with pytest.raises(UserError, match="a layer on each side"):
        compare_layers([], [a])
    with pytest.raises(UserError, match="tables of one shape"):
        compare_layers([a], [a[:10]])
    with pytest.raises(UserError, match="table of neighbours"):
        compare_layers([a[0]], [a[0]])
    for alpha in (0.0, 1.0):
        with pytest.raises(UserError, match="alpha"):
            compare_layers([a], [a], alpha=alpha)
    for permutations in (-1, 1_000_001):
        with pytest.raises(UserError, match=f"expected permutations between 0 and 1000000, found {permutations}"):
            compare_layers([a], [a], permutations=permutations)
    monkeypatch.setattr(similarity, "_MOST_ROWS", 20)
    assert compare_layers([a], [a], permutations=0).rows == 20
    monkeypatch.setattr(similarity, "_MOST_ROWS", 10)
    with pytest.raises(UserError, match="at most 10 rows"):
        compare_layers([a], [a])
