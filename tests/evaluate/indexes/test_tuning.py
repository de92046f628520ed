"""Tuning against slow recall, and that the least effort is the least."""

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.evaluate.indexes.exact import TorchIndex
from pipeline.evaluate.indexes.faiss_index import FaissIndex
from pipeline.evaluate.indexes.table import build_index
from pipeline.evaluate.indexes.tuning import exact_neighbours, recalls, tune
from tests.evaluate.indexes.test_kinds import unit

pytest.importorskip("faiss")
GALLERY, QUERIES = unit(4000, 12, 0), unit(1000, 12, 1)


def built(kind: str) -> FaissIndex:
    index = build_index(GALLERY, kind)
    assert isinstance(index, FaissIndex)
    return index


def by_hand(index: FaissIndex, k: int) -> float:
    similarity = QUERIES.numpy() @ GALLERY.numpy().T
    _, found = index.search(QUERIES, k)
    pairs = zip(similarity, found.tolist(), strict=True)
    return float(np.mean([len(set(np.argsort(-row)[:k].tolist()) & set(own)) / k for row, own in pairs]))


def test_neighbours_block_by_block_are_those_of_the_whole() -> None:
    blocks = [(start, GALLERY[start : start + 7]) for start in range(0, 70, 7)]
    truth = exact_neighbours(QUERIES[:30], blocks, 9)
    scores, positions = TorchIndex(GALLERY[:70]).search(QUERIES[:30], 9)
    assert torch.equal(truth.positions, positions)
    torch.testing.assert_close(truth.scores, scores)


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "sq8"])
def test_the_wanted_recall_is_reached_with_the_least_effort(kind: str) -> None:
    index = built(kind)
    truth = exact_neighbours(QUERIES, [(0, GALLERY)], 10)
    tuned = tune(index, truth, 0.9)
    assert tuned.reached
    assert tuned.effort == index.effort
    assert tuned.recall == pytest.approx(by_hand(index, 10), abs=1e-4)
    assert tuned.recall >= 0.9
    held = unit(1000, 12, 2)
    assert recalls(index, exact_neighbours(held, [(0, GALLERY)], 10)).mean() >= 0.89
    if tuned.effort > 1:
        index.set_effort(max(1, tuned.effort // 2))
        assert by_hand(index, 10) < tuned.recall


def test_what_codes_cannot_reach_is_said() -> None:
    index = built("ivfpq")
    tuned = tune(index, exact_neighbours(QUERIES, [(0, GALLERY)], 10), 0.999)
    assert not tuned.reached
    assert tuned.effort == index.most_effort
    assert tuned.recall == pytest.approx(by_hand(index, 10), abs=1e-4)


def test_an_exact_kind_needs_no_effort_and_twins_do_not_count_against_it() -> None:
    twins = GALLERY[:50].repeat(4, 1)
    index = build_index(twins, "ivf")
    assert isinstance(index, FaissIndex)
    tuned = tune(index, exact_neighbours(QUERIES[:100], [(0, twins)], 3), 1.0)
    assert (tuned.recall, tuned.reached) == (1.0, True)
    flat = tune(built("flat"), exact_neighbours(QUERIES, [(0, GALLERY)], 10), 1.0)
    assert (flat.effort, flat.recall) == (0, 1.0)


@pytest.mark.parametrize("wanted", [0.0, -1.0, 1.01, float("nan")])
def test_no_recall_at_all_is_refused(wanted: float) -> None:
    with pytest.raises(UserError, match="a recall above 0 and at most 1"):
        tune(built("ivf"), exact_neighbours(QUERIES[:5], [(0, GALLERY)], 2), wanted)
