"""Encoders of a few lines for these tests, used as `tests.extract.tiny_encoders:TinyImage`.

They count the rows that they encode (`CALLS`) and can be made slow (`TINY_SLEEP` seconds a pass).
"""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from pipeline.encoders.base import Encoder, EncoderKey, Layer, LoadOptions
from pipeline.errors import UserError

CALLS: list[tuple[str, int, tuple[str, ...]]] = []
SIZE = 8


class Tiny(Encoder):
    """What both have in common: three layers that are random projections of the input."""

    widths = {"early": 3, "late": 4, "output": 5}  # noqa: RUF012

    def __init__(self, options: LoadOptions, modality: str, version: int = 1) -> None:
        name = type(self).__name__
        layers = [Layer(name=layer, width=width) for layer, width in self.widths.items()]
        super().__init__(f"tests.extract.tiny_encoders:{name}", "text" if modality == "text" else "image", layers)
        self.version = version
        self.options = options

    def key(self) -> EncoderKey:
        return EncoderKey(
            encoder={"family": "custom", "name": type(self).__name__, "version": self.version},
            preprocessing={"prompt": self.options.prompt} if self.modality == "text" else {"size": SIZE},
            pooling=self.options.pool,
        )

    def encode(self, prepared: Sequence[Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
        CALLS.append((self.modality, len(prepared), tuple(layers)))
        time.sleep(float(os.environ.get("TINY_SLEEP", "0")))
        flat = torch.stack([self.flat(tensor) for tensor in prepared])
        return {name: flat @ projection(flat.shape[1], self.widths[name], name) for name in layers}

    def flat(self, tensor: Tensor) -> Tensor:
        return tensor.flatten()


class TinyImage(Tiny):
    def __init__(self, options: LoadOptions) -> None:
        super().__init__(options, "image")

    def prepare(self, sample: Image | str) -> Tensor:
        if isinstance(sample, str):
            raise TypeError(sample)
        return torch.from_numpy(np.array(sample.resize((SIZE, SIZE)), np.float32)).permute(2, 0, 1)


class ReducingImage(TinyImage):
    """Takes large JPEGs smaller."""

    def reduction(self, width: int, height: int) -> int:
        return 4 if min(width, height) >= 4 * 2 * SIZE else 1


class OtherImage(TinyImage):
    """The same features under another key."""

    def __init__(self, options: LoadOptions) -> None:
        super().__init__(options)
        self.version = 2


class TinyText(Tiny):
    def __init__(self, options: LoadOptions) -> None:
        super().__init__(options, "text")

    def prepare(self, sample: Image | str) -> Tensor:
        if not isinstance(sample, str):
            raise TypeError(sample)
        words = (self.options.prompt + sample).split()
        if words == ["unspeakable"]:
            raise UserError(expected="a text with a token", found="none")
        return torch.tensor([int(hashlib.sha256(word.encode()).hexdigest()[:4], 16) % 97 for word in words])

    def flat(self, tensor: Tensor) -> Tensor:
        return torch.bincount(tensor, minlength=97).float()


class Starting(TinyImage):
    """Works on what it has been given when it is waited for, as a GPU may."""

    events: ClassVar[list[str]] = []

    def start(self, prepared: Sequence[Tensor], layers: Sequence[str]) -> Callable[[], dict[str, Tensor]]:
        number = sum(event.startswith("start") for event in self.events)
        self.events.append(f"start {number}")

        def finish() -> dict[str, Tensor]:
            self.events.append(f"finish {number}")
            return self.encode(prepared, layers)

        return finish


class WrongShape(TinyImage):
    """Gives one row too few."""

    def encode(self, prepared: Sequence[Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
        return {name: value[1:] for name, value in super().encode(prepared, layers).items()}


class Drawing(TinyImage):
    """Has left dropout on before its second layer."""

    def encode(self, prepared: Sequence[Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
        found = super().encode(prepared, layers)
        return {name: torch.nn.functional.dropout(value) if name == "late" else value for name, value in found.items()}


class SmallMemory(TinyImage):
    """Runs out of GPU memory above two rows."""

    limit = 2

    def encode(self, prepared: Sequence[Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
        if len(prepared) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory (made up)")
        return super().encode(prepared, layers)


class NoMemory(SmallMemory):
    limit = 0


def projection(rows: int, columns: int, seed: str) -> Tensor:
    """Integers, so that sums are exact whatever the batch."""
    generator = torch.Generator().manual_seed(sum(map(ord, seed)))
    return torch.randint(-4, 5, (rows, columns), generator=generator).float()
