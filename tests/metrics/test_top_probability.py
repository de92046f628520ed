"""Top probabilities from tiles against a plain float64 softmax of the whole matrix."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics.calibration import confidences
from pipeline.metrics.retrieval import cross_ranks
from pipeline.metrics.top_probability import TopProbabilities


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
    with pytest.raises(UserError, match="a positive temperature"):
        TopProbabilities(1, 1, temperature)
