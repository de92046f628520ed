"""Embedding smoothing: a little of each target's mass goes to the rest of the batch."""

import math

import torch
from torch import Tensor

from pipeline.align.losses.targets import IdentityTargets, Targets
from pipeline.align.recipe import SmoothingOptions


class SmoothedTargets(Targets):
    """T = (1−α)·I + (α/N)·11ᵀ, row by row.

    Our reading of Modest-Align (arXiv 2510.21606), which publishes no formula in a source that we could reach. Equals
    `torch.nn.functional.cross_entropy(label_smoothing=α)` in each direction. Spreading α′ over the N−1 *other*
    pairs alone is the same thing with α = α′·N/(N−1) (`from_off_diagonal`). The best gap between a match's cosine and
    a mismatch's is τ·ln((1−α+α/N)/(α/N)): it grows with N, so α and the batch size are to be chosen together.

    Args:
        alpha: α, a scalar or [N] (one share a pair, the same in both directions so that rows always sum to one).
    """

    def __init__(self, alpha: float | Tensor) -> None:
        self.alpha: float | Tensor = alpha

    @classmethod
    def from_off_diagonal(cls, alpha: float, batch: int) -> "SmoothedTargets":
        """Return the targets (1−α′)·I + (α′/(N−1))·(11ᵀ − I) of a batch of N pairs."""
        return cls(alpha * batch / (batch - 1))

    def expectation(self, logits_NN: Tensor, allowed_NN: Tensor | None) -> Tensor:
        """Return (1−α)·z_ii + α·mean_j z_ij over the allowed pairs, [N]."""
        if allowed_NN is None:
            mean_N = logits_NN.mean(dim=1)
        else:
            mean_N = logits_NN.masked_fill(~allowed_NN, 0.0).sum(dim=1) / allowed_NN.sum(dim=1)
        return (1 - self.alpha) * logits_NN.diagonal() + self.alpha * mean_N

    def dense(self, like_NN: Tensor, allowed_NN: Tensor | None) -> Tensor:
        """Return T, [N, N]."""
        alpha_N = torch.as_tensor(self.alpha, dtype=like_NN.dtype, device=like_NN.device).expand(len(like_NN))
        spread_NN = torch.ones_like(like_NN) if allowed_NN is None else allowed_NN.to(like_NN)
        spread_NN = spread_NN * (alpha_N / spread_NN.sum(dim=1))[:, None]
        return spread_NN + torch.diag(1 - alpha_N)


def smoothed_targets(options: SmoothingOptions, similarity_NN: Tensor, progress: float) -> Targets:
    """Return the targets of one step.

        fixed: α;   cosine: α·½(1 + cos(π·t)), 0 at the end;   per_sample: α_i = α·(1 − max(0, sg[s_ii]))

    The schedules are our reading (arXiv 2510.21606 names none).

    Args:
        options: Strength and schedule.
        similarity_NN: [N, N] cosine similarities; only the diagonal is read, without gradient.
        progress: Share of training that is done, 0..1.
    """
    if options.alpha == 0:
        return IdentityTargets()
    if options.schedule == "cosine":
        return SmoothedTargets(options.alpha * (1 + math.cos(math.pi * progress)) / 2)
    if options.schedule == "per_sample":
        match_N = similarity_NN.detach().diagonal().clamp(0.0, 1.0)
        return SmoothedTargets(options.alpha * (1 - match_N))
    return SmoothedTargets(options.alpha)
