"""Random perturbation and FuseMix."""

import math

import pytest
import torch

from pipeline.align.losses.augmentation import allowed_after_mixing, draw_coefficient, mix_halves, perturb
from pipeline.align.losses.targets import distinct_images
from pipeline.align.recipe import MixOptions, PerturbationOptions
from pipeline.errors import UserError
from tests.placement import Placed


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_no_noise_is_the_features_themselves() -> None:
    features = torch.randn(4, 3)
    assert perturb(features, PerturbationOptions(), generator()) is features


@pytest.mark.parametrize(("mode", "scale"), [("absolute", 0.1), ("relative", 0.1 * 50)])
def test_size_of_the_noise(mode: str, scale: float) -> None:
    """Features of norm 50·√D: relative noise grows with them, absolute noise does not."""
    features = torch.full((500, 200), 50.0)
    noise = perturb(features, PerturbationOptions(sigma=0.1, mode=mode), generator()) - features  # type: ignore[arg-type]
    assert noise.std().item() == pytest.approx(scale, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=scale / 50)


def test_relative_noise_keeps_a_zero_vector() -> None:
    assert perturb(torch.zeros(2, 3), PerturbationOptions(sigma=0.1), generator()).abs().max().item() == 0


def test_noise_is_drawn_from_the_generator_and_differs_by_row() -> None:
    options = PerturbationOptions(sigma=0.1)
    first, again = perturb(torch.ones(3, 4), options, generator(1)), perturb(torch.ones(3, 4), options, generator(1))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


def test_noise_lies_where_the_features_lie() -> None:
    features = torch.ones(3, 4)
    with Placed():
        perturb(features, PerturbationOptions(sigma=0.1), generator())


def test_mix_pairs_the_halves() -> None:
    features = torch.arange(10.0).reshape(5, 2)
    mixed = mix_halves(features, 0.25)
    torch.testing.assert_close(mixed, 0.25 * features[:2] + 0.75 * features[2:4])


def test_coefficient_is_uniform_for_beta_one_one() -> None:
    source = generator()
    drawn = torch.tensor([draw_coefficient(MixOptions(enabled=True), source) for _ in range(2000)])
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.03)
    assert drawn.std().item() == pytest.approx(1 / math.sqrt(12), abs=0.02)


def test_mixed_pairs_that_share_an_image_are_left_out() -> None:
    allowed = allowed_after_mixing(distinct_images(torch.tensor([0, 0, 1, 2, 3, 3])))
    assert allowed.tolist() == [[True, False, True], [False, True, False], [True, False, True]]


def test_the_last_pair_of_an_odd_batch_is_left_out_of_the_mask_too() -> None:
    allowed = allowed_after_mixing(distinct_images(torch.tensor([0, 1, 2, 1, 2])))
    assert allowed.tolist() == [[True, True], [True, True]]


def test_coefficients_hardly_ever_repeat() -> None:
    source = generator()
    drawn = {draw_coefficient(MixOptions(enabled=True), source) for _ in range(400)}
    assert len(drawn) > 390


def test_too_small_a_batch_cannot_be_mixed() -> None:
    with pytest.raises(UserError, match="at least 4 pairs"):
        mix_halves(torch.ones(3, 2), 0.5)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(UserError, match=r"perturbation\.sigma at least 0"):
        PerturbationOptions(sigma=-1.0)
    with pytest.raises(UserError, match=r"mix\.alpha above 0"):
        MixOptions(alpha=0.0)
