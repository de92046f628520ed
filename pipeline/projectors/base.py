"""The contract of a projector: raw stored features [N, D] in, unit-length embeddings [N, d] out.

Used by every projector in this package; `table.PROJECTORS` lists them by name. What a projector does to raw features
before it maps them is here too (`InputNormalisation`), so that features go in just as the store holds them. Several
layers come concatenated; `blocks` says how wide each is, and every block is then treated by itself.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast, get_args

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


def require(condition: bool, expected: str, found: str, where: str = "") -> None:
    """Raise a `UserError` with these words unless the condition holds."""
    if not condition:
        raise UserError(expected=expected, found=found, where=where)
