"""ASIF: an item is described by how similar it is to each training item of its own modality; no training at all.

Source: arXiv 2210.01738. Used through `table.PROJECTORS`; `closed_form.fit_closed_form` makes the pair by `fit_asif`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.projectors.base import Inputs, Projector, require, unit_rows
from pipeline.projectors.moments import PairStatistics


class AsifProjector(Projector):
    """Relative representation: cosine to each anchor, all but the top k set to zero, the rest to the power p.

    The power keeps the sign. Row i of both sides' anchors is the same training pair, so both sides' embeddings live in
    the same space, whose width d is the number of anchors.

    Args:
        d_in: Width D.
        d: Number A of anchors.
        top_k: Similarities kept in a row (800 as published; all where there are fewer anchors).
        exponent: Power p (8 as published).
        inputs: See `Projector`.
    """

    name: ClassVar[str] = "asif"
    anchors: Tensor

    def __init__(self, d_in: int, d: int, *, top_k: int = 800, exponent: float = 8.0, **inputs: Unpack[Inputs]) -> None:
        super().__init__(d_in, d, **inputs)
        require(isinstance(top_k, int) and top_k >= 1, "top_k of 1 or more", repr(top_k), self.name)
        require(exponent > 0, "a positive exponent", repr(exponent), self.name)
        self.top_k, self.exponent = top_k, float(exponent)
        self.register_buffer("anchors", torch.zeros(d, d_in))

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().settings(), "top_k": self.top_k, "exponent": self.exponent}

    @torch.no_grad()
    def fill(self, features: Tensor) -> "AsifProjector":
        """Take the training features [A, D] as anchors, input statistics included, and return self."""
        require(len(features) == self.d, f"{self.d} anchors", str(len(features)), self.name)
        self.fit_input(features)
        self.anchors.copy_(unit_rows(self.prepare(features)))
        return self

    def transform(self, prepared: Tensor) -> Tensor:
        """Return the relative representation [N, A]."""
        similarity = unit_rows(prepared) @ self.anchors.T
        kept = similarity.topk(min(self.top_k, self.d), dim=-1)
        powered = kept.values.sign() * kept.values.abs() ** self.exponent
        return torch.zeros_like(similarity).scatter(-1, kept.indices, powered)


def fit_asif(
    image: Tensor,
    text: Tensor,
    text_image: Tensor | None,
    *,
    inputs: tuple[Inputs, Inputs],
    options: Mapping[str, Any],
) -> tuple[AsifProjector, AsifProjector]:
    """Return both projectors; anchors are the images and, for each, the mean of its captions' directions.

    Args:
        image: N images' features [N, D].
        text: P captions' features [P, E].
        text_image: Row of the image of each caption [P]; 0..P−1 where not given.
        inputs: What is done to raw features first, of images and of texts (see `Projector`).
        options: `top_k` and `exponent`.

    Raises:
        UserError: Features that cannot be fitted, or an option that there is not.
    """
    owner = PairStatistics.owner(image, text, text_image)
    counts = torch.bincount(owner, minlength=len(image))
    described = (counts > 0).nonzero().squeeze(1)
    if len(text) > len(described):
        directions = unit_rows(text)
        summed = directions.new_zeros(len(image), text.shape[1]).index_add_(0, owner, directions)
        text = summed[described] / counts[described, None]
    else:
        text = text[torch.argsort(owner)]
    sides = image[described], text
    try:
        made = [AsifProjector(x.shape[1], len(x), **own, **options) for x, own in zip(sides, inputs, strict=True)]
    except TypeError as error:
        raise UserError(expected="options of the closed form asif", found=str(error)) from error
    first, second = (projector.to(x.device).fill(x).eval() for projector, x in zip(made, sides, strict=True))
    return first, second
