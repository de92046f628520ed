"""CSLS, cross-domain similarity local scaling: score(i, c) = 2 cos(i, c) − r(i) − r(c), against hubs.

r is an item's mean cosine to its K nearest of the other modality in a bank: an image that is near every caption is near
no one in particular. Source: arXiv 1710.04087, where the bank is the test set itself; here it never holds a test query,
for whoever scales by them has seen all questions before answering the first.

`with_csls(image, text, image_bank, text_bank)` wraps a trained or closed-form pair of projectors: dot products of what
comes out are CSLS scores, so evaluation, an index and an export need to know nothing of it. `nearest_mean` and `scaled`
are the formula on finished embeddings, for ranking by it once.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from pipeline.projectors.base import Projector, Task, require, unit_rows

SideName = Literal["image", "text"]
EXTRA = 4
"""Dimensions that the correction adds."""


def nearest_mean(items_ND: Tensor, bank_BD: Tensor, k: int) -> Tensor:
    """Return r [N]: the mean dot product of each item with its K nearest of the bank.

    Args:
        items_ND: N items of one modality, of unit length for cosines.
        bank_BD: B items of the other modality.
        k: K.

    Raises:
        UserError: Another width than the bank's, or k not in 1..B.
    """
    width = items_ND.shape[1]
    require(bank_BD.shape[1] == width, f"a bank of width {width}", f"width {bank_BD.shape[1]}", "csls")
    require(1 <= k <= len(bank_BD), f"k between 1 and {len(bank_BD)}, the rows of the bank", repr(k), "csls")
    return (items_ND @ bank_BD.to(items_ND.dtype).T).topk(k, dim=-1).values.mean(dim=-1)


def scaled(image_ND: Tensor, caption_MD: Tensor, image_r: Tensor, caption_r: Tensor) -> tuple[Tensor, Tensor]:
    """Return images [N, D + 2] and captions [M, D + 2] whose dot products are the CSLS scores.

    So whatever ranks by dot products ranks by CSLS, and never holds the scores.

    Raises:
        UserError: Images and captions of different widths.
    """
    width = image_ND.shape[1]
    require(caption_MD.shape[1] == width, f"captions of width {width}", f"width {caption_MD.shape[1]}", "csls")
    ones = image_ND.new_ones(max(len(image_ND), len(caption_MD)), 1)
    left = torch.cat([2 * image_ND, -image_r[:, None], ones[: len(image_ND)]], dim=1)
    right = torch.cat([caption_MD, ones[: len(caption_MD)], -caption_r[:, None]], dim=1)
    return left, right


class CslsProjector(Projector):
    """Another projector's unit embedding u, with its `nearest_mean` r beside it.

    The bank holds training embeddings of the *other* side. The output is, up to a constant length of √(1 + 2w),

        image: [u, −√w·r, √w, √w·√(1−r²), 0]        text: [v, √w, −√w·r, 0, √w·√(1−r²)]

    so that an image and a caption score (u·v − w·r(u) − w·r(v)) / (1 + 2w). With w = ½ this orders a gallery as cross-
    domain similarity local scaling does, 2u·v − r(u) − r(v) (arXiv 1710.04087), with neighbours from the training
    data: nothing of the gallery or of other queries is looked at. Within a side the score is u·u′ but for a term that
    is nearly constant.

    The correction is for retrieval. A class is no item of a gallery in which some are hubs: its r says how common its
    name is among captions, and taking that off costs accuracy. For classification `for_task` gives u back, which are
    the first coordinates, divided by their length.

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

    def for_task(self, embeddings: Tensor, task: Task) -> Tensor:
        """Return the embeddings [N, d + 4] for retrieval, and u [N, d] alone for classification.

        Raises:
            UnknownNameError: No such task.
        """
        known = super().for_task(embeddings, task)
        return unit_rows(known[:, : self.base.d]) if task == "classification" else known

    def cosine_scale(self, task: Task) -> float:
        """Return 1 + 2w for classification, whose cosines are not divided by it."""
        return 1.0 + 2.0 * self.weight if task == "classification" else 1.0

    def fit_input(self, features: Tensor) -> None:
        """Take the base's input statistics."""
        self.base.fit_input(features)

    def prepare(self, features: Tensor) -> Tensor:
        """Return what the base maps."""
        return self.base.prepare(features)

    def transform(self, prepared: Tensor) -> Tensor:
        """Return the corrected embedding [N, d], all rows of length √(1 + 2w)."""
        unit = self.base.embed(prepared)
        root = self.weight**0.5
        hub = nearest_mean(unit, self.bank, min(self.neighbours, len(self.bank)))[:, None].clamp(-1.0, 1.0)
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
