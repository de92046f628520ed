"""The bootstrap against slow loops over the generator's draws, and the normal approximation."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.metrics import bootstrap
from pipeline.metrics.bootstrap import Bootstrap, interval, p_value
from tests.drawing import draws

Floats = NDArray[np.float64]


def means(values: Floats, *, samples: int = 2000, seed: int = 0, groups: NDArray[np.int64] | None = None) -> Floats:
    """Return the replicates [B] of a mean over queries, whole groups drawn."""
    owner = np.arange(len(values)) if groups is None else groups
    hits, queries = (np.bincount(owner, each).astype(np.float64)[:, None] for each in (values, np.ones(len(values))))
    drawn: Floats = Bootstrap(images=len(hits), samples=samples, seed=seed).replicates([(hits, queries)])[0]
    return drawn


def test_interval_is_close_to_the_normal_one() -> None:
    hits = (np.random.default_rng(0).random(2000) < 0.3).astype(float)
    low, high = interval(means(hits, samples=4000), 0.95, 100)
    half = 1.96 * hits.std() / 2000**0.5
    assert low == pytest.approx(hits.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(hits.mean() + half, abs=0.15 * half)


def test_replicates_are_those_of_the_generator() -> None:
    values = np.random.default_rng(1).normal(size=30)
    generator = np.random.default_rng(7)
    expected = [np.mean([values[i] for i in generator.integers(0, 30, size=30)]) for _ in range(200)]
    ours = means(values, samples=200, seed=7)
    assert ours == pytest.approx(np.array(expected))
    assert interval(ours, 0.9, 30) == pytest.approx(tuple(np.quantile(expected, [0.05, 0.95])))


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=31)
    whole = means(values, samples=100)
    monkeypatch.setattr(bootstrap, "BLOCK_FLOATS", 70)
    assert means(values, samples=100) == pytest.approx(whole, abs=1e-12)


def test_a_block_holds_one_sample_at_least_and_as_many_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = Bootstrap(images=31, samples=5, seed=0)
    for floats, sizes in ((1, [1] * 5), (62, [2, 2, 1]), (155, [5]), (2**22, [5])):
        monkeypatch.setattr(bootstrap, "BLOCK_FLOATS", floats)
        blocks = list(drawing.weights())
        assert [block.shape for block in blocks] == [(size, 31) for size in sizes]
        assert {block.dtype for block in blocks} == {np.dtype(np.float64)}


def test_every_sample_counts_its_draws() -> None:
    generator, drawing = np.random.default_rng(5), Bootstrap(images=4, samples=6, seed=5)
    drawn = generator.integers(0, 4, size=(6, 4)).tolist()
    expected = [[row.count(image) for image in range(4)] for row in drawn]
    assert np.concatenate(list(drawing.weights())).tolist() == expected


def test_ratios_over_classes_equal_a_loop_over_the_same_draws() -> None:
    rng = np.random.default_rng(1)
    hits, counts = rng.random((7, 3)), rng.integers(0, 3, (7, 3)).astype(float)
    counts[0] = 1
    drawing = Bootstrap(images=7, samples=50, seed=3)
    found = drawing.replicates([(hits, counts), (hits[:, :1], np.ones((7, 1)))])
    weights = np.concatenate(list(drawing.weights()))
    assert (weights.sum(1) == 7).all()
    for row, drawn in enumerate(weights):
        total = [(drawn @ hits[:, c], drawn @ counts[:, c]) for c in range(3)]
        assert found[0, row] == pytest.approx(np.mean([a / b for a, b in total if b]))
        assert found[1, row] == pytest.approx(drawn @ hits[:, 0] / 7)


def test_captions_of_one_image_are_drawn_together() -> None:
    """Five equal captions an image carry no more than one: the interval is that of the images."""
    images = np.random.default_rng(2).normal(size=400)
    captions, groups = np.repeat(images, 5), np.repeat(np.arange(400), 5)
    alone, grouped, naive = (
        interval(each, 0.95, 400)
        for each in (means(images, seed=1), means(captions, seed=1, groups=groups), means(captions, seed=1))
    )
    assert grouped == pytest.approx(alone)
    assert naive[1] - naive[0] < 0.6 * (grouped[1] - grouped[0])


def test_groups_of_different_sizes_weigh_by_their_size() -> None:
    generator = np.random.default_rng(0)
    sums, sizes = np.array([3.0, 0.0]), np.array([3.0, 1.0])
    drawn = generator.integers(0, 2, size=(50, 2))
    expected = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    assert means(np.array([1.0, 1.0, 1.0, 0.0]), samples=50, groups=np.array([0, 0, 0, 1])) == pytest.approx(expected)


def test_a_clear_difference_is_found_and_a_null_one_is_not() -> None:
    """The same draws for both runs: the difference is paired."""
    generator = np.random.default_rng(3)
    a = generator.random(1000)
    better = means(a + 0.02 + 0.01 * generator.normal(size=1000)) - means(a)
    assert interval(better, 0.95, 2000, least=-1.0)[0] > 0
    assert p_value(better, 2000) == pytest.approx(2 / 2001)
    same = means(a + 0.05 * generator.normal(size=1000)) - means(a)
    low, high = interval(same, 0.95, 2000, least=-1.0)
    assert low < 0 < high
    assert p_value(same, 2000) > 0.05
    assert p_value(np.zeros(100), 2000) == 1.0
    assert p_value(np.ones(99), 2000) == pytest.approx(0.02)


def test_p_values_are_two_sided_with_one_added() -> None:
    assert p_value(np.array([-1.0, 1.0, 2.0, 3.0]), 100) == pytest.approx(2 * 2 / 5)
    assert p_value(np.array([1.0, -1.0, -2.0, -3.0]), 100) == pytest.approx(2 * 2 / 5)
    assert p_value(np.array([0.0, 1.0, 2.0]), 100) == pytest.approx(1.0)
    assert p_value(np.array([0.0, -1.0, -2.0]), 100) == pytest.approx(1.0)
    assert p_value(np.array([0.0, 1.0, 2.0, 3.0, 4.0]), 100) == pytest.approx(2 * 2 / 6)
    assert p_value(np.array([0.0, -1.0, -2.0, -3.0, -4.0]), 100) == pytest.approx(2 * 2 / 6)


def test_a_p_value_is_never_below_that_of_a_sign_test() -> None:
    """All M images agree: by luck that has the probability 2 · 2^(−M)."""
    from scipy.stats import binomtest

    ahead = np.full(1000, 0.5)
    for images in (1, 2, 6, 9):
        assert p_value(ahead, images) == pytest.approx(binomtest(images, images).pvalue)
    assert p_value(ahead, 10**9) == pytest.approx(2 / 1001)


@pytest.mark.parametrize("images", [1, 14, 1000])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.975])
def test_an_interval_at_the_ends_is_wilsons(images: int, confidence: float) -> None:
    from scipy.stats import binomtest

    for hits in (0, images):
        expected = binomtest(hits, images).proportion_ci(confidence, method="wilson")
        found = interval(means(np.full(images, hits / images)), confidence, images)
        assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("images", [1, 14, 1000])
def test_runs_that_answer_alike_may_differ_by_tangos_interval(images: int) -> None:
    """Tango 1998: without discordant pairs the score statistic Δ·√(n / |Δ|(1 − |Δ|)) reaches z at z² / (n + z²)."""
    low, high = interval(np.zeros(500), 0.95, images, least=-1.0)
    statistic = high * (images / (high * (1 - high))) ** 0.5
    assert statistic == pytest.approx(1.959964, abs=1e-5)
    assert low == -high


def test_images_that_all_say_one_half_keep_the_number_inside() -> None:
    low, high = interval(means(np.full(20, 0.5)), 0.95, 20)
    assert low < 0.5 < high
    assert high - 0.5 == pytest.approx(0.5 - low)
    assert interval(np.full(9, 1.0), 0.95, 1, least=-1.0)[0] < 0


@settings(max_examples=draws(40))
@given(values=st.lists(st.floats(-100, 100), min_size=1, max_size=20), seed=st.integers(0, 1000))
def test_interval_properties(values: list[float], seed: int) -> None:
    array = np.array(values)
    assume(np.ptp(means(array, samples=50, seed=seed)) > 1e-6)
    low, high = interval(means(array, samples=50, seed=seed), 0.95, len(array))
    assert array.min() - 1e-9 <= low <= high <= array.max() + 1e-9
    shifted = interval(means(array + 5, samples=50, seed=seed), 0.95, len(array))
    assert shifted == pytest.approx((low + 5, high + 5), abs=1e-6)


def test_hostile_input_is_told() -> None:
    with pytest.raises(UserError, match="expected images to draw from between 1 and 2147483648, found 0"):
        Bootstrap(images=0, samples=10, seed=0)
    with pytest.raises(UserError, match="expected bootstrap samples between 1 and 10000000, found 0"):
        Bootstrap(images=3, samples=0, seed=0)
    assert Bootstrap(images=1, samples=1, seed=0).samples == 1
