"""Calibration against torchmetrics, scikit-learn and slow loops."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.metrics import log_loss
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics import calibration
from pipeline.metrics.calibration import Confidences, TopProbabilities, confidences, fit_temperature, reliability
from pipeline.metrics.retrieval import cross_ranks
from tests.drawing import draws


def classified(rows: int = 400, classes: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries [Q, d], class vectors [C, d] and labels."""
    generator = torch.Generator().manual_seed(seed)
    gallery = torch.nn.functional.normalize(torch.randn(classes, 10, generator=generator), dim=1)
    labels = torch.randint(classes, (rows,), generator=generator)
    queries = torch.nn.functional.normalize(gallery[labels] + torch.randn(rows, 10, generator=generator), dim=1)
    return queries, gallery, labels


def nll(found: Confidences) -> float:
    """Return the mean negative log-likelihood of the positives."""
    return float(-np.log(found.match).mean())


def test_confidences_equal_a_plain_softmax() -> None:
    queries, gallery, labels = classified(rows=5000)
    ours = confidences(queries, gallery, labels, 0.1)
    p = torch.softmax((queries.double() @ gallery.double().T) / 0.1, dim=1).numpy()
    np.testing.assert_allclose(ours.top, p.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(ours.match, p[np.arange(5000), labels], rtol=1e-4)
    assert ours.correct.tolist() == (p.argmax(axis=1) == labels.numpy()).tolist()
    assert nll(ours) == pytest.approx(log_loss(labels, p), rel=1e-5)


def test_several_positives_share_their_probability() -> None:
    queries, gallery, _ = classified(rows=3)
    ours = confidences(queries, gallery, torch.tensor([0, 1, 2, 3, 4, 5]), 0.2, offsets=torch.tensor([0, 1, 3, 6]))
    p = torch.softmax((queries.double() @ gallery.double().T) / 0.2, dim=1).numpy()
    np.testing.assert_allclose(ours.match, [p[0, 0], p[1, 1] + p[1, 2], p[2, 3:].sum()], rtol=1e-5)
    assert ours.correct.tolist() == [p[0].argmax() == 0, p[1].argmax() in (1, 2), p[2].argmax() > 2]


@pytest.mark.parametrize("block", [1, 13, 40, 2**22])
def test_blocks_of_queries_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, gallery, _ = classified(rows=7)
    positives, offsets = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2, 3]), torch.tensor([0, 1, 3, 6, 7, 8, 9, 10])
    p = torch.softmax((queries.double() @ gallery.double().T) / 0.2, dim=1).numpy()
    own = [positives[offsets[i] : offsets[i + 1]].tolist() for i in range(7)]
    monkeypatch.setattr(calibration, "_BLOCK", block)
    ours = confidences(queries, gallery, positives, 0.2, offsets)
    np.testing.assert_allclose(ours.top, p.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(ours.match, [row[which].sum() for row, which in zip(p, own, strict=True)], rtol=1e-5)
    assert ours.correct.tolist() == [row.argmax() in which for row, which in zip(p, own, strict=True)]
    assert [str(each.dtype) for each in (ours.top, ours.match, ours.correct)] == ["float64", "float64", "bool"]


def test_a_tie_is_not_right() -> None:
    ours = confidences(torch.ones(3, 2), torch.ones(4, 2), torch.tensor([0, 1, 2]), 1.0)
    assert not ours.correct.any()
    np.testing.assert_allclose(ours.top, 0.25)


def test_low_temperatures_stay_finite() -> None:
    queries, gallery, labels = classified()
    ours = confidences(queries, gallery, labels, 1e-6)
    assert bool(np.isfinite(ours.match).all())
    assert bool(np.isfinite(ours.top).all())


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_error_equals_torchmetrics(bins: int, torchmetrics: Callable[[str], Any]) -> None:
    theirs = torchmetrics("functional.classification").multiclass_calibration_error
    queries, gallery, labels = classified()
    p = torch.softmax((queries @ gallery.T) / 0.1, dim=1)
    expected = theirs(p, labels, num_classes=6, n_bins=bins, norm="l1")
    ours = confidences(queries, gallery, labels, 0.1)
    assert reliability(ours.top, ours.correct, bins=bins).error == pytest.approx(float(expected), abs=1e-6)


def slow_error(groups: list[list[tuple[float, bool]]]) -> float:
    total = sum(len(group) for group in groups)
    error = 0.0
    for group in groups:
        if group:
            gap = np.mean([right for _, right in group]) - np.mean([confidence for confidence, _ in group])
            error += len(group) / total * abs(float(gap))
    return error


values = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40)


@settings(max_examples=draws(80))
@given(values=values, bins=st.integers(1, 20))
def test_equal_width_is_the_slow_loop(values: list[tuple[float, bool]], bins: int) -> None:
    edges = np.linspace(0, 1, bins + 1)
    groups: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for value in values:
        groups[max(b for b in range(bins) if edges[b] <= value[0])].append(value)
    confidence, correct = np.array([v[0] for v in values]), np.array([v[1] for v in values])
    table = reliability(confidence, correct, bins=bins)
    assert table.error == pytest.approx(slow_error(groups), abs=1e-12)
    assert table.count.tolist() == [len(group) for group in groups]
    assert 0 <= table.error <= 1


def test_empty_bins_have_no_means() -> None:
    table = reliability(np.array([0.05, 1.0]), np.array([False, True]), bins=4)
    assert table.count.tolist() == [1, 0, 0, 1]
    assert bool(np.isnan(table.accuracy[1]))
    assert bool(np.isnan(table.confidence[2]))
    assert table.error == pytest.approx(0.025)
    assert table.lower.tolist() == [0.0, 0.25, 0.5, 0.75]
    assert table.upper.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert (table.confidence[0], table.accuracy[0], table.confidence[3], table.accuracy[3]) == (0.05, 0.0, 1.0, 1.0)


def test_fifteen_bins_where_nothing_is_said_and_rounding_above_one_is_one() -> None:
    table = reliability(np.array([0.0, 1 + 5e-10, 1 / 15]), np.array([0, 1, 1]))
    assert table.count.tolist() == [1, 1, *[0] * 12, 1]
    assert table.confidence[-1] == 1.0
    assert reliability(np.array([0.5]), np.array([1]), bins=1).count.tolist() == [1]


def test_temperature_is_where_the_likelihood_peaks() -> None:
    queries, gallery, labels = classified(rows=2000)
    scores = queries @ gallery.T
    best = fit_temperature(scores, labels)
    grid = np.geomspace(0.01, 10, 400)
    found = [nll(confidences(queries, gallery, labels, float(t))) for t in grid]
    assert best == pytest.approx(float(grid[int(np.argmin(found))]), rel=0.03)
    at_best = confidences(queries, gallery, labels, best)
    assert nll(at_best) <= min(found) + 1e-6
    assert reliability(at_best.top, at_best.correct).error < 0.05


def test_temperature_of_several_positives_is_where_their_likelihood_peaks() -> None:
    queries, gallery, labels = classified(rows=600, classes=30)
    also = (labels + 1) % 30
    positives, offsets = torch.stack([labels, also], dim=1).flatten(), torch.arange(601) * 2
    best = fit_temperature(queries @ gallery.T, positives, offsets)
    grid = np.geomspace(0.02, 2, 300)
    found = [nll(confidences(queries, gallery, positives, float(t), offsets)) for t in grid]
    assert best == pytest.approx(float(grid[int(np.argmin(found))]), rel=0.03)
    one_each = fit_temperature(queries @ gallery.T, labels, torch.arange(601))
    assert one_each == pytest.approx(fit_temperature(queries @ gallery.T, labels))


def slow_temperature(scores: Tensor, positives: list[list[int]]) -> float:
    """Return where the mean of −log Σ_positives softmax(s / T) is least, in float64, by scipy."""
    s = scores.double().numpy()

    def loss(log_t: float) -> float:
        z = s / np.exp(log_t)
        chosen = [logsumexp(row[own]) for row, own in zip(z, positives, strict=True)]
        return float(np.mean(logsumexp(z, axis=1) - np.array(chosen)))

    found = minimize_scalar(loss, bounds=(np.log(0.01), np.log(10)), method="bounded", options={"xatol": 1e-9})
    return float(np.exp(found.x))


@pytest.mark.parametrize("block", [1, 100, 2**22])
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_temperature_is_scipys(block: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_BLOCK", block)
    queries, gallery, labels = classified(rows=150)
    scores = scale * queries @ gallery.T + 3.0  # a softmax does not see a shift of its scores
    one = [[label] for label in labels.tolist()]
    assert fit_temperature(scores, labels) == pytest.approx(slow_temperature(scores, one), rel=1e-4)
    several = [sorted({label, (label + i) % 6}) for i, label in enumerate(labels.tolist())]
    offsets = np.cumsum([0, *map(len, several)])
    found = fit_temperature(scores, torch.tensor([item for own in several for item in own]), torch.from_numpy(offsets))
    assert found == pytest.approx(slow_temperature(scores, several), rel=1e-4)


def test_a_few_passes_over_the_scores_find_the_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newton's steps: a bisection to the same seven digits takes more than twenty."""
    passes: list[int] = []
    softmax = torch.softmax

    def counted(*args: Any, **options: Any) -> Tensor:
        passes.append(1)
        return softmax(*args, **options)

    monkeypatch.setattr(torch, "softmax", counted)
    queries, gallery, labels = classified(rows=300)
    fit_temperature(queries @ gallery.T, labels)
    assert len(passes) <= 12
    passes.clear()
    pairs = torch.stack([labels, (labels + 1) % 6], dim=1).flatten()
    fit_temperature(queries @ gallery.T, pairs, torch.arange(301) * 2)
    assert len(passes) <= 12


def test_temperature_without_a_minimum_ends_at_the_bounds() -> None:
    assert fit_temperature(torch.eye(5), torch.arange(5), low=0.01) == pytest.approx(0.01, rel=1e-6)
    assert fit_temperature(-torch.eye(5), torch.arange(5), high=50.0) == pytest.approx(50.0, rel=1e-6)
    assert fit_temperature(torch.eye(5), torch.arange(5)) == pytest.approx(1e-4, rel=1e-6)
    assert fit_temperature(-torch.eye(5), torch.arange(5)) == pytest.approx(1e3, rel=1e-6)


def test_hostile_input_is_told() -> None:
    queries, gallery, labels = classified()
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: confidences(queries, gallery, labels, 0.0), "positive temperature"),
        (lambda: confidences(queries, gallery[:, :3], labels, 0.1), "expected gallery of width 10, found width 3"),
        (
            lambda: confidences(queries * torch.inf, gallery, labels, 0.1),
            "expected finite queries, found NaN or infinity",
        ),
        (
            lambda: confidences(queries, gallery * torch.inf, labels, 0.1),
            "expected finite gallery, found NaN or infinity",
        ),
        (lambda: confidences(queries, gallery, labels[:4], 0.1), "one a query"),
        (lambda: reliability(np.zeros(0), np.zeros(0)), "one at least"),
        (lambda: reliability(np.array([0.5]), np.array([True, False])), "as many confidences"),
        (lambda: reliability(np.array([1.5]), np.array([True])), "between 0 and 1"),
        (lambda: reliability(np.array([np.nan]), np.array([True])), "between 0 and 1"),
        (lambda: reliability(np.array([0.5]), np.array([3])), "right .1. or wrong"),
        (lambda: reliability(np.zeros((2, 1)), np.zeros((2, 1))), "as many confidences"),
        (lambda: reliability(np.array([-0.1]), np.array([True])), "between 0 and 1, found -0.1"),
        (lambda: reliability(np.array([0.5, 1 + 2e-9]), np.array([1, 1])), "between 0 and 1, found 1.000000002"),
        (lambda: reliability(np.array([0.5]), np.array([1]), bins=0), "expected bins between 1 and 1000000, found 0"),
        (lambda: fit_temperature(queries @ gallery.T, labels, low=1.0, high=1.0), "low < high"),
        (lambda: fit_temperature(queries @ gallery.T, labels, high=float("inf")), "low < high"),
        (lambda: fit_temperature(queries @ gallery.T, labels, low=0.0), "positive temperature"),
        (lambda: fit_temperature(queries @ gallery.T, labels[:4]), "one a query"),
        (lambda: fit_temperature(queries @ gallery.T, labels, low=1.0, high=0.5), "low < high"),
        (lambda: fit_temperature(torch.full((3, 2), torch.nan), labels[:3]), "expected finite scores, found NaN"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message):
            call()


# ---- top probabilities from tiles, against a plain float64 softmax of the whole matrix ------------------------------


def world(images: int = 70, captions: int = 5000) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit images, unit captions, and the image of each caption; every image has one at least."""
    generator = torch.Generator().manual_seed(0)
    owner = torch.cat([torch.arange(images), torch.randint(images, (captions - images,), generator=generator)])
    base = torch.randn(images, 16, generator=generator)
    rows = base[owner] + torch.randn(captions, 16, generator=generator)
    return torch.nn.functional.normalize(base, dim=1), torch.nn.functional.normalize(rows, dim=1), owner


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
@pytest.mark.parametrize("tile", [40_000, 12_000_000])
def test_watched_tiles_give_the_whole_softmax(temperature: float, tile: int) -> None:
    images, captions, owner = world()
    top = TopProbabilities(len(images), len(captions), temperature)
    watched = cross_ranks(images, captions, owner, tile=tile, watch=top.watch)
    logits = (images @ captions.T).double() / temperature
    np.testing.assert_allclose(top.by_row, torch.softmax(logits, dim=1).amax(dim=1), atol=1e-6)
    np.testing.assert_allclose(top.by_column, torch.softmax(logits, dim=0).amax(dim=0), atol=1e-6)
    for ours, alone in zip(watched, cross_ranks(images, captions, owner), strict=True):
        np.testing.assert_array_equal(ours, alone)


def test_the_first_rank_is_what_confidences_call_right() -> None:
    images, captions, owner = world()
    ranks = cross_ranks(images, captions, owner)[1]
    found = confidences(captions, images, owner, 0.05)
    np.testing.assert_array_equal(found.correct, ranks == 1)


def test_tiles_may_come_in_any_order_and_shape() -> None:
    scores = torch.randn(9, 13, generator=torch.Generator().manual_seed(1))
    top = TopProbabilities(9, 13, 0.01)
    for rows in (slice(4, 9), slice(0, 4)):
        for columns in (slice(10, 13), slice(0, 1), slice(1, 10)):
            top.watch(scores[rows, columns], rows, columns)
    expected = torch.softmax(scores.double() / 0.01, dim=1).amax(dim=1)
    np.testing.assert_allclose(top.by_row, expected, atol=1e-6)


def test_each_axis_may_have_its_own_temperature() -> None:
    images, captions, _ = world()
    both = TopProbabilities(len(images), len(captions), (0.05, 0.2))
    cold, warm = (TopProbabilities(len(images), len(captions), value) for value in (0.05, 0.2))
    for top in (both, cold, warm):
        top.watch(images @ captions.T, slice(0, len(images)), slice(0, len(captions)))
    np.testing.assert_array_equal(both.by_row, cold.by_row)
    np.testing.assert_array_equal(both.by_column, warm.by_column)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_temperature_is_positive(temperature: float) -> None:
    for value in (temperature, (1.0, temperature), (temperature, 1.0)):
        with pytest.raises(UserError, match=rf"expected a positive temperature, found {temperature}"):
            TopProbabilities(1, 1, value)


@pytest.mark.parametrize("chunk", [1, 3, 2048])
def test_watching_leaves_the_scores_as_they_are(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_CHUNK", chunk)
    scores = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
    before, top = scores.clone(), TopProbabilities(4, 7, 0.5)
    top.watch(scores[:, 2:], slice(0, 4), slice(2, 7))
    top.watch(scores[:, :2], slice(0, 4), slice(0, 2))
    assert torch.equal(scores, before)
    expected = torch.softmax(scores.double() / 0.5, dim=0).amax(dim=0)
    np.testing.assert_allclose(top.by_column, expected, atol=1e-6)
    np.testing.assert_allclose(top.by_row, torch.softmax(scores.double() / 0.5, dim=1).amax(dim=1), atol=1e-6)
    assert [str(each.dtype) for each in (top.by_row, top.by_column)] == ["float64", "float64"]
