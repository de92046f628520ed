"""How far two row-stochastic matrices are apart, with a gradient in closed form, so that no logarithm is kept.

Used by `pipeline.align.losses.structure`. `row_divergence` takes the matrices, works off rows in blocks, and keeps
nothing N×N but the gradient; `neighbour_divergence` goes from centred rows to a value and a gradient, in one go and two
N×N matrices, and keeps none of them for the backward pass, which only scales.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.align.losses.blocks import add_transpose_, row_blocks, self_product

_TINY_PROBABILITY = {torch.float32: 1e-30, torch.float64: 1e-200}
_MASKED = -1e30
_TINY_MIXTURE = {torch.float32: 1e-37, torch.float64: 1e-300}


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


class NeighbourDivergence(NamedTuple):
    """A value, and how much mass the two matrices have on their diagonals."""

    value: Tensor
    diagonal_original: Tensor
    diagonal_aligned: Tensor


def neighbour_divergence(
    aligned_Nd: Tensor, original_ND: Tensor, temperature: float, *, mask_diagonal: bool
) -> NeighbourDivergence:
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
    return NeighbourDivergence(*_NeighbourDivergence.apply(*arguments))  # type: ignore[no-untyped-call]


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
