"""Ranks to numbers, chance, and the bootstrap, against loops, simulation and the general functions of metrics."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluate.measures import Measure, chance_level, measures_of, sums_by_cluster, value_by_seed
from pipeline.evaluate.queries import IMAGE_RETRIEVAL, TEXT_RETRIEVAL, QueryRanks
from pipeline.evaluate.resampling import Bootstrap, interval, p_value
from pipeline.metrics.bootstrap import bootstrap_interval, paired_difference


def table(ranks: list[list[int]], images: list[str], labels: list[str] | None = None) -> QueryRanks:
    return QueryRanks(
        direction=IMAGE_RETRIEVAL,
        ids=[str(i) for i in range(len(images))],
        image_ids=images,
        labels=labels or [""] * len(images),
        seeds=tuple(range(len(ranks))),
        ranks=np.array(ranks, dtype=np.int64),
    )


def test_names_follow_clip_benchmark() -> None:
    assert [m.name for m in measures_of(TEXT_RETRIEVAL, (5, 1))] == [
        "text_retrieval_recall@1",
        "text_retrieval_recall@5",
    ]
    assert [m.name for m in measures_of("zero_shot", (1,), 10)] == ["acc1", "acc5", "mean_per_class_recall"]
    assert [m.name for m in measures_of("zero_shot:cifar10", (1,), 3)] == [
        "cifar10/acc1",
        "cifar10/mean_per_class_recall",
    ]


def test_macro_is_the_mean_over_classes() -> None:
    queries = table([[1, 2, 1, 1]], list("abcd"), ["x", "x", "x", "y"])
    macro = Measure(name="m", direction="zero_shot", k=1, macro=True)
    assert value_by_seed(macro, queries)[0] == pytest.approx((2 / 3 + 1) / 2)
    hits, counts = sums_by_cluster(macro, queries, np.arange(4), 4)
    assert hits.sum(0).tolist() == [2.0, 1.0]
    assert counts.sum(0).tolist() == [3.0, 1.0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 4)), min_size=1, max_size=30), st.integers(1, 10))
def test_sums_over_clusters_give_the_value(pairs: list[tuple[int, int]], k: int) -> None:
    queries = table([[rank for rank, _ in pairs]], [f"i{image}" for _, image in pairs])
    names, clusters = np.unique(queries.image_ids, return_inverse=True)
    hits, counts = sums_by_cluster(Measure(name="m", direction=IMAGE_RETRIEVAL, k=k), queries, clusters, len(names))
    assert hits.sum() / counts.sum() == pytest.approx(sum(rank <= k for rank, _ in pairs) / len(pairs))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_chance_agrees_with_simulation(k: int) -> None:
    rng = np.random.default_rng(0)
    captions = np.array([1, 4, 2, 5])
    owner = np.repeat(np.arange(4), captions)
    hits = np.zeros(4)
    for _ in range(4000):
        first = owner[rng.permutation(12)[:k]]
        hits += [image in first for image in range(4)]
    text = Measure(name="t", direction=TEXT_RETRIEVAL, k=k)
    assert chance_level(text, images=4, captions=captions, classes=0) == pytest.approx(hits.mean() / 4000, abs=0.02)
    image = Measure(name="i", direction=IMAGE_RETRIEVAL, k=k)
    assert chance_level(image, images=4, captions=captions, classes=0) == min(1, k / 4)
    zero = Measure(name="z", direction="zero_shot", k=k)
    assert chance_level(zero, images=4, captions=captions, classes=20) == k / 20


def test_replicates_equal_a_loop_over_the_same_draws() -> None:
    rng = np.random.default_rng(1)
    hits, counts = rng.random((7, 3)), rng.integers(0, 3, (7, 3)).astype(float)
    counts[0] = 1
    bootstrap = Bootstrap(images=7, samples=50, seed=3)
    found = bootstrap.replicates([(hits, counts), (hits[:, :1], np.ones((7, 1)))])
    weights = np.concatenate(list(bootstrap.weights()))
    assert (weights.sum(1) == 7).all()
    for row, drawn in enumerate(weights):
        total = [(drawn @ hits[:, c], drawn @ counts[:, c]) for c in range(3)]
        assert found[0, row] == pytest.approx(np.mean([a / b for a, b in total if b]))
        assert found[1, row] == pytest.approx(drawn @ hits[:, 0] / 7)


def test_intervals_agree_with_the_general_bootstrap() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random(600) < 0.4, rng.random(600) < 0.5
    images = np.repeat(np.arange(150), 4)
    clusters = [(np.bincount(images, each)[:, None].astype(float), np.full((150, 1), 4.0)) for each in (a, b)]
    drawn = Bootstrap(images=150, samples=4000, seed=0).replicates(clusters)
    low, high = interval(drawn[0], 0.95)
    general = bootstrap_interval(a, resamples=4000, groups=images)
    assert (low, high) == pytest.approx((general.low, general.high), abs=0.008)
    paired = paired_difference(a, b, resamples=4000, groups=images)
    low, high = interval(drawn[1] - drawn[0], 0.95)
    assert (low, high) == pytest.approx((paired.low, paired.high), abs=0.008)
    assert p_value(drawn[1] - drawn[0]) == pytest.approx(paired.p_value, abs=0.01)


def test_p_value_of_equal_runs_is_one() -> None:
    assert p_value(np.zeros(100)) == 1.0
    assert p_value(np.ones(99)) == pytest.approx(0.02)
