"""InfoNCE: each image picks its text out of the batch, and each text its image."""

import torch
from torch import Tensor

from pipeline.align.losses.contrastive import ContrastiveLoss, Directions
from pipeline.align.losses.cross_entropy import both_cross_entropies
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
