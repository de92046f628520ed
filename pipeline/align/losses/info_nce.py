"""InfoNCE: each image picks its text out of the batch, and each text its image.

Where targets are plain or smoothed, both directions are computed at once, each block of similarities read twice and
nothing kept (`both_cross_entropies`); autograd would hold five N×N matrices.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.align.losses.blocks import row_blocks
from pipeline.align.losses.contrastive import ContrastiveLoss, Directions
from pipeline.align.losses.targets import Targets, check_square


class InfoNCELoss(ContrastiveLoss):
    """Cross-entropy of the softmax over the batch, per direction.

        z = S/τ;   L_i2t = (1/N) Σ_i [ logsumexp_j z_ij − Σ_j T_ij z_ij ];   L_t2i the same on zᵀ

    As published (arXiv 1807.03748; both directions with weight ½: CLIP, arXiv 2103.00020) for T = I. ∂L_i2t/∂z =
    (softmax_rows(z) − T)/N, and the minimum is the mean entropy of T's rows. A pair that is not allowed leaves the sum.

    Shape:
        S [N, N], T [N, N] (never built for plain and smoothed targets), output two scalars.

    Raises:
        UserError: S is not square, or holds fewer than two pairs.
    """

    def forward(self, similarity_NN: Tensor, targets: Targets, allowed_NN: Tensor | None = None) -> Directions:
        """Return L_i2t and L_t2i."""
        check_square(similarity_NN)
        alpha = targets.alpha
        if alpha is not None and allowed_NN is None and similarity_NN.dtype in (torch.float32, torch.float64):
            return Directions(*both_cross_entropies(similarity_NN, self.temperature(), alpha))
        logits_NN = similarity_NN / self.temperature()
        return Directions(
            _cross_entropy(logits_NN, targets, allowed_NN), _cross_entropy(logits_NN.T, targets, allowed_NN)
        )


def _cross_entropy(logits_NN: Tensor, targets: Targets, allowed_NN: Tensor | None) -> Tensor:
    kept_NN = logits_NN if allowed_NN is None else logits_NN.masked_fill(~allowed_NN, -torch.inf)
    # rows of T sum to one, so logsumexp(z) − Σ T z = −Σ T log softmax(z), whose backward is twice as fast
    return -targets.expectation(torch.log_softmax(kept_NN, dim=1), allowed_NN).mean()


def both_cross_entropies(similarity_NN: Tensor, temperature: Tensor, alpha: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of rows and of columns, each a mean over N.

        z = S/τ;   L_r = (1/N) Σ_i [ logsumexp_j z_ij − (1−α_i) z_ii − α_i mean_j z_ij ];   L_c the same on zᵀ
        ∂z_ij = [ g_r (softmax_row(z)_ij − α_i/N) + g_c (softmax_column(z)_ij − α_j/N) ]/N,  and the diagonal's (1−α)
        ∂S = ∂z/τ,  ∂τ = −Σ ∂S ⊙ S / τ

    Args:
        similarity_NN: S [N, N], float32 or float64.
        temperature: τ, a scalar.
        alpha: α, a number or [N]; no gradient.
    """
    spread_N: Tensor | None = None
    if isinstance(alpha, Tensor) or alpha != 0:
        spread_N = torch.as_tensor(alpha, dtype=similarity_NN.dtype, device=similarity_NN.device)
        spread_N = spread_N.detach().expand(len(similarity_NN))
    arguments = (similarity_NN, temperature, spread_N)
    rows, columns = _BothCrossEntropies.apply(*arguments)  # type: ignore[no-untyped-call]
    return rows, columns


class _BothCrossEntropies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, similarity_NN: Tensor, temperature: Tensor, alpha_N: Tensor | None) -> tuple[Tensor, Tensor]:
        scale = 1 / temperature
        log_sums = _log_sums(similarity_NN, scale)
        ctx.save_for_backward(similarity_NN, temperature, alpha_N, *log_sums)
        rows, columns = (
            (log_sum_N - scale * _expected(similarity_NN, alpha_N, axis)).mean()
            for log_sum_N, axis in zip(log_sums, (1, 0), strict=True)
        )
        return rows, columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, Tensor | None, None]:
        similarity_NN, temperature, alpha_N, rows_N, columns_N = ctx.saved_tensors
        n, scale = len(similarity_NN), 1 / temperature
        by_row, by_column = (output * scale / n for output in outputs)
        gradient_NN = torch.empty_like(similarity_NN, memory_format=torch.contiguous_format)
        for part in row_blocks(similarity_NN):
            logits = similarity_NN[part] * scale
            block = torch.sub(logits, rows_N[part, None], out=gradient_NN[part]).exp_().mul_(by_row)
            block.addcmul_(logits.sub_(columns_N).exp_(), by_column)
            if alpha_N is not None:
                block.sub_(by_row / n * alpha_N[part, None] + by_column / n * alpha_N)
        gradient_NN.diagonal().sub_((by_row + by_column) * (1.0 if alpha_N is None else 1 - alpha_N))
        slope = None
        if ctx.needs_input_grad[1]:
            slope = -scale * torch.dot(gradient_NN.view(-1), similarity_NN.reshape(-1))
        return gradient_NN, slope, None


def _expected(similarity_NN: Tensor, alpha_N: Tensor | None, axis: int) -> Tensor:
    """Return (1−α) s_ii + α·mean along an axis, [N]."""
    match_N = similarity_NN.diagonal()
    return match_N if alpha_N is None else torch.lerp(match_N, similarity_NN.mean(dim=axis), alpha_N)


def _log_sums(similarity_NN: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return logsumexp of z = scale·S along rows and along columns, each [N]."""
    rows = []
    largest_N = similarity_NN.new_full((similarity_NN.shape[1],), -torch.inf)
    total_N = similarity_NN.new_zeros(similarity_NN.shape[1])
    for part in row_blocks(similarity_NN):
        logits = similarity_NN[part] * scale
        rows.append(logits.amax(dim=1) - torch.softmax(logits, dim=1).amax(dim=1).log_())
        larger_N = torch.maximum(largest_N, logits.amax(dim=0))
        total_N = total_N * (largest_N - larger_N).exp_() + logits.sub_(larger_N).exp_().sum(dim=0)
        largest_N = larger_N
    return torch.cat(rows), largest_N + total_N.log_()
