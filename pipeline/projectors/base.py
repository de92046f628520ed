"""What a projector is: raw stored features [N, D] in, unit-length embeddings [N, d] out; and the plain maps.

`Projector` is the contract; `linear` and the two residual maps are trained, `affine` is what a closed form fills, and
`identity` leaves a side as it is. What a projector does to raw features before it maps them is here too
(`InputNormalisation`), so that features go in just as the store holds them. Several layers come concatenated; `blocks`
says how wide each is, and every block is then treated by itself.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypedDict, Unpack, cast, get_args

import torch
from torch import Tensor, nn

from pipeline.errors import UnknownNameError, UserError

InputMode = Literal["none", "unit", "standardise"]
Task = Literal["retrieval", "classification"]
"""What embeddings are compared for: items of a gallery with each other, or an image with the classes it may be of."""
_TINY = 1e-12


def unit_rows(features: Tensor) -> Tensor:
    """Divide each row of features [..., D] by its length, in float32 or wider; a zero row stays zero.

    The gradient is finite everywhere, for a zero row as well.
    """
    wide = features if features.dtype == torch.float64 else features.float()
    lengths = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return wide / torch.where(lengths > _TINY, lengths, torch.ones_like(lengths))


def require(condition: bool, expected: str, found: str, where: str = "") -> None:
    """Raise a `UserError` with these words unless the condition holds."""
    if not condition:
        raise UserError(expected=expected, found=found, where=where)


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


class Inputs(TypedDict, total=False):
    """Arguments of `Projector` that every projector takes beside its widths and settings of its own."""

    normalise_input: str
    blocks: Sequence[int] | None


class Projector(nn.Module, ABC):
    """A map from one side's features to the shared space.

    `forward` = `embed(prepare(x))` = `unit_rows(project(x))`, `project` = `transform(prepare(x))`.
    A subclass writes `transform`, and `settings` where it has arguments of its own.

    Args:
        d_in: Width D of the features.
        d: Width of the shared space.
        normalise_input: `none`, `unit` or `standardise` (see `InputNormalisation`; call `fit_input` for the last one).
        blocks: Widths of concatenated layers, where each is normalised by itself.

    Raises:
        UserError: A width is not positive or the blocks do not add up.
    """

    name: ClassVar[str]

    def __init__(
        self, d_in: int, d: int, *, normalise_input: str = "none", blocks: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        for label, width in (("d_in", d_in), ("d", d)):
            require(isinstance(width, int) and width > 0, f"a positive whole number for {label}", repr(width))
        self.d_in = d_in
        self.d = d
        self.input = InputNormalisation(d_in, normalise_input, blocks)

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON-able values: `type(p)(**p.settings())` is a projector like p."""
        blocks = list(self.input.blocks) if len(self.input.blocks) > 1 else None
        return {"d_in": self.d_in, "d": self.d, "normalise_input": self.input.mode, "blocks": blocks}

    def fit_input(self, features: Tensor) -> None:
        """Take the input statistics from training features [N, D] (only `standardise` needs it)."""
        self.check_width(features)
        self.input.fit(features)

    def prepare(self, features: Tensor) -> Tensor:
        """Return the features [N, D] in the projector's own precision, normalised as `normalise_input` says."""
        self.check_width(features)
        return cast(Tensor, self.input(features.to(self.precision)))

    @abstractmethod
    def transform(self, prepared: Tensor) -> Tensor:
        """Map prepared features [N, D] to the shared space [N, d], not normalised."""

    def project(self, features: Tensor) -> Tensor:
        """Map raw features [N, D] to the shared space [N, d], not normalised."""
        return self.transform(self.prepare(features))

    def forward(self, features: Tensor) -> Tensor:
        """Map raw features [N, D] to unit-length embeddings [N, d] in float32 (float64 where the weights are)."""
        return self.embed(self.prepare(features))

    def embed(self, prepared: Tensor) -> Tensor:
        """Map prepared features [N, D] to unit-length embeddings [N, d]."""
        return unit_rows(self.transform(prepared))

    def for_task(self, embeddings: Tensor, task: Task) -> Tensor:
        """Return what `forward` gave [N, d] as a task wants it; most projectors serve every task with the same.

        Raises:
            UnknownNameError: No such task.
        """
        if task not in get_args(Task):
            raise UnknownNameError("task", str(task), get_args(Task))
        return embeddings

    def cosine_scale(self, task: Task) -> float:
        """Return how many times as large a task's cosines are as those of retrieval, for the same pair: 1 mostly."""
        return 1.0

    @property
    def precision(self) -> torch.dtype:
        """The floating type of the weights; float32 for a projector without any."""
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point():
                return tensor.dtype
        return torch.float32

    def check_width(self, features: Tensor) -> None:
        """Refuse features that are not [N, D].

        Raises:
            UserError: Says the expected and the found shape.
        """
        if features.ndim != 2 or features.shape[-1] != self.d_in:
            raise UserError(
                expected=f"features of shape [N, {self.d_in}]",
                found=f"{list(features.shape)}",
                where=f"{self.name} projector",
                remedy="use the layers that the projector was made for",
            )


@torch.no_grad()
def embed_blocks(
    projector: Projector, features: Tensor, *, task: Task = "retrieval", rows: int = 8192, where: str = ""
) -> Tensor:
    """Embed raw features [N, D] in blocks of rows, on the projector's device: unit-length float32 [N, d], on the CPU.

    Raises:
        UserError: The width is not the projector's, or a value is not finite; `where` is what the error calls them.
    """
    projector.check_width(features)
    device = next(iter(projector.state_dict().values()), features).device
    result = torch.empty(len(features), projector.d)
    for start in range(0, len(features), rows):
        block = projector(features[start : start + rows].to(device))
        found = f"NaN or infinity in or after row {start}"
        require(bool(torch.isfinite(block).all()), "finite features", found, where)
        result[start : start + rows] = block
    return projector.for_task(result, task)


class AffineProjector(Projector):
    """(x − mean) W · weights: mean shift, linear map, a weight a dimension. A closed form fills it; training may go on.

    Shape: mean [D] and weights [d] are buffers, W [D, d] is the parameter; until `fill` is called, mean
    is 0, W random and weights 1.
    """

    name: ClassVar[str] = "affine"
    mean: Tensor
    weights: Tensor

    def __init__(self, d_in: int, d: int, **inputs: Unpack[Inputs]) -> None:
        super().__init__(d_in, d, **inputs)
        matrix = torch.empty(d_in, d)
        if not matrix.is_meta:  # there, numbers that nobody gets would load torch's compiler
            matrix = matrix.normal_() / d_in**0.5
        self.matrix = nn.Parameter(matrix)
        self.register_buffer("mean", torch.zeros(d_in))
        self.register_buffer("weights", torch.ones(d))

    @torch.no_grad()
    def fill(self, mean: Tensor, matrix: Tensor, weights: Tensor) -> None:
        """Become (x − mean) W · weights with mean [D], matrix [D, d] and weights [d].

        Raises:
            UserError: A shape does not fit.
        """
        for own, given in ((self.mean, mean), (self.matrix, matrix), (self.weights, weights)):
            require(own.shape == given.shape, f"shape {list(own.shape)}", f"{list(given.shape)}", "affine projector")
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
        inputs: See `Projector`.
    """

    name: ClassVar[str] = "linear"

    def __init__(self, d_in: int, d: int, *, bias: bool = True, **inputs: Unpack[Inputs]) -> None:
        super().__init__(d_in, d, **inputs)
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

    def __init__(self, d_in: int, d: int | None = None, **inputs: Unpack[Inputs]) -> None:
        if d is not None and d != d_in:
            raise UserError(
                expected=f"d = d_in = {d_in}",
                found=f"d = {d}",
                where="identity projector",
                remedy=f"train the other side to {d_in} dimensions",
            )
        super().__init__(d_in, d_in, **inputs)

    def transform(self, prepared: Tensor) -> Tensor:
        """Return the features as they are."""
        return prepared


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
        inputs: See `Projector`.
    """

    name: ClassVar[str] = "residual_mlp"

    def __init__(
        self, d_in: int, d: int, *, depth: int = 2, expansion: int = 4, dropout: float = 0.1, **inputs: Unpack[Inputs]
    ) -> None:
        super().__init__(d_in, d, **inputs)
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
        inputs: See `Projector`.
    """

    name: ClassVar[str] = "residual_low_rank"

    def __init__(self, d_in: int, d: int, *, rank: int = 64, gate: float = -2.0, **inputs: Unpack[Inputs]) -> None:
        super().__init__(d_in, d, **inputs)
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
