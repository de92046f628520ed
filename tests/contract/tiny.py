"""Two deterministic encoders, `tests.contract.tiny:Pixels` and `:Words`. Frozen: keys hold this file's digest."""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from tests.contract.base import Encoder, EncoderKey, Layer, LoadOptions

BUCKETS = 16


class Pixels(Encoder):
    """The mean colour, and the picture shrunken to 3 × 3."""

    def __init__(self, options: LoadOptions) -> None:
        super().__init__(
            "tests.contract.tiny:Pixels", "image", (Layer(name="mean", width=3), Layer(name="output", width=27))
        )

    def key(self) -> EncoderKey:
        return EncoderKey(encoder={"name": "pixels", "version": 1}, preprocessing={"size": 3}, pooling="auto")

    def prepare(self, sample: Image | str) -> Tensor:
        if isinstance(sample, str):
            raise TypeError(sample)
        return torch.from_numpy(np.array(sample, np.float32)).permute(2, 0, 1) / 256

    def encode(self, prepared: Sequence[Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
        pixels = torch.stack(list(prepared))
        rows, channels, height, width = pixels.shape
        blocks = pixels.reshape(rows, channels, 3, height // 3, 3, width // 3).mean(dim=(3, 5))
        values = {"mean": pixels.mean(dim=(2, 3)), "output": blocks.flatten(1)}
        return {name: values[name] for name in layers}


class Words(Encoder):
    """How often letters and words of each bucket come."""

    def __init__(self, options: LoadOptions) -> None:
        self.prompt = options.prompt
        layers = (Layer(name="letters", width=BUCKETS), Layer(name="output", width=BUCKETS))
        super().__init__("tests.contract.tiny:Words", "text", layers)

    def key(self) -> EncoderKey:
        return EncoderKey(
            encoder={"name": "words", "version": 1}, preprocessing={"prompt": self.prompt}, pooling="auto"
        )

    def prepare(self, sample: Image | str) -> Tensor:
        text = f"{self.prompt}{sample}"
        return torch.stack([_counts(list(text)), _counts(text.split())])

    def encode(self, prepared: Sequence[Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
        letters, words = torch.stack(list(prepared)).unbind(dim=1)
        values = {"letters": letters, "output": words}
        return {name: values[name] for name in layers}


def _counts(parts: Sequence[str]) -> Tensor:
    buckets = [zlib.crc32(part.encode()) % BUCKETS for part in parts]
    return torch.bincount(torch.tensor(buckets), minlength=BUCKETS).float()
