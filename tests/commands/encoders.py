"""Two deterministic encoders of a few lines, used as `tests.commands.encoders:Pixels` and `:Words`."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from pipeline.encoders.base import Encoder, EncoderKey, Layer, LoadOptions

PIXELS, WORDS = "tests.commands.encoders:Pixels", "tests.commands.encoders:Words"
SIZE = 8
BUCKETS = 64


class Pixels(Encoder):
    """The picture's mean colour, a shrunken copy of it, and both."""

    def __init__(self, options: LoadOptions) -> None:
        layers = (Layer(name="mean", width=3), Layer(name="small", width=3 * SIZE**2), Layer(name="output", width=195))
        super().__init__(PIXELS, "image", layers)

    def key(self) -> EncoderKey:
        return EncoderKey(encoder={"name": "pixels", "version": 1}, preprocessing={"size": SIZE}, pooling="auto")

    def prepare(self, sample: Image | str) -> Tensor:
        if isinstance(sample, str):
            raise TypeError(sample)
        return torch.from_numpy(np.array(sample.resize((SIZE, SIZE)), np.float32)).permute(2, 0, 1) / 255

    def encode(self, prepared: Sequence[Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
        pixels = torch.stack(list(prepared))
        mean, small = pixels.mean(dim=(2, 3)), pixels.flatten(1)
        values = {"mean": mean, "small": small, "output": torch.cat([mean, small], dim=1)}
        return {name: values[name] for name in layers}


class OtherPixels(Pixels):
    """The same features under another key."""

    def key(self) -> EncoderKey:
        return EncoderKey(encoder={"name": "pixels", "version": 2}, preprocessing={"size": SIZE}, pooling="auto")


class Words(Encoder):
    """Counts of hashed letters, and of hashed words."""

    def __init__(self, options: LoadOptions) -> None:
        self.prompt = options.prompt
        super().__init__(WORDS, "text", (Layer(name="letters", width=BUCKETS), Layer(name="output", width=BUCKETS)))

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
    buckets = [int(hashlib.sha256(part.encode()).hexdigest()[:8], 16) % BUCKETS for part in parts]
    return torch.bincount(torch.tensor(buckets), minlength=BUCKETS).float()
