"""Calibration against torchmetrics, scikit-learn and slow loops."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss
from torch import Tensor

from pipeline.errors import UnknownNameError, UserError
from pipeline.metrics.calibration import confidences, expected_calibration_error, fit_temperature, reliability


def classified(rows: int = 400, classes: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries [Q, d], class vectors [C, d] and labels."""
    generator = torch.Generator().manual_seed(seed)
    gallery = torch.nn.functional.normalize(torch.randn(classes, 10, generator=generator), dim=1)
    labels = torch.randint(classes, (rows,), generator=generator)
    queries = torch.nn.functional.normalize(gallery[labels] + torch.randn(rows, 10, generator=generator), dim=1)
    return queries, gallery, labels


def test_confidences_equal_a_plain_softmax() -> None:
    queries, gallery, labels = classified(rows=5000)
    ours = confidences(queries, gallery, labels, 0.1)
    p = torch.softmax((queries.double() @ gallery.double().T) / 0.1, dim=1).numpy()
    np.testing.assert_allclose(ours.top, p.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(ours.match, p[np.arange(5000), labels], rtol=1e-4)
    assert ours.correct.tolist() == (p.argmax(axis=1) == labels.numpy()).tolist()
    assert ours.nll == pytest.approx(log_loss(labels, p), rel=1e-5)
    assert ours.mean_top == pytest.approx(p.max(axis=1).mean())
    assert ours.accuracy == pytest.approx(float((p.argmax(axis=1) == labels.numpy()).mean()))


def test_several_positives_share_their_probability() -> None:
    queries, gallery, _ = classified(rows=3)
    ours = confidences(queries, gallery, torch.tensor([0, 1, 2, 3, 4, 5]), 0.2, offsets=torch.tensor([0, 1, 3, 6]))
    p = torch.softmax((queries.double() @ gallery.double().T) / 0.2, dim=1).numpy()
    np.testing.assert_allclose(ours.match, [p[0, 0], p[1, 1] + p[1, 2], p[2, 3:].sum()], rtol=1e-5)
    assert ours.correct.tolist() == [p[0].argmax() == 0, p[1].argmax() in (1, 2), p[2].argmax() > 2]


def test_a_tie_is_not_right() -> None:
    ours = confidences(torch.ones(3, 2), torch.ones(4, 2), torch.tensor([0, 1, 2]), 1.0)
    assert not ours.correct.any()
    np.testing.assert_allclose(ours.top, 0.25)


def test_low_temperatures_stay_finite() -> None:
    queries, gallery, labels = classified()
    ours = confidences(queries, gallery, labels, 1e-6)
    assert np.isfinite(ours.nll)
    assert bool(np.isfinite(ours.top).all())


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_error_equals_torchmetrics(bins: int, torchmetrics: Callable[[str], Any]) -> None:
    theirs = torchmetrics("functional.classification").multiclass_calibration_error
    queries, gallery, labels = classified()
    p = torch.softmax((queries @ gallery.T) / 0.1, dim=1)
    expected = theirs(p, labels, num_classes=6, n_bins=bins, norm="l1")
    ours = confidences(queries, gallery, labels, 0.1)
    assert expected_calibration_error(ours.top, ours.correct, bins=bins) == pytest.approx(float(expected), abs=1e-6)


def slow_error(groups: list[list[tuple[float, bool]]]) -> float:
    total = sum(len(group) for group in groups)
    error = 0.0
    for group in groups:
        if group:
            gap = np.mean([right for _, right in group]) - np.mean([confidence for confidence, _ in group])
            error += len(group) / total * abs(float(gap))
    return error


values = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40)


@settings(max_examples=80, deadline=None)
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


@settings(max_examples=60, deadline=None)
@given(values=values, data=st.data())
def test_equal_mass_is_the_slow_loop(values: list[tuple[float, bool]], data: st.DataObject) -> None:
    bins = data.draw(st.integers(1, len(values)))
    ordered = sorted(values, key=lambda v: v[0])
    groups = [[ordered[i] for i in part] for part in np.array_split(np.arange(len(values)), bins)]
    confidence, correct = np.array([v[0] for v in values]), np.array([v[1] for v in values])
    table = reliability(confidence, correct, bins=bins, scheme="mass")
    assert table.error == pytest.approx(slow_error(groups), abs=1e-12)
    assert table.count.max() - table.count.min() <= 1
    assert bool((table.lower <= table.upper).all())


def test_empty_bins_have_no_means() -> None:
    table = reliability(np.array([0.05, 1.0]), np.array([False, True]), bins=4)
    assert table.count.tolist() == [1, 0, 0, 1]
    assert bool(np.isnan(table.accuracy[1]))
    assert table.error == pytest.approx(0.025)


def test_temperature_is_where_the_likelihood_peaks() -> None:
    queries, gallery, labels = classified(rows=2000)
    scores = queries @ gallery.T
    best = fit_temperature(scores, labels)
    grid = np.geomspace(0.01, 10, 400)
    nll = [confidences(queries, gallery, labels, float(t)).nll for t in grid]
    assert best == pytest.approx(float(grid[int(np.argmin(nll))]), rel=0.03)
    at_best = confidences(queries, gallery, labels, best)
    assert at_best.nll <= min(nll) + 1e-6
    assert expected_calibration_error(at_best.top, at_best.correct) < 0.05


def test_temperature_of_several_positives_is_where_their_likelihood_peaks() -> None:
    queries, gallery, labels = classified(rows=600, classes=30)
    also = (labels + 1) % 30
    positives, offsets = torch.stack([labels, also], dim=1).flatten(), torch.arange(601) * 2
    best = fit_temperature(queries @ gallery.T, positives, offsets)
    grid = np.geomspace(0.02, 2, 300)
    nll = [confidences(queries, gallery, positives, float(t), offsets).nll for t in grid]
    assert best == pytest.approx(float(grid[int(np.argmin(nll))]), rel=0.03)
    one_each = fit_temperature(queries @ gallery.T, labels, torch.arange(601))
    assert one_each == pytest.approx(fit_temperature(queries @ gallery.T, labels))


def test_temperature_without_a_minimum_ends_at_the_bounds() -> None:
    assert fit_temperature(torch.eye(5), torch.arange(5), low=0.01) == pytest.approx(0.01, rel=1e-6)
    assert fit_temperature(-torch.eye(5), torch.arange(5), high=50.0) == pytest.approx(50.0, rel=1e-6)


def test_hostile_input_is_told() -> None:
    queries, gallery, labels = classified()
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: confidences(queries, gallery, labels, 0.0), "positive temperature"),
        (lambda: confidences(queries, gallery[:, :3], labels, 0.1), "width 10"),
        (lambda: confidences(queries * torch.inf, gallery, labels, 0.1), "infinity"),
        (lambda: confidences(queries, gallery, labels[:4], 0.1), "one a query"),
        (lambda: reliability(np.zeros(0), np.zeros(0)), "one at least"),
        (lambda: reliability(np.array([0.5]), np.array([True, False])), "as many confidences"),
        (lambda: reliability(np.array([1.5]), np.array([True])), "between 0 and 1"),
        (lambda: reliability(np.array([np.nan]), np.array([True])), "between 0 and 1"),
        (lambda: reliability(np.array([0.5]), np.array([3])), "right .1. or wrong"),
        (lambda: reliability(np.array([0.5]), np.array([1]), bins=0), "bins between"),
        (lambda: reliability(np.array([0.5]), np.array([1]), bins=2, scheme="mass"), "bins .* between 1 and 1"),
        (lambda: fit_temperature(queries @ gallery.T, labels, low=1.0, high=0.5), "low < high"),
        (lambda: fit_temperature(torch.full((3, 2), torch.nan), labels[:3]), "NaN"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message):
            call()
    with pytest.raises(UnknownNameError, match="width"):
        reliability(np.array([0.5]), np.array([1]), scheme="area")  # type: ignore[arg-type]
