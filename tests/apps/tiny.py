"""Encoders small enough to compute by hand: mean colours of a picture, counts of words in a text."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from pipeline.encoders.base import Encoder, EncoderKey, Layer, LoadOptions

WORDS = ("red", "green", "blue")
VERSION = {"image": 1, "text": 1}


class Colours(Encoder):
    """Mean red, green and blue of a picture."""

    def __init__(self, options: LoadOptions) -> None:
        super().__init__("tests.apps.tiny:Colours", "image", (Layer(name="output", width=3),))

    def key(self) -> EncoderKey:
        return EncoderKey(encoder={"name": "colours", "version": VERSION["image"]}, preprocessing={}, pooling="auto")

    def prepare(self, sample: Image | str) -> Tensor:
        return torch.from_numpy(np.array(sample)).float().permute(2, 0, 1) / 255

    def encode(self, prepared: Sequence[Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
        return {"output": torch.stack([image.mean(dim=(1, 2)) for image in prepared])}


class Words(Encoder):
    """How often a text says red, green and blue."""

    def __init__(self, options: LoadOptions) -> None:
        super().__init__("tests.apps.tiny:Words", "text", (Layer(name="output", width=3),))

    def key(self) -> EncoderKey:
        return EncoderKey(encoder={"name": "words", "version": VERSION["text"]}, preprocessing={}, pooling="auto")

    def prepare(self, sample: Image | str) -> Tensor:
        words = str(sample).lower().split()
        return torch.tensor([words.count(word) for word in WORDS])

    def encode(self, prepared: Sequence[Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
        return {"output": torch.stack([counts.float() for counts in prepared])}
