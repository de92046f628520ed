"""STRUCTURE: the projector may turn a modality's space, but should keep who is near whom.

How far two row-stochastic matrices are apart has a gradient in closed form, so that no logarithm is kept:
`row_divergence` takes the matrices, works off rows in blocks, and keeps nothing N×N but the gradient;
`neighbour_divergence` goes from centred rows to a value and a gradient, in one go and two N×N matrices, and keeps none
of them for the backward pass, which only scales.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pipeline.align.losses.blocks import add_transpose_, row_blocks, self_product
from pipeline.align.recipe import StructureOptions
from pipeline.errors import UserError

_TINY_PROBABILITY = {torch.float32: 1e-30, torch.float64: 1e-200}
_MASKED = -1e30
_TINY_MIXTURE = {torch.float32: 1e-37, torch.float64: 1e-300}


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
            return neighbour_divergence(*sides, options.temperature, mask_diagonal=options.mask_diagonal)
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


def row_divergence(aligned_NM: Tensor, original_NM: Tensor, form: Literal["js", "as_coded"]) -> Tensor:
    """Return the mean over rows of the divergence between Q (aligned) and P (original), M = ½(P + Q).

        js        ½[KL(P‖M) + KL(Q‖M)], at most ln 2;    gradient ½·ln(Q/M)
        as_coded  ½[KL(M‖Q) + KL(M‖P)], unbounded;       gradient ½[ln M − ½ ln P − ½ ln Q + 1 − M/Q]

    Probabilities below 1e-30 (float32; 1e-200 in float64) count as that in a logarithm, so all values are finite.

    Args:
        aligned_NM: Q [N, M]; gets the gradient.
        original_NM: P [N, M]; gets none.
        form: Which of the two.
    """
    value: Tensor = _RowDivergence.apply(aligned_NM, original_NM.detach(), form)  # type: ignore[no-untyped-call]
    return value


class _RowDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, aligned_NM: Tensor, original_NM: Tensor, form: str) -> Tensor:
        block = _jensen_shannon if form == "js" else _as_coded
        gradient_NM = torch.empty_like(aligned_NM)
        total = aligned_NM.new_zeros(())
        for part in row_blocks(aligned_NM):
            total += block(aligned_NM[part], original_NM[part], gradient_NM[part])
        ctx.save_for_backward(gradient_NM)
        return total.clamp_(min=0.0) / len(aligned_NM)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient_NM,) = ctx.saved_tensors
        return gradient_NM * (outputs[0] / len(gradient_NM)), None, None


def _jensen_shannon(q: Tensor, p: Tensor, gradient: Tensor) -> Tensor:
    tiny = _TINY_PROBABILITY[q.dtype]
    log_m = ((p + q) * 0.5).clamp_(min=tiny).log_()
    torch.log(q.clamp(min=tiny), out=gradient)
    gradient.sub_(log_m)
    loss = p.clamp(min=tiny).log_().sub_(log_m).mul_(p).addcmul_(q, gradient)
    gradient.mul_(0.5)
    return loss.sum() * 0.5


def _as_coded(q: Tensor, p: Tensor, gradient: Tensor) -> Tensor:
    tiny = _TINY_PROBABILITY[q.dtype]
    m = (p + q).mul_(0.5)
    logs = q.clamp(min=tiny).log_().add_(p.clamp(min=tiny).log_()).mul_(-0.5)
    logs.add_(m.clamp(min=tiny).log_())
    torch.div(m, q.clamp(min=tiny), out=gradient)
    gradient.masked_fill_(q <= tiny, 0.0).neg_().add_(logs).add_(1.0).mul_(0.5)
    return logs.mul_(m).sum()


def neighbour_divergence(
    aligned_Nd: Tensor, original_ND: Tensor, temperature: float, *, mask_diagonal: bool
) -> StructureTerm:
    """Return the mean over rows of ½[KL(P‖M) + KL(Q‖M)], M = ½(P + Q).

        P = softmax_rows(X Xᵀ/τ), Q = softmax_rows(A Aᵀ/τ) = exp(log Q);   H = ½(log Q − log M)
        G = Q ⊙ (H − rowsum(Q ⊙ H))/N,  the gradient on A Aᵀ/τ;            ∂A = (G + Gᵀ) A/τ

    M below 1e-37 (float32; 1e-300 in float64) counts as that in the logarithm, so everything is finite.

    Args:
        aligned_Nd: A [N, d], float32 or float64; gets the gradient.
        original_ND: X [N, D], of the same type; gets none.
        temperature: τ.
        mask_diagonal: Whether both diagonals are left out of the softmax.
    """
    arguments = (aligned_Nd, original_ND.detach(), temperature, mask_diagonal)
    return StructureTerm(*_NeighbourDivergence.apply(*arguments))  # type: ignore[no-untyped-call]


class _NeighbourDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, aligned_Nd: Tensor, original_ND: Tensor, temperature: float, mask_diagonal: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        original_NN = self_product(original_ND, 1 / temperature)
        aligned_NN = self_product(aligned_Nd, 1 / temperature)
        if mask_diagonal:
            original_NN.fill_diagonal_(_MASKED)
            aligned_NN.fill_diagonal_(_MASKED)
        value, diagonals = _divergence(original_NN, aligned_NN)
        if ctx.needs_input_grad[0]:
            gradient_Nd = add_transpose_(aligned_NN) @ aligned_Nd
            ctx.save_for_backward(gradient_Nd.mul_(1 / (temperature * len(aligned_Nd))))
        ctx.mark_non_differentiable(*diagonals)
        return value, *diagonals

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_Nd,) = ctx.saved_tensors
        return gradient_Nd * outputs[0], None, None, None


def _divergence(original_NN: Tensor, aligned_NN: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return the divergence and the mean diagonals; N·G takes the place of the aligned logits, the others are lost."""
    n = len(aligned_NN)
    total, masses = aligned_NN.new_zeros(()), aligned_NN.new_zeros(2)
    for part in row_blocks(aligned_NN):
        p, q = torch.softmax(original_NN[part], dim=1), torch.softmax(aligned_NN[part], dim=1)
        masses += torch.stack([p.diagonal(part.start).sum(), q.diagonal(part.start).sum()])
        total += _block(original_NN[part], aligned_NN[part], p, q)
    return total.clamp_(min=0.0) / n, (masses[0] / n, masses[1] / n)


def _block(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Return the summed divergence of some rows, their probabilities given beside the logits; `log_q` becomes N·G."""
    for logits, probabilities in ((log_p, p), (log_q, q)):  # log-sum-exp from the largest: no second exponential
        logits -= logits.amax(dim=1, keepdim=True) - probabilities.amax(dim=1, keepdim=True).log_()
    log_m = torch.add(p, q).mul_(0.5).clamp_(min=_TINY_MIXTURE[q.dtype]).log_()
    log_p -= log_m
    log_q -= log_m
    loss = log_p.mul_(p).sum()
    slope = log_q.mul_(q)
    inner = slope.sum(dim=1, keepdim=True)
    slope.addcmul_(q, inner, value=-1.0).mul_(0.5)
    return (loss + inner.sum()) * 0.5
