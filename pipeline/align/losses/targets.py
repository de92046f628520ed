"""What the softmax over a batch should look like: rows T_i that sum to one. Used by every loss of the table.

A target knows its expectation Σ_j T_ij·z_ij, so that the plain and the smoothed ones never build an N×N matrix.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

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
