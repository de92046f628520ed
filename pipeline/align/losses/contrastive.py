"""What the losses of the table have in common: one temperature, one value a direction."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from pipeline.align.losses.targets import Targets
from pipeline.align.losses.temperature import Temperature
from pipeline.align.recipe import TemperatureOptions


class Directions(NamedTuple):
    """One scalar for each direction of a symmetric loss."""

    i2t: Tensor
    """Image → text: rows are images."""
    t2i: Tensor
    """Text → image: rows are texts."""


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
