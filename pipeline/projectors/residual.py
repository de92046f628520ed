"""Maps with a non-linearity: `residual_mlp` (the adapter of FuseMix) and `residual_low_rank` (linear plus gated).

Used through `table.PROJECTORS`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from pipeline.projectors.base import Projector, require


class ResidualBlock(nn.Module):
    """x + W₂ · Dropout(GELU(W₁ · LN(x))), [N, D] → [N, D], with W₁: D → expansion·D.

    Args:
        width: D.
        expansion: How many times wider the hidden layer is.
        dropout: Share of hidden units dropped in training.
    """

    def __init__(self, width: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, expansion * width)
        self.dropout = nn.Dropout(dropout)
        self.narrow = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output [N, D]."""
        hidden = self.dropout(nn.functional.gelu(self.widen(self.norm(x))))
        return x + cast(Tensor, self.narrow(hidden))


class ResidualMLPProjector(Projector):
    """n residual blocks, then LayerNorm and a linear map to d: the adapter of FuseMix (arXiv 2312.10144).

    Args:
        d_in: Width D.
        d: Width of the shared space.
        depth: Number n of residual blocks.
        expansion: Hidden width of a block over D.
        dropout: Dropout inside the blocks.
        normalise_input: See `Projector`.
        blocks: See `Projector`.
    """

    name: ClassVar[str] = "residual_mlp"

    def __init__(
        self,
        d_in: int,
        d: int,
        *,
        depth: int = 2,
        expansion: int = 4,
        dropout: float = 0.1,
        normalise_input: str = "none",
        blocks: Sequence[int] | None = None,
    ) -> None:
        super().__init__(d_in, d, normalise_input=normalise_input, blocks=blocks)
        require(isinstance(depth, int) and depth >= 0, "depth of 0 or more", repr(depth), self.name)
        require(isinstance(expansion, int) and expansion >= 1, "expansion of 1 or more", repr(expansion), self.name)
        require(0 <= dropout < 1, "dropout in [0, 1)", repr(dropout), self.name)
        self.depth, self.expansion, self.dropout = depth, expansion, float(dropout)
        self.layers = nn.Sequential(*(ResidualBlock(d_in, expansion, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(d_in)
        self.head = nn.Linear(d_in, d)

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        own = {"depth": self.depth, "expansion": self.expansion, "dropout": self.dropout}
        return {**super().settings(), **own}

    def transform(self, prepared: Tensor) -> Tensor:
        """Return head(LN(blocks(x))), [N, d]."""
        return cast(Tensor, self.head(self.norm(self.layers(prepared))))


class ResidualLowRankProjector(Projector):
    """x W + b + σ(g) ⊙ U·GELU(V·LN(x)): a linear map and a low-rank non-linear one behind a gate that can open.

    The gate g [d] starts at `gate` (σ(−2) ≈ 0.12: nearly linear), and U and V start random, so that every parameter
    gets a gradient in the first step. A gate at −∞ would leave a linear map for ever.

    Args:
        d_in: Width D.
        d: Width of the shared space.
        rank: Width of the non-linear path.
        gate: Start of g, finite.
        normalise_input: See `Projector`.
        blocks: See `Projector`.
    """

    name: ClassVar[str] = "residual_low_rank"

    def __init__(
        self,
        d_in: int,
        d: int,
        *,
        rank: int = 64,
        gate: float = -2.0,
        normalise_input: str = "none",
        blocks: Sequence[int] | None = None,
    ) -> None:
        super().__init__(d_in, d, normalise_input=normalise_input, blocks=blocks)
        require(isinstance(rank, int) and rank >= 1, "rank of 1 or more", repr(rank), self.name)
        require(abs(gate) <= 15, "a gate between -15 and 15 (outside, no gradient passes)", repr(gate), self.name)
        self.rank, self.start = rank, float(gate)
        self.map = nn.Linear(d_in, d)
        self.norm = nn.LayerNorm(d_in)
        self.narrow = nn.Linear(d_in, rank)
        self.widen = nn.Linear(rank, d)
        self.gate = nn.Parameter(torch.full((d,), self.start))

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().settings(), "rank": self.rank, "gate": self.start}

    def transform(self, prepared: Tensor) -> Tensor:
        """Return x W + b + σ(g) ⊙ U·GELU(V·LN(x)), [N, d]."""
        bent = self.widen(nn.functional.gelu(self.narrow(self.norm(prepared))))
        return cast(Tensor, self.map(prepared) + torch.sigmoid(self.gate) * bent)
