"""Swapped captions and noise do what they say and no more."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.align.pairs import PairSet
from pipeline.sweep.bench import add_noise, swap_captions


def drawn_of(counts: list[int]) -> PairSet:
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return PairSet(np.arange(len(counts)), 100 + np.arange(starts[-1]), starts)


def captions_by_image(drawn: PairSet) -> list[tuple[int, ...]]:
    return [tuple(drawn.caption_rows[a:b].tolist()) for a, b in zip(drawn.starts[:-1], drawn.starts[1:], strict=True)]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=30), st.floats(0, 1), st.integers(0, 9))
def test_swapping_moves_whole_groups_of_the_right_share(counts: list[int], share: float, seed: int) -> None:
    before = captions_by_image(drawn_of(counts))
    found = swap_captions(drawn_of(counts), share, seed)
    after = captions_by_image(found)
    assert sorted(after) == sorted(before)
    wanted = round(share * len(counts))
    assert sum(a != b for a, b in zip(after, before, strict=True)) == (wanted if wanted > 1 else 0)
    assert found.image_rows.tolist() == list(range(len(counts)))


def test_a_smaller_share_swaps_a_part_of_a_larger_one() -> None:
    clean = captions_by_image(drawn_of([2] * 40))
    moved = []
    for share in (0.1, 0.2, 0.5):
        after = captions_by_image(swap_captions(drawn_of([2] * 40), share, 3))
        moved.append({image for image, (a, b) in enumerate(zip(after, clean, strict=True)) if a != b})
    assert moved[0] < moved[1] < moved[2]
    assert [len(each) for each in moved] == [4, 8, 20]


def test_noise_is_as_long_as_sigma_says() -> None:
    features = 50 * torch.randn(400, 300, generator=torch.Generator().manual_seed(0))
    noise = add_noise(features, 0.5, seed=1) - features
    ratio = noise.norm(dim=1) / features.norm(dim=1)
    assert float(ratio.mean()) == pytest.approx(0.5, rel=0.01)
    assert torch.equal(add_noise(features, 0.5, seed=1), add_noise(features, 0.5, seed=1))
    assert not torch.equal(add_noise(features, 0.5, seed=1), add_noise(features, 0.5, seed=2))
