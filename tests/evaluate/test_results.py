"""Ranks to numbers, and chance, against loops and simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluate.results import (
    IMAGE_RETRIEVAL,
    TEXT_RETRIEVAL,
    Measure,
    QueryRanks,
    chance_level,
    measures_of,
    sums_by_cluster,
    value_by_seed,
)
from tests.drawing import draws


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


@settings(max_examples=draws(40))
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
    assert chance_level(text, captions) == pytest.approx(hits.mean() / 4000, abs=0.02)
    image = Measure(name="i", direction=IMAGE_RETRIEVAL, k=k)
    assert chance_level(image, captions) == min(1, k / 4)
    zero = Measure(name="z", direction="zero_shot", k=k)
    assert chance_level(zero, captions, 20) == k / 20
