"""What a projector does to raw stored features before it maps them: nothing, unit length, or standardisation.

Used inside every projector, so that features go in just as the store holds them. Several layers come concatenated;
`blocks` says how wide each is, and every block is then treated by itself.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from pipeline.errors import UnknownNameError, UserError

InputMode = Literal["none", "unit", "standardise"]
_TINY = 1e-12


def unit_rows(features: Tensor) -> Tensor:
    """Divide each row of features [..., D] by its length, in float32 or wider; a zero row stays zero.

    The gradient is finite everywhere, for a zero row as well.
    """
    wide = features if features.dtype == torch.float64 else features.float()
    lengths = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return wide / torch.where(lengths > _TINY, lengths, torch.ones_like(lengths))


class InputNormalisation(nn.Module):
    """Normalise raw features [N, D] block by block; the result is [N, D] again.

    Args:
        d_in: Width D.
        mode: `none`; `unit`, each block to length 1/√B so that the whole row has length 1; `standardise`, each
            dimension to mean 0 and standard deviation 1 by statistics taken once with `fit`, then each block divided
            by the square root of its width (a row has length about 1 per block, however wide the layers are).
        blocks: Widths of the B concatenated layers; one block of all D where not given.

    Raises:
        UserError: The widths do not add up to D or are not positive.
        UnknownNameError: No such mode.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, d_in: int, mode: str = "none", blocks: Sequence[int] | None = None) -> None:
        super().__init__()
        if mode not in get_args(InputMode):
            raise UnknownNameError("input normalisation", str(mode), get_args(InputMode))
        self.mode = mode
        self.blocks = tuple(blocks) if blocks else (d_in,)
        if sum(self.blocks) != d_in or min(self.blocks) < 1:
            raise UserError(expected=f"positive block widths that add up to {d_in}", found=f"{list(self.blocks)}")
        if mode == "standardise":
            self.register_buffer("mean", torch.zeros(d_in))
            self.register_buffer("scale", torch.ones(d_in))

    @torch.no_grad()
    def fit(self, features: Tensor) -> None:
        """Take the statistics of training features [N, D]; a constant dimension is left unscaled. Else a no-op."""
        if self.mode != "standardise":
            return
        wide = features.double()
        deviation = wide.std(dim=0, correction=0)
        widths = torch.cat([torch.full((width,), float(width)) for width in self.blocks]).to(wide)
        floor = 1e-6 * (deviation.mean() + _TINY)
        spread = torch.where(deviation > floor, deviation, torch.ones_like(deviation))
        self.mean.copy_(wide.mean(dim=0))
        self.scale.copy_(1.0 / (spread * widths.sqrt()))

    def forward(self, features: Tensor) -> Tensor:
        """Return the normalised features [N, D]."""
        if self.mode == "none":
            return features
        if self.mode == "standardise":
            return (features - self.mean) * self.scale
        if len(self.blocks) == 1:
            return unit_rows(features)
        parts = [unit_rows(part) for part in torch.split(features, list(self.blocks), dim=-1)]
        whole: Tensor = torch.cat(parts, dim=-1) / math.sqrt(len(parts))
        return whole
