"""DCL, decoupled contrastive learning: InfoNCE without the match in its own denominator."""

import torch
from torch import Tensor

from pipeline.align.losses.contrastive import ContrastiveLoss, Directions
from pipeline.align.losses.targets import Targets, check_square


class DCLLoss(ContrastiveLoss):
    """InfoNCE whose denominator runs over the mismatches alone.

        L_i2t = (1/N) Σ_i [ logsumexp_{j≠i} z_ij − Σ_j T_ij z_ij ],  z = S/τ;   L_t2i the same on zᵀ

    As published (arXiv 2110.06848) for T = I, there within one modality; across modalities and with other targets is
    our reading. The pull on an easy pair no longer fades, which helps small batches. The value can be negative.

    Shape:
        S [N, N], output two scalars.

    Raises:
        UserError: S is not square, or holds fewer than two pairs.
    """

    def forward(self, similarity_NN: Tensor, targets: Targets, allowed_NN: Tensor | None = None) -> Directions:
        """Return L_i2t and L_t2i."""
        check_square(similarity_NN)
        logits_NN = similarity_NN / self.temperature()
        left_out_NN = torch.eye(len(logits_NN), dtype=torch.bool, device=logits_NN.device)
        if allowed_NN is not None:
            left_out_NN |= ~allowed_NN
        return Directions(
            _decoupled(logits_NN, targets, allowed_NN, left_out_NN),
            _decoupled(logits_NN.T, targets, allowed_NN, left_out_NN.T),
        )


def _decoupled(logits_NN: Tensor, targets: Targets, allowed_NN: Tensor | None, left_out_NN: Tensor) -> Tensor:
    mismatch_NN = logits_NN.masked_fill(left_out_NN, -torch.inf)
    lonely_N = left_out_NN.all(dim=1)
    denominator_N = torch.logsumexp(mismatch_NN.masked_fill(lonely_N[:, None], 0.0), dim=1)
    loss_N = denominator_N - targets.expectation(logits_NN, allowed_NN)
    return loss_N.masked_fill(lonely_N, 0.0).mean()
