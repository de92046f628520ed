"""What the losses of the table have in common: one temperature, fixed or learned, and one value a direction."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.align.losses.targets import Targets
from pipeline.align.recipe import TemperatureOptions


class Directions(NamedTuple):
    """One scalar for each direction of a symmetric loss."""

    i2t: Tensor
    """Image → text: rows are images."""
    t2i: Tensor
    """Text → image: rows are texts."""


class Temperature(nn.Module):
    """τ > 0, that every cosine similarity is divided by.

    As published (FuseMix, arXiv 2312.10144): a raw scalar, initial 0.07, clamped to [0.001, 0.5]; as in CLIP
    (arXiv 2103.00020) and SigLIP (arXiv 2303.15343): the logarithm is learned. The clamp acts on the parameter after
    each step (`clamp`), so that a τ at its bound still gets a gradient.

    Args:
        options: Initial value, form and bounds.
    """

    parameter: Tensor

    def __init__(self, options: TemperatureOptions) -> None:
        super().__init__()
        self._log = options.form == "log"
        bounds = (options.initial, options.minimum, options.maximum)
        initial, self._minimum, self._maximum = (math.log(value) if self._log else value for value in bounds)
        if options.learned:
            self.parameter = nn.Parameter(torch.tensor(initial))
        else:
            self.register_buffer("parameter", torch.tensor(initial))

    def forward(self) -> Tensor:
        """Return τ, a scalar."""
        return self.parameter.exp() if self._log else self.parameter

    def clamp(self) -> None:
        """Bring a learned τ back between its bounds; called after each optimiser step."""
        with torch.no_grad():
            self.parameter.clamp_(self._minimum, self._maximum)


class ContrastiveLoss(nn.Module, ABC):
    """A loss on the N×N cosine similarities of a batch; the step adds the directions up with its own weights.

    Args:
        temperature: Options of τ.
    """

    def __init__(self, temperature: TemperatureOptions) -> None:
        super().__init__()
        self.temperature = Temperature(temperature)

    @abstractmethod
    def forward(self, similarity_NN: Tensor, targets: Targets, allowed_NN: Tensor | None = None) -> Directions:
        """Return the loss of each direction.

        Args:
            similarity_NN: [N, N] cosine similarities S = U Wᵀ, rows are images, columns texts.
            targets: What each row should look like.
            allowed_NN: [N, N] bool, symmetric; False where a pair is left out (a false negative).

        Raises:
            UserError: The matrix is not square, or holds fewer than two pairs.
        """
