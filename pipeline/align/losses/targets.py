"""What the softmax over a batch should look like: rows T_i that sum to one. Used by every loss of the table.

Plain, smoothed (a little of each target's mass goes to the rest of the batch), or soft (the frozen features themselves
say which mismatches are near misses). A target knows its expectation Σ_j T_ij·z_ij, so that the plain and the smoothed
ones never build an N×N matrix.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.align.recipe import SmoothingOptions, SoftTargetOptions
from pipeline.errors import UserError


class Targets(ABC):
    """Rows of a target distribution over the batch, the same rows in both directions."""

    alpha: float | Tensor | None = None
    """α where T = (1−α)·I + (α/N)·11ᵀ (a number, or [N] for the rows); None where T is something else."""

    @abstractmethod
    def expectation(self, logits_NN: Tensor, allowed_NN: Tensor | None) -> Tensor:
        """Return Σ_j T_ij·z_ij of each row.

        Args:
            logits_NN: [N, N], rows are anchors.
            allowed_NN: [N, N] bool, False where a pair counts neither as match nor as mismatch; the diagonal is True.

        Returns:
            [N].
        """

    @abstractmethod
    def dense(self, like_NN: Tensor, allowed_NN: Tensor | None) -> Tensor:
        """Return T itself, [N, N], with the dtype and device of `like_NN`."""


class IdentityTargets(Targets):
    """T = I: each row has one match, its own pair."""

    alpha = 0.0

    def expectation(self, logits_NN: Tensor, allowed_NN: Tensor | None) -> Tensor:
        """Return the diagonal, [N]."""
        return logits_NN.diagonal()

    def dense(self, like_NN: Tensor, allowed_NN: Tensor | None) -> Tensor:
        """Return the identity, [N, N]."""
        return torch.eye(len(like_NN), dtype=like_NN.dtype, device=like_NN.device)


class DenseTargets(Targets):
    """Any T, given as a matrix.

    Args:
        matrix_NN: [N, N], rows sum to one; no gradient flows into it.
    """

    def __init__(self, matrix_NN: Tensor) -> None:
        self._matrix_NN = matrix_NN.detach()

    def expectation(self, logits_NN: Tensor, allowed_NN: Tensor | None) -> Tensor:
        """Return Σ_j T_ij·z_ij, [N], over the allowed pairs."""
        matrix_NN = self.dense(logits_NN, allowed_NN)
        kept_NN = logits_NN if allowed_NN is None else logits_NN.masked_fill(~allowed_NN, 0.0)
        return (matrix_NN * kept_NN).sum(dim=1)

    def dense(self, like_NN: Tensor, allowed_NN: Tensor | None) -> Tensor:
        """Return T, [N, N], renormalised over the allowed pairs."""
        matrix_NN = self._matrix_NN.to(like_NN)
        if allowed_NN is None:
            return matrix_NN
        kept_NN = matrix_NN * allowed_NN
        return kept_NN / kept_NN.sum(dim=1, keepdim=True).clamp_min(torch.finfo(kept_NN.dtype).tiny)


class SmoothedTargets(Targets):
    """T = (1−α)·I + (α/N)·11ᵀ, row by row.

    Our reading of Modest-Align (arXiv 2510.21606), which publishes no formula in a source that we could reach. Equals
    `torch.nn.functional.cross_entropy(label_smoothing=α)` in each direction. Spreading α′ over the N−1 *other*
    pairs alone is the same thing with α = α′·N/(N−1). The best gap between a match's cosine and
    a mismatch's is τ·ln((1−α+α/N)/(α/N)): it grows with N, so α and the batch size are to be chosen together.

    Args:
        alpha: α, a scalar or [N] (one share a pair, the same in both directions so that rows always sum to one).
    """

    def __init__(self, alpha: float | Tensor) -> None:
        self.alpha: float | Tensor = alpha

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


def distinct_images(image_ids_N: Tensor) -> Tensor:
    """Return which pairs of a batch are true negatives or the match itself.

    Two captions of one image in a batch would otherwise be pushed apart (false negatives).

    Args:
        image_ids_N: [N] integers, equal where the image is the same.

    Returns:
        [N, N] bool, False off the diagonal where the image is the same.
    """
    same_NN = image_ids_N[:, None] == image_ids_N[None, :]
    same_NN.fill_diagonal_(False)
    return ~same_NN


def check_square(similarity_NN: Tensor) -> None:
    """Complain unless a similarity matrix is square and holds at least two pairs.

    Raises:
        UserError: It is not [N, N] with N ≥ 2.
    """
    if similarity_NN.ndim != 2 or similarity_NN.shape[0] != similarity_NN.shape[1] or len(similarity_NN) < 2:
        raise UserError(
            expected="a square similarity matrix of at least 2 pairs",
            found=f"the shape {tuple(similarity_NN.shape)}",
            where="contrastive loss",
            remedy="use more pairs, or a larger batch",
        )
