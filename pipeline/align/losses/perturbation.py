"""Random perturbation: Gaussian noise on the frozen features, in training only."""

import math

import torch
from torch import Tensor

from pipeline.align.recipe import PerturbationOptions


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
