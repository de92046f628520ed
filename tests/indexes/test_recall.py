"""Tuning against slow recall, and that the least effort is the least."""

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.indexes.index import Index, build_index
from pipeline.indexes.recall import Truth, measure, recalls, tune
from tests.indexes.test_kinds import unit

pytest.importorskip("faiss")
GALLERY, QUERIES = unit(4000, 12, 0), unit(1000, 12, 1)


def exact_neighbours(queries: torch.Tensor, gallery: torch.Tensor, k: int) -> Truth:
    truth = Truth(queries, k)
    truth.see(0, gallery)
    return truth


def by_hand(index: Index, k: int) -> float:
    similarity = QUERIES.numpy() @ GALLERY.numpy().T
    _, found = index.search(QUERIES, k)
    pairs = zip(similarity, found.tolist(), strict=True)
    return float(np.mean([len(set(np.argsort(-row)[:k].tolist()) & set(own)) / k for row, own in pairs]))


def test_neighbours_block_by_block_are_those_of_the_whole() -> None:
    truth = Truth(QUERIES[:30], 9)
    for start in range(0, 70, 7):
        truth.see(start, GALLERY[start : start + 7])
    scores, positions = build_index(GALLERY[:70], "torch").search(QUERIES[:30], 9)
    assert torch.equal(truth.positions, positions)
    torch.testing.assert_close(truth.scores, scores)


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "sq8"])
def test_the_wanted_recall_is_reached_with_the_least_effort(kind: str) -> None:
    index = build_index(GALLERY, kind)
    truth = exact_neighbours(QUERIES, GALLERY, 10)
    assert tune(index, truth, 0.9)
    recall = recalls(index, truth).mean()
    assert recall == pytest.approx(by_hand(index, 10), abs=1e-4)
    assert recall >= 0.9
    held = unit(1000, 12, 2)
    assert recalls(index, exact_neighbours(held, GALLERY, 10)).mean() >= 0.89
    if index.effort > 1:
        index.effort = max(1, index.effort // 2)
        assert by_hand(index, 10) < recall


def test_what_codes_cannot_reach_is_said() -> None:
    index = build_index(GALLERY, "ivfpq")
    truth = exact_neighbours(QUERIES, GALLERY, 10)
    assert not tune(index, truth, 0.999)
    assert index.effort == index.most_effort
    assert recalls(index, truth).mean() == pytest.approx(by_hand(index, 10), abs=1e-4)


def test_an_exact_kind_needs_no_effort_and_twins_do_not_count_against_it() -> None:
    twins = GALLERY[:50].repeat(4, 1)
    index = build_index(twins, "ivf")
    truth = exact_neighbours(QUERIES[:100], twins, 3)
    assert tune(index, truth, 1.0)
    assert recalls(index, truth).mean() == 1.0
    flat, truth = build_index(GALLERY, "flat"), exact_neighbours(QUERIES, GALLERY, 10)
    assert tune(flat, truth, 1.0)
    assert (flat.effort, recalls(flat, truth).mean()) == (0, 1.0)


def test_measured_on_other_queries_than_tuned_on() -> None:
    index, truth = build_index(GALLERY, "ivf"), exact_neighbours(QUERIES, GALLERY, 10)
    said = measure(index, truth, "captions", 0.9)
    assert (said["of"], said["k"], said["tuned_on"], said["queries"], said["reached"]) == (
        "captions",
        10,
        500,
        500,
        True,
    )
    assert said["recall"] == pytest.approx(recalls(index, truth)[500:].mean())
    assert said["recall_tuned"] == pytest.approx(recalls(index, truth)[:500].mean())


@pytest.mark.parametrize("wanted", [0.0, -1.0, 1.01, float("nan")])
def test_no_recall_at_all_is_refused(wanted: float) -> None:
    with pytest.raises(UserError, match="a recall above 0 and at most 1"):
        tune(build_index(GALLERY, "ivf"), exact_neighbours(QUERIES[:5], GALLERY, 2), wanted)
