"""SigLIP: every image-text pair is its own yes-or-no question."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.align.losses.contrastive import ContrastiveLoss, Directions
from pipeline.align.losses.targets import Targets, check_square
from pipeline.align.recipe import TemperatureOptions


class SigLIPLoss(ContrastiveLoss):
    """Pairwise sigmoid loss with a learned bias.

        L = −(1/N) Σ_i Σ_j log σ(y_ij (s_ij/τ + b)),   y_ii = 1, y_ij = −1

    As published (arXiv 2303.15343), with ln(1/τ) learned from 1/τ = 10 and b from −10. Reduction: **sum over all N²
    pairs, divided by N** (not by N²), so the value grows with the batch. Our reading: other targets T enter as the soft
    answer of the binary cross-entropy, averaged over both directions. The sum is the same by rows and by columns, so
    both directions carry the same value and direction weights that sum to one change nothing.

    Shape:
        S [N, N], output two equal scalars.

    Raises:
        UserError: S is not square, or holds fewer than two pairs.
    """

    def __init__(self, temperature: TemperatureOptions, bias: float = -10.0) -> None:
        super().__init__(temperature)
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, similarity_NN: Tensor, targets: Targets, allowed_NN: Tensor | None = None) -> Directions:
        """Return the loss twice."""
        check_square(similarity_NN)
        logits_NN = similarity_NN / self.temperature() + self.bias
        rows_NN = targets.dense(logits_NN, allowed_NN)
        answer_NN = (rows_NN + rows_NN.T) / 2
        loss_NN = F.binary_cross_entropy_with_logits(logits_NN, answer_NN, reduction="none")
        kept_NN = loss_NN if allowed_NN is None else loss_NN * allowed_NN
        loss = kept_NN.sum() / len(logits_NN)
        return Directions(loss, loss)
