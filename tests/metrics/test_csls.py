"""CSLS against its formula in a slow loop."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics.csls import nearest_mean, scaled
from pipeline.metrics.retrieval import cross_ranks


def unit(rows: int, seed: int, d: int = 8) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_ranks_are_those_of_the_formula() -> None:
    images, captions, bank_images, bank_captions = unit(30, 0), unit(60, 1), unit(40, 2), unit(50, 3)
    owner = torch.arange(60) % 30
    image_r, caption_r = nearest_mean(images, bank_captions, 5), nearest_mean(captions, bank_images, 5)
    left, right = scaled(images, captions, image_r, caption_r)
    image_ranks, caption_ranks = cross_ranks(left, right, owner)
    scores = np.zeros((30, 60))
    for i, image in enumerate(images):
        r_i = np.mean(sorted(float(image @ other) for other in bank_captions)[-5:])
        for c, caption in enumerate(captions):
            r_c = np.mean(sorted(float(caption @ other) for other in bank_images)[-5:])
            scores[i, c] = 2 * float(image @ caption) - r_i - r_c
    np.testing.assert_allclose((left @ right.T).numpy(), scores, atol=1e-5)
    for c in range(60):
        assert caption_ranks[c] == 1 + sum(scores[i, c] >= scores[owner[c], c] for i in range(30) if i != owner[c])
    for i in range(30):
        best = scores[i, owner.numpy() == i].max()
        assert image_ranks[i] == 1 + sum(scores[i, c] >= best for c in range(60) if owner[c] != i)


def test_it_helps_against_a_hub() -> None:
    """An image that is near all captions wins by cosine and loses once its nearness to everybody is taken off."""
    captions, bank = unit(50, 0), unit(200, 1)
    middle = torch.nn.functional.normalize(torch.ones(1, 8), dim=1)
    captions, bank = (torch.nn.functional.normalize(part + 1.5 * middle, dim=1) for part in (captions, bank))
    images = torch.cat([torch.nn.functional.normalize(captions + 0.8 * unit(50, 2), dim=1), middle])
    owner = torch.arange(50)
    plain = cross_ranks(images, captions, owner)[1]
    left, right = scaled(images, captions, nearest_mean(images, bank, 10), torch.zeros(50))
    assert (cross_ranks(left, right, owner)[1] == 1).mean() > (plain == 1).mean()


def test_hostile_input_is_told() -> None:
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: nearest_mean(unit(3, 0), unit(4, 1), 5), "k .* between 1 and 4"),
        (lambda: nearest_mean(unit(3, 0), unit(4, 1, 5), 2), "width 8"),
        (lambda: scaled(unit(3, 0), unit(4, 1, 5), torch.zeros(3), torch.zeros(4)), "width 8"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message):
            call()
