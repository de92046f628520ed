"""Ranks to numbers, and chance, against loops and simulation."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.evaluate.output import FILE, read_queries, write_queries
from pipeline.evaluate.results import (
    IMAGE_RETRIEVAL,
    TEXT_RETRIEVAL,
    Measure,
    QueryRanks,
    chance_level,
    measures_of,
    sums_by_cluster,
    value_by_seed,
    zero_shot_direction,
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


def test_measures_say_what_they_count() -> None:
    found = measures_of(IMAGE_RETRIEVAL, (10, 1, 10))
    assert [(m.name, m.direction, m.k, m.macro) for m in found] == [
        ("image_retrieval_recall@1", IMAGE_RETRIEVAL, 1, False),
        ("image_retrieval_recall@10", IMAGE_RETRIEVAL, 10, False),
    ]
    for direction, prefix in (("zero_shot", ""), ("zero_shot:a/b", "a/b/")):
        assert [(m.name, m.direction, m.k, m.macro) for m in measures_of(direction, (3,), 5)] == [
            (f"{prefix}acc1", direction, 1, False),
            (f"{prefix}acc5", direction, 5, False),
            (f"{prefix}mean_per_class_recall", direction, 1, True),
        ]
        assert len(measures_of(direction, (3,), 4)) == len(measures_of(direction, (3,))) == 2
    assert [zero_shot_direction(name) for name in ("", "birds")] == ["zero_shot", "zero_shot:birds"]


def test_some_of_the_queries_keep_all_that_is_theirs() -> None:
    whole = table([[1, 2, 3], [4, 5, 6]], list("abc"), list("xyz"))
    some = whole.take([2, 0])
    assert (some.ids, some.image_ids, some.labels) == (["2", "0"], ["c", "a"], ["z", "x"])
    assert some.ranks.tolist() == [[3, 1], [6, 4]]
    assert (some.direction, some.seeds) == (whole.direction, whole.seeds)


def test_each_seed_has_its_own_value_and_sums_are_their_mean() -> None:
    queries = table([[1, 2, 3, 4], [1, 9, 9, 9]], list("abca"), ["x", "x", "y", "y"])
    micro = Measure(name="m", direction=IMAGE_RETRIEVAL, k=3)
    assert value_by_seed(micro, queries).tolist() == [0.75, 0.25]
    assert value_by_seed(replace(micro, macro=True), queries).tolist() == [(1 + 1 / 2) / 2, (1 / 2 + 0) / 2]
    hits, counts = sums_by_cluster(micro, queries, np.array([0, 1, 2, 0]), 4)
    assert hits.tolist() == [[1.0], [0.5], [0.5], [0.0]]
    assert counts.tolist() == [[2.0], [1.0], [1.0], [0.0]]
    hits, counts = sums_by_cluster(replace(micro, macro=True), queries, np.array([0, 1, 2, 0]), 3)
    assert hits.tolist() == [[1.0, 0.0], [0.5, 0.0], [0.0, 0.5]]
    assert counts.tolist() == [[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]


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


@pytest.mark.parametrize("k", [1, 2, 5, 11, 12, 50])
def test_chance_is_the_hypergeometric_one(k: int) -> None:
    """1 − C(T − c, k)/C(T, k) for an image with c of T captions; certain where k reaches all the others."""
    captions = np.array([1, 4, 2, 5])
    drawn = min(k, 12)
    expected = np.mean([1 - math.comb(12 - c, drawn) / math.comb(12, drawn) for c in captions.tolist()])
    text = Measure(name="t", direction=TEXT_RETRIEVAL, k=k)
    assert chance_level(text, captions) == pytest.approx(expected, abs=1e-12)
    assert chance_level(replace(text, direction="zero_shot"), captions, 0) == 1.0
    assert chance_level(replace(text, direction="zero_shot"), captions) == 1.0
    assert chance_level(replace(text, direction=IMAGE_RETRIEVAL), np.ones(100, dtype=np.int64)) == k / 100


def two_runs() -> list[tuple[str, QueryRanks]]:
    text = table([[1, 2, 3], [4, 5, 6]], ["p", "p", "q"])
    zero = replace(text, direction="zero_shot", labels=["cat", "dog", "cat"])
    return [("b", replace(text, seeds=(7, 3))), ("b", replace(zero, seeds=(7, 3))), ("a", replace(text, seeds=(1, 2)))]


def test_ranks_are_written_a_row_a_query_and_seed_and_read_back(tmp_path: Path) -> None:
    write_queries(tmp_path / FILE, two_runs())
    rows = pq.read_table(tmp_path / FILE)
    assert rows.schema.names == ["query_id", "image_id", "label", "direction", "run", "seed", "rank"]
    assert [str(kind) for kind in rows.schema.types] == ["string"] * 5 + ["int64"] * 2
    assert [list(row.values()) for row in rows.to_pylist()] == [
        [name, image, label, held.direction, run, seed, rank]
        for run, held in two_runs()
        for seed, ranks in zip(held.seeds, held.ranks.tolist(), strict=True)
        for name, image, label, rank in zip(held.ids, held.image_ids, held.labels, ranks, strict=True)
    ]
    found = read_queries(tmp_path)
    assert {run: list(held) for run, held in found.items()} == {
        "b": [IMAGE_RETRIEVAL, "zero_shot"],
        "a": [IMAGE_RETRIEVAL],
    }
    for run, held in two_runs():
        back = found[run][held.direction]
        assert replace(back, ranks=held.ranks) == held
        assert back.ranks.tolist() == held.ranks.tolist()
        assert back.ranks.dtype == np.int64


def test_a_table_of_another_make_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}: expected the file {FILE}, found none; run")):
        read_queries(tmp_path)
    with pytest.raises(
        UserError, match=r"^here: expected .* found none; run `pipeline evaluate` into that folder first$"
    ):
        read_queries(tmp_path, "here")
    (tmp_path / FILE).write_bytes(b"no table")
    with pytest.raises(UserError, match=rf"^{re.escape(str(tmp_path / FILE))}: expected a table of ranks by query"):
        read_queries(tmp_path)
    write_queries(tmp_path / FILE, two_runs())
    rows = pq.read_table(tmp_path / FILE)
    pq.write_table(rows.drop_columns(["seed"]), tmp_path / FILE)
    with pytest.raises(UserError, match="a table of ranks by query"):
        read_queries(tmp_path)
    letters = rows.set_column(6, "rank", pa.array(["x"] * len(rows)))
    pq.write_table(letters, tmp_path / FILE)
    with pytest.raises(UserError, match="a table of ranks by query"):
        read_queries(tmp_path)


@pytest.mark.parametrize("change", ["other", "fewer", "repeated"])
def test_every_seed_has_the_same_queries_once(tmp_path: Path, change: str) -> None:
    first, second = (table([[1, 2, 3]], list("pqr")) for _ in range(2))
    second = replace(second, seeds=(1,))
    if change == "other":
        second = replace(second, ids=["0", "1", "9"])
    elif change == "fewer":
        second = replace(second.take([0, 1]), seeds=(1,))
    else:
        first, second = (replace(each, ids=["0", "1", "1"]) for each in (first, second))
    write_queries(tmp_path / FILE, [("a", first), ("a", second)])
    message = f"the same queries for every seed, found other queries or repeated ones in direction {IMAGE_RETRIEVAL}"
    with pytest.raises(UserError, match=message):
        read_queries(tmp_path)
