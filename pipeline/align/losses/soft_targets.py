"""Soft targets: the frozen features themselves say which mismatches are near misses."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.align.losses.targets import DenseTargets
from pipeline.align.recipe import SoftTargetOptions


def intra_modal_targets(image_ND: Tensor, text_ND: Tensor, options: SoftTargetOptions) -> DenseTargets:
    """Return T = (1−w)·I + w·softmax_rows(½(X̂X̂ᵀ + ŶŶᵀ)/τ_t).

    After SoftCLIP (arXiv 2303.17561), which softens each direction by one modality's self-similarity. Our reading:
    both modalities are averaged, so one T serves both directions; features are centred on the batch first, because
    the raw features of most encoders point into a narrow cone.

    Args:
        image_ND: [N, D₁] frozen image features; no gradient.
        text_ND: [N, D₂] frozen text features; no gradient.
        options: Weight w, temperature τ_t, centring.
    """
    with torch.no_grad():
        similarity_NN = (_self_similarity(image_ND, options.centre) + _self_similarity(text_ND, options.centre)) / 2
        soft_NN = torch.softmax(similarity_NN / options.temperature, dim=1) * options.weight
        soft_NN.diagonal().add_(1 - options.weight)
    return DenseTargets(soft_NN)


def _self_similarity(features_ND: Tensor, centre: bool) -> Tensor:
    features_ND = features_ND if features_ND.dtype == torch.float64 else features_ND.float()
    if centre:
        features_ND = features_ND - features_ND.mean(dim=0)
    unit_ND = F.normalize(features_ND, dim=1)
    return unit_ND @ unit_ND.T
