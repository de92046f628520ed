"""Maps without a non-linearity: `linear` (trained), `affine` (from a closed form), `identity` (a side left as it is).

Used through `table.PROJECTORS`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.projectors.base import Projector


class AffineProjector(Projector):
    """(x − mean) W · weights: mean shift, linear map, a weight a dimension. A closed form fills it; training may go on.

    Shape: mean [D] and weights [d] are buffers, W [D, d] is the parameter; until `fill` is called, mean
    is 0, W random and weights 1.
    """

    name: ClassVar[str] = "affine"
    mean: Tensor
    weights: Tensor

    def __init__(
        self, d_in: int, d: int, *, normalise_input: str = "none", blocks: Sequence[int] | None = None
    ) -> None:
        super().__init__(d_in, d, normalise_input=normalise_input, blocks=blocks)
        self.matrix = nn.Parameter(torch.randn(d_in, d) / d_in**0.5)
        self.register_buffer("mean", torch.zeros(d_in))
        self.register_buffer("weights", torch.ones(d))

    @torch.no_grad()
    def fill(self, mean: Tensor, matrix: Tensor, weights: Tensor) -> None:
        """Become (x − mean) W · weights with mean [D], matrix [D, d] and weights [d].

        Raises:
            UserError: A shape does not fit.
        """
        for own, given in ((self.mean, mean), (self.matrix, matrix), (self.weights, weights)):
            if own.shape != given.shape:
                raise UserError(
                    expected=f"shape {list(own.shape)}", found=f"{list(given.shape)}", where="affine projector"
                )
            own.copy_(given)

    def transform(self, prepared: Tensor) -> Tensor:
        """Return (x − mean) W · weights, [N, d]."""
        return ((prepared - self.mean) @ self.matrix) * self.weights


class LinearProjector(Projector):
    """x W + b, [N, D] → [N, d].

    Args:
        d_in: Width D.
        d: Width of the shared space.
        bias: Whether there is a b.
        normalise_input: See `Projector`.
        blocks: See `Projector`.
    """

    name: ClassVar[str] = "linear"

    def __init__(
        self,
        d_in: int,
        d: int,
        *,
        bias: bool = True,
        normalise_input: str = "none",
        blocks: Sequence[int] | None = None,
    ) -> None:
        super().__init__(d_in, d, normalise_input=normalise_input, blocks=blocks)
        self.map = nn.Linear(d_in, d, bias=bool(bias))

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().settings(), "bias": self.map.bias is not None}

    def transform(self, prepared: Tensor) -> Tensor:
        """Return x W + b, [N, d]."""
        return cast(Tensor, self.map(prepared))


class IdentityProjector(Projector):
    """The features themselves: the side that LiT- and ShareLock-like training leaves alone (d = D, no parameters)."""

    name: ClassVar[str] = "identity"

    def __init__(
        self, d_in: int, d: int | None = None, *, normalise_input: str = "none", blocks: Sequence[int] | None = None
    ) -> None:
        if d is not None and d != d_in:
            raise UserError(
                expected=f"d = d_in = {d_in}",
                found=f"d = {d}",
                where="identity projector",
                remedy=f"train the other side to {d_in} dimensions",
            )
        super().__init__(d_in, d_in, normalise_input=normalise_input, blocks=blocks)

    def transform(self, prepared: Tensor) -> Tensor:
        """Return the features as they are."""
        return prepared
