"""Bootstrap intervals against slow loops and the normal approximation."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.metrics import bootstrap
from pipeline.metrics.bootstrap import bootstrap_interval, paired_difference


def test_interval_is_close_to_the_normal_one() -> None:
    hits = np.random.default_rng(0).random(2000) < 0.3
    ours = bootstrap_interval(hits, resamples=4000)
    half = 1.96 * hits.std() / 2000**0.5
    assert ours.mean == pytest.approx(hits.mean())
    assert ours.low == pytest.approx(hits.mean() - half, abs=0.15 * half)
    assert ours.high == pytest.approx(hits.mean() + half, abs=0.15 * half)


def test_resamples_are_those_of_the_generator() -> None:
    values = np.random.default_rng(1).normal(size=30)
    generator = np.random.default_rng(7)
    means = [np.mean([values[i] for i in generator.integers(0, 30, size=30, dtype=np.int32)]) for _ in range(200)]
    ours = bootstrap_interval(values, resamples=200, seed=7, level=0.9)
    assert [ours.low, ours.high] == pytest.approx(np.quantile(means, [0.05, 0.95]))


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=31)
    whole = bootstrap_interval(values, resamples=100)
    monkeypatch.setattr(bootstrap, "_DRAWN", 70)
    assert bootstrap_interval(values, resamples=100) == whole


def test_captions_of_one_image_are_drawn_together() -> None:
    """Five equal captions an image carry no more than one: the interval is that of the images."""
    images = np.random.default_rng(2).normal(size=400)
    captions, groups = np.repeat(images, 5), np.repeat(np.arange(400), 5)
    alone = bootstrap_interval(images, seed=1)
    grouped = bootstrap_interval(captions, seed=1, groups=groups)
    naive = bootstrap_interval(captions, seed=1)
    assert [grouped.mean, grouped.low, grouped.high] == pytest.approx([alone.mean, alone.low, alone.high])
    assert naive.high - naive.low < 0.6 * (grouped.high - grouped.low)


def test_groups_of_different_sizes_weigh_by_their_size() -> None:
    values, groups = np.array([1.0, 1.0, 1.0, 0.0]), np.array(["a", "a", "a", "b"])
    generator = np.random.default_rng(0)
    sums, sizes = np.array([3.0, 0.0]), np.array([3.0, 1.0])
    drawn = generator.integers(0, 2, size=(50, 2), dtype=np.int32)
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    ours = bootstrap_interval(values, resamples=50, groups=groups)
    assert [ours.low, ours.high] == pytest.approx(np.quantile(means, [0.025, 0.975]))


def test_a_clear_difference_is_found_and_a_null_one_is_not() -> None:
    generator = np.random.default_rng(3)
    a = generator.random(1000)
    better = paired_difference(a, a + 0.02 + 0.01 * generator.normal(size=1000))
    assert better.low > 0
    assert better.p_value == pytest.approx(2 / 2001)
    same = paired_difference(a, a + 0.05 * generator.normal(size=1000))
    assert same.low < 0 < same.high
    assert same.p_value > 0.05
    assert paired_difference(a, a).p_value == 1.0


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(-100, 100), min_size=1, max_size=20), seed=st.integers(0, 1000))
def test_interval_properties(values: list[float], seed: int) -> None:
    array = np.array(values)
    ours = bootstrap_interval(array, resamples=50, seed=seed)
    assert array.min() - 1e-9 <= ours.low <= ours.high <= array.max() + 1e-9
    shifted = bootstrap_interval(array + 5, resamples=50, seed=seed)
    assert [shifted.low, shifted.high] == pytest.approx([ours.low + 5, ours.high + 5], abs=1e-6)


def test_hostile_input_is_told() -> None:
    values = np.ones(4)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: bootstrap_interval(np.zeros(0)), "one query at least"),
        (lambda: bootstrap_interval(np.zeros((2, 2))), "one query at least"),
        (lambda: bootstrap_interval(np.array([np.nan])), "finite"),
        (lambda: bootstrap_interval(values, level=1.0), "level between 0 and 1"),
        (lambda: bootstrap_interval(values, resamples=0), "resamples between"),
        (lambda: bootstrap_interval(values, groups=np.zeros(3)), "a group for each of 4"),
        (lambda: paired_difference(values, values[:2]), "same queries in both runs"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message):
            call()
