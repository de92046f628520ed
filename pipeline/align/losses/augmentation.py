"""What is done to a batch's frozen features, in training only: FuseMix's mixing of its halves, and random noise."""

import math

import numpy as np
import torch
from torch import Tensor

from pipeline.align.recipe import MixOptions, PerturbationOptions
from pipeline.errors import UserError


def draw_coefficient(options: MixOptions, generator: torch.Generator) -> float:
    """Return λ ~ Beta(a, a), drawn through a CPU generator so that a step never waits for a device."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(options.alpha, options.alpha))


def mix_halves(features_ND: Tensor, coefficient: float) -> Tensor:
    """Return λ·x_i + (1−λ)·x_{i+N/2}.

    As published (arXiv 2312.10144, the base of Modest-Align, arXiv 2510.21606): one λ ~ Beta(1, 1) a step, the same λ
    and the same pairing in both modalities. The contrastive batch is N/2; of an odd batch the last pair is left out.

    Args:
        features_ND: [N, D]; call it once a modality with one coefficient.
        coefficient: λ in [0, 1].

    Returns:
        [⌊N/2⌋, D].

    Raises:
        UserError: Fewer than four pairs, so that mixing would leave fewer than two.
    """
    half = len(features_ND) // 2
    if half < 2:
        raise UserError(
            expected="at least 4 pairs in a batch that is mixed",
            found=str(len(features_ND)),
            where="mix",
            remedy="use more pairs, a larger batch, or a method without mixing",
        )
    return coefficient * features_ND[:half] + (1 - coefficient) * features_ND[half : 2 * half]


def allowed_after_mixing(allowed_NN: Tensor) -> Tensor:
    """Return which mixed pairs may be told apart: those that share no image in either half.

    Args:
        allowed_NN: [N, N] bool of the batch before mixing.

    Returns:
        [⌊N/2⌋, ⌊N/2⌋] bool, True on the diagonal.
    """
    half = len(allowed_NN) // 2
    return allowed_NN[:half, :half] & allowed_NN[half : 2 * half, half : 2 * half]


def perturb(features_ND: Tensor, options: PerturbationOptions, generator: torch.Generator) -> Tensor:
    """Return x + σ·ε (absolute) or x + σ·‖x‖/√D·ε (relative), ε ~ N(0, I).

    As published (Modest-Align, arXiv 2510.21606): absolute, σ = 0.01, independent for each sample and modality, after
    mixing and before the projector. σ = 0.01 is nothing on raw features of norm 50 and much on unit vectors, hence
    `relative`, where σ is the expected length of the noise over the length of the feature.

    Args:
        features_ND: [N, D].
        options: Strength and mode; σ = 0 returns the features themselves.
        generator: Source of the noise, on the features' device.
    """
    if options.sigma == 0:
        return features_ND
    noise_ND = torch.randn(
        features_ND.shape, generator=generator, dtype=features_ND.dtype, device=features_ND.device
    ).mul_(options.sigma)
    if options.mode == "relative":
        noise_ND *= features_ND.norm(dim=1, keepdim=True) / math.sqrt(features_ND.shape[1])
    return features_ND + noise_ND
