"""CSLS inside a projector: an item that is near to everything is moved away, so that it is not found for every query.

`with_csls(image, text, image_bank, text_bank)` wraps a trained or closed-form pair. Dot products of what comes out are
CSLS scores: evaluation, an index and an export need to know nothing of it.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from pipeline.projectors.base import Projector, require

SideName = Literal["image", "text"]
EXTRA = 4
"""Dimensions that the correction adds."""


class CslsProjector(Projector):
    """Another projector's unit embedding u, with its hubness r beside it.

    r(u) is the mean cosine of u to its k nearest neighbours in a bank of training embeddings of the *other* side. The
    output is, up to a constant length of √(1 + 2w),

        image: [u, −√w·r, √w, √w·√(1−r²), 0]        text: [v, √w, −√w·r, 0, √w·√(1−r²)]

    so that an image and a caption score (u·v − w·r(u) − w·r(v)) / (1 + 2w). With w = ½ this orders a gallery as cross-
    domain similarity local scaling does, 2u·v − r(u) − r(v) (arXiv 1710.04087), with neighbours from the training
    data: nothing of the gallery or of other queries is looked at. Within a side the score is u·u′ but for a term that
    is nearly constant.

    Args:
        base: The projector that is wrapped.
        bank: Rows B of the bank.
        side: Which side this is.
        neighbours: k; all where the bank is smaller.
        weight: w.
    """

    name: ClassVar[str] = "csls"
    bank: Tensor

    def __init__(
        self, base: Projector, bank: int, *, side: SideName, neighbours: int = 10, weight: float = 0.5
    ) -> None:
        require(isinstance(base, Projector), "a projector to wrap", type(base).__name__, self.name)
        super().__init__(base.d_in, base.d + EXTRA)
        require(isinstance(bank, int) and bank >= 1, "a bank of 1 row or more", repr(bank), self.name)
        require(side in get_args(SideName), "image or text", repr(side), self.name)
        require(isinstance(neighbours, int) and neighbours >= 1, "1 neighbour or more", repr(neighbours), self.name)
        require(0 < weight < float("inf"), "a positive weight", repr(weight), self.name)
        self.base, self.side, self.neighbours, self.weight = base, side, neighbours, float(weight)
        self.register_buffer("bank", torch.zeros(bank, base.d))

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments; the base as its name and settings."""
        return {
            "base": {"projector": self.base.name, "settings": self.base.settings()},
            "bank": len(self.bank),
            "side": self.side,
            "neighbours": self.neighbours,
            "weight": self.weight,
        }

    def fit_input(self, features: Tensor) -> None:
        """Take the base's input statistics."""
        self.base.fit_input(features)

    def prepare(self, features: Tensor) -> Tensor:
        """Return what the base maps."""
        return self.base.prepare(features)

    def transform(self, prepared: Tensor) -> Tensor:
        """Return the corrected embedding [N, d], all rows of length √(1 + 2w)."""
        unit = self.base.embed(prepared)
        near = (unit @ self.bank.to(unit.dtype).T).topk(min(self.neighbours, len(self.bank)), dim=-1).values
        root = self.weight**0.5
        hub = near.mean(dim=-1, keepdim=True).clamp(-1.0, 1.0)
        fill = root * (1.0 - hub**2).clamp_min(1e-12).sqrt()
        one, none = torch.full_like(hub, root), torch.zeros_like(hub)
        image = self.side == "image"
        extra = (-root * hub, one, fill, none) if image else (one, -root * hub, none, fill)
        return torch.cat([unit, *extra], dim=-1)


@torch.no_grad()
def with_csls(
    image: Projector,
    text: Projector,
    image_bank: Tensor,
    text_bank: Tensor,
    *,
    neighbours: int = 10,
    weight: float = 0.5,
) -> tuple[CslsProjector, CslsProjector]:
    """Wrap a pair of projectors.

    Args:
        image: The image side's projector.
        text: The text side's.
        image_bank: Embeddings of training images [B, d]; what texts are compared with.
        text_bank: Embeddings of training texts [C, d]; what images are compared with.
        neighbours: k.
        weight: w.

    Raises:
        UserError: A bank is empty, or a setting is impossible.
    """
    pair = []
    sides: Mapping[SideName, tuple[Projector, Tensor]] = {"image": (image, text_bank), "text": (text, image_bank)}
    for side, (base, bank) in sides.items():
        shape = f"a bank [B, {base.d}]"
        require(bank.ndim == 2 and bank.shape[1] == base.d, shape, str(list(bank.shape)), "csls")
        made = CslsProjector(base, len(bank), side=side, neighbours=neighbours, weight=weight).to(bank.device)
        made.bank.copy_(bank)
        pair.append(made.eval())
    return pair[0], pair[1]
