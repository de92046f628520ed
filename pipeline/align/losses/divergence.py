"""How far two row-stochastic matrices are apart, with a gradient in closed form, so that no logarithm is kept.

Used by `pipeline.align.losses.structure`. Rows are worked off in blocks: besides the inputs only the gradient is N×N.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.align.losses.blocks import row_blocks

_TINY = {torch.float32: 1e-30, torch.float64: 1e-200}


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
    tiny = _TINY[q.dtype]
    log_m = ((p + q) * 0.5).clamp_(min=tiny).log_()
    torch.log(q.clamp(min=tiny), out=gradient)
    gradient.sub_(log_m)
    loss = p.clamp(min=tiny).log_().sub_(log_m).mul_(p).addcmul_(q, gradient)
    gradient.mul_(0.5)
    return loss.sum() * 0.5


def _as_coded(q: Tensor, p: Tensor, gradient: Tensor) -> Tensor:
    tiny = _TINY[q.dtype]
    m = (p + q).mul_(0.5)
    logs = q.clamp(min=tiny).log_().add_(p.clamp(min=tiny).log_()).mul_(-0.5)
    logs.add_(m.clamp(min=tiny).log_())
    torch.div(m, q.clamp(min=tiny), out=gradient)
    gradient.masked_fill_(q <= tiny, 0.0).neg_().add_(logs).add_(1.0).mul_(0.5)
    return logs.mul_(m).sum()
