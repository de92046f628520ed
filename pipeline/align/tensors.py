"""Training and validation pairs as tensors on the device, and the drawing of an epoch."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.align.pairs import Drawn, PairSet
from pipeline.store.side import LayerRef, Side


@dataclass(frozen=True)
class PairTensors:
    """M images and their P captions.

    Args:
        image: [M, D₁] float32.
        text: [P, D₂] float32, sorted by image.
        starts: [M + 1] int64; the captions of image i are `starts[i]:starts[i + 1]`.
    """

    image: Tensor
    text: Tensor
    starts: Tensor

    def __len__(self) -> int:
        return len(self.image)

    @classmethod
    def read(
        cls,
        sides: tuple[Side, Side],
        layers: tuple[tuple[LayerRef, ...], tuple[LayerRef, ...]],
        pairs: PairSet,
        device: torch.device,
    ) -> "PairTensors":
        """Read the features of pairs (sides and layers: image, then text) and bring them to the device once."""
        image = sides[0].read(layers[0], pairs.image_rows)
        text = sides[1].read(layers[1], pairs.caption_rows)
        return cls(image.to(device), text.to(device), torch.from_numpy(pairs.starts).to(device))

    @property
    def device(self) -> torch.device:
        """The device that all of it lies on."""
        return self.image.device

    @property
    def caption_image(self) -> Tensor:
        """[P] position of each caption's image."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.device), self.starts.diff())

    def head(self, images: int) -> "PairTensors":
        """Return the first images with all their captions."""
        if images >= len(self):
            return self
        return PairTensors(self.image[:images], self.text[: int(self.starts[images])], self.starts[: images + 1])

    def take(self, images: Tensor) -> "PairTensors":
        """Return some images [m] with all their captions."""
        counts = self.starts.diff()[images]
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        within = torch.arange(int(starts[-1]), device=self.device) - torch.repeat_interleave(starts[:-1], counts)
        return PairTensors(
            self.image[images], self.text[torch.repeat_interleave(self.starts[images], counts) + within], starts
        )

    def pick(self, drawn: Drawn) -> "PairTensors":
        """Return the drawn images with the captions that were drawn of them."""
        if len(drawn.images) == len(self) and len(drawn.captions) == len(self.text):
            return self
        images, captions, starts = (
            torch.from_numpy(rows).to(self.device) for rows in (drawn.images, drawn.captions, drawn.starts)
        )
        return PairTensors(self.image[images], self.text[captions], starts)

    def paired(self) -> tuple[Tensor, Tensor]:
        """Return every caption with its image's features: [P, D₁] and [P, D₂]."""
        return self.image[self.caption_image], self.text

    def epoch(self, captions: Literal["one", "all"], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw the order of an epoch: rows of images and of captions, paired, each [M] (`one`) or [P] (`all`).

        Args:
            captions: `one` draws a caption an image, uniformly; `all` takes every caption once.
            generator: On the same device.
        """
        if captions == "all":
            order = torch.randperm(len(self.text), generator=generator, device=self.device)
            return self.caption_image[order], order
        order = torch.randperm(len(self), generator=generator, device=self.device)
        counts = self.starts.diff()
        chance = torch.rand(len(self), generator=generator, device=self.device, dtype=torch.float64)
        drawn = self.starts[:-1] + (chance * counts).long().clamp(max=counts - 1)
        return order, drawn[order]
