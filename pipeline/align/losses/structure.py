"""STRUCTURE: the projector may turn a modality's space, but should keep who is near whom."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.align.losses.divergence import neighbour_divergence, row_divergence
from pipeline.align.recipe import StructureOptions
from pipeline.errors import UserError


class StructureTerm(NamedTuple):
    """What one modality contributes (or both on average), and how much a row's mass sits on the sample itself."""

    value: Tensor
    """R_S, a scalar ≥ 0."""
    diagonal_features: Tensor
    """Mean diagonal of P_X, 0..1; near 1 means that R_S sees nothing."""
    diagonal_embeddings: Tensor
    """Mean diagonal of P_A."""


def structure_term(features_ND: Tensor, embeddings_Nd: Tensor, options: StructureOptions) -> StructureTerm:
    """Return R_S(X, A) of one modality.

        x̂ = x/‖x‖;  x̄ = x̂ − mean(x̂);  P_X = softmax_rows(X̄X̄ᵀ/τ_s)          (the same for A)
        R_S = (1/L) Σ_{l=1..L} (1/l)·D(P_X^l, P_A^l), D the mean over rows of `row_divergence`

    As published (arXiv 2506.16895): λ₀ = 10, τ_s = 0.05, L = 1, the diagonal included, fp32. Options of ours:
    `centre_first` (centre, then normalise), `mask_diagonal`, another τ_s. R_S(X, cXQ) = 0 for orthogonal Q and c > 0 at
    every L; it does not depend on the order of samples. Always computed in float32 (float64 stays), also under
    autocast. Memory: at L = 1 in the JS form two N×N matrices, nothing of which is kept; else a few more.

    Args:
        features_ND: [N, D] frozen features; no gradient.
        embeddings_Nd: [N, d] what the projector makes of them.
        options: L, τ_s, form, centring, diagonal.

    Raises:
        UserError: The row counts differ, or there are fewer than two rows.
    """
    if len(features_ND) != len(embeddings_Nd) or len(features_ND) < 2:
        raise UserError(
            expected="as many embeddings as features, at least 2",
            found=f"{len(features_ND)} features and {len(embeddings_Nd)} embeddings",
            where="structure",
        )
    with torch.autocast(features_ND.device.type, enabled=False):
        with torch.no_grad():
            original_ND = centred_rows(features_ND, options)
        aligned_Nd = centred_rows(embeddings_Nd, options)
        if options.levels == 1 and options.form == "js":
            wide = torch.promote_types(original_ND.dtype, aligned_Nd.dtype)
            sides = aligned_Nd.to(wide), original_ND.to(wide)
            return StructureTerm(
                *neighbour_divergence(*sides, options.temperature, mask_diagonal=options.mask_diagonal)
            )
        with torch.no_grad():
            original_NN = _neighbourhoods(original_ND, options)
        aligned_NN = _neighbourhoods(aligned_Nd, options)
        value = _compare_levels(original_NN, aligned_NN, options)
        masses = (matrix_NN.detach().diagonal().mean() for matrix_NN in (original_NN, aligned_NN))
        return StructureTerm(value, *masses)


def mean_of_modalities(image: StructureTerm, text: StructureTerm) -> StructureTerm:
    """Return ½(R_S of images + R_S of texts), and the means of what stands beside it."""
    return StructureTerm(*((one + other) / 2 for one, other in zip(image, text, strict=True)))


def neighbourhoods(features_ND: Tensor, options: StructureOptions) -> Tensor:
    """Return the row-stochastic P [N, N] of features [N, D]: who each sample's neighbours are."""
    return _neighbourhoods(centred_rows(features_ND, options), options)


def centred_rows(features_ND: Tensor, options: StructureOptions) -> Tensor:
    """Return the rows [N, D] of length one and mean zero that self-similarity is taken of, float32 or float64."""
    features_ND = features_ND if features_ND.dtype == torch.float64 else features_ND.float()
    if options.centre_first:
        return F.normalize(features_ND - features_ND.mean(dim=0), dim=1)
    unit_ND = F.normalize(features_ND, dim=1)
    return unit_ND - unit_ND.mean(dim=0)


def _neighbourhoods(centred_ND: Tensor, options: StructureOptions) -> Tensor:
    logits_NN = (centred_ND / options.temperature) @ centred_ND.T
    if options.mask_diagonal:
        diagonal_NN = torch.eye(len(logits_NN), dtype=torch.bool, device=logits_NN.device)
        logits_NN = logits_NN.masked_fill(diagonal_NN, -torch.inf)
    return torch.softmax(logits_NN, dim=1)


def _compare_levels(original_NN: Tensor, aligned_NN: Tensor, options: StructureOptions) -> Tensor:
    total = row_divergence(aligned_NN, original_NN, options.form)
    power_original_NN, power_aligned_NN = original_NN, aligned_NN
    for level in range(2, options.levels + 1):
        power_original_NN = power_original_NN @ original_NN
        power_aligned_NN = power_aligned_NN @ aligned_NN
        total = total + row_divergence(power_aligned_NN, power_original_NN, options.form) / level
    return total / options.levels


def structure_weight(options: StructureOptions, step: int, total_steps: int) -> float:
    """Return λ(t) = λ₀·min(1, t/warm-up) of step t, counted from 0.

    As published the warm-up lasts 1000 steps; with few pairs that outlasts the run, so here it is a share of all steps
    unless `warm_up_steps` says otherwise.
    """
    warm_up = options.warm_up * total_steps if options.warm_up_steps is None else options.warm_up_steps
    return options.weight * (min(1.0, step / warm_up) if warm_up > 0 else 1.0)
