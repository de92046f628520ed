"""Direction weights: how much image → text and text → image count, from the variability of the similarities."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.align.losses.contrastive import Directions
from pipeline.align.recipe import DirectionOptions
from pipeline.errors import UnknownNameError

Signal = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _variance(similarity_NN: Tensor, temperature: Tensor, allowed_NN: Tensor | None) -> Tensor:
    """Mean over anchors i of Var_j(S_ij), biased. Over the whole matrix instead, both directions would agree."""
    return (similarity_NN - similarity_NN.mean(dim=1, keepdim=True)).square_().mean()


def _entropy(similarity_NN: Tensor, temperature: Tensor, allowed_NN: Tensor | None) -> Tensor:
    """Mean over anchors of −Σ_j p log p / log N, p = softmax_j(S_ij/τ)."""
    log_NN = torch.log_softmax(similarity_NN / temperature, dim=1)
    return -(log_NN.exp() * log_NN).sum(dim=1).mean() / math.log(len(log_NN))


def _cosine_spread(similarity_NN: Tensor, temperature: Tensor, allowed_NN: Tensor | None) -> Tensor:
    """Mean over anchors of the match's cosine less the hardest mismatch's."""
    mismatch_NN = similarity_NN.clone()
    mismatch_NN.fill_diagonal_(-1.0)
    if allowed_NN is not None:
        mismatch_NN.masked_fill_(~allowed_NN, -1.0)
    return (similarity_NN.diagonal() - mismatch_NN.amax(dim=1)).mean()


class _Rule(NamedTuple):
    """A signal, the sign that turns it into a weight (γ for the variance), and its own ε."""

    signal: Signal | None
    exponent: float | None
    epsilon: float


SIGNALS: dict[str, _Rule] = {
    "fixed": _Rule(None, 0.0, 1.0),
    "entropy": _Rule(_entropy, 1.0, 1e-8),
    "cosine_spread": _Rule(_cosine_spread, -1.0, 1e-2),
    "variance": _Rule(_variance, None, 1e-8),
}


class DirectionWeights(nn.Module):
    """λ_i2t and λ_t2i of a step, from a smoothed signal of each direction.

        m_d ← β·m_d + (1−β)·v_d                           m_d starts at the first v_d
        λ_d = K·(m_d+ε)^γ / Σ_d′ (m_d′+ε)^γ               clipped to [λ_min, K−λ_min]

    As published (arXiv 2503.03202): the directions are re-weighted by the variability of the similarity scores,
    smoothed by a moving average, against fixed, entropy and cosine-spread baselines. Our reading: these formulas, ε,
    K = 1, γ = +1, β = 0.9, λ_min = 0.1, and a negative signal (a spread before anything is learned) counting as 0. All
    schedules share this one path; only the signal differs. The averages are buffers, saved with a checkpoint, and
    stand still in `eval()`.

    Shape:
        S [N, N] cosine similarities (no gradient), output two scalars that sum to K.

    Args:
        options: Schedule, γ, β, K, λ_min, ε.

    Raises:
        UnknownNameError: No such schedule.
    """

    average: Tensor

    def __init__(self, options: DirectionOptions) -> None:
        super().__init__()
        if options.schedule not in SIGNALS:
            raise UnknownNameError("direction schedule", options.schedule, SIGNALS, "direction.schedule")
        rule = SIGNALS[options.schedule]
        self._options = options
        self._signal = rule.signal
        self._exponent = options.gamma if rule.exponent is None else rule.exponent
        self._epsilon = rule.epsilon if options.epsilon is None else options.epsilon
        self.register_buffer("average", torch.full((2,), torch.nan, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, similarity_NN: Tensor, temperature: Tensor, allowed_NN: Tensor | None = None) -> Directions:
        """Return (λ_i2t, λ_t2i); in training the moving averages take one step first."""
        if self._signal is None:
            half = torch.full((), self._options.total / 2, dtype=similarity_NN.dtype, device=similarity_NN.device)
            return Directions(half, half)
        if self.training:
            self._update(self._signal, similarity_NN.detach(), temperature.detach(), allowed_NN)
        return self._weights(similarity_NN)

    def _update(self, signal: Signal, similarity_NN: Tensor, temperature: Tensor, allowed_NN: Tensor | None) -> None:
        rows = signal(similarity_NN, temperature, allowed_NN)
        columns = signal(similarity_NN.T, temperature, allowed_NN)
        found = torch.stack([rows, columns]).to(self.average)
        smoothed = self._options.beta * self.average + (1 - self._options.beta) * found
        self.average.copy_(torch.where(self.average.isnan(), found, smoothed))

    def _weights(self, like: Tensor) -> Directions:
        total, minimum = self._options.total, self._options.minimum
        powered = (self.average.clamp_min(0.0) + self._epsilon) ** self._exponent
        share = torch.nan_to_num(powered[0] / powered.sum(), nan=0.5)
        first = (total * share).clamp(minimum, total - minimum)
        return Directions(first.to(like.dtype), (total - first).to(like.dtype))
