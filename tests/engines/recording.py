"""An encoder that writes down what it does, as seen from all processes."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from PIL.Image import Image
from torch import Tensor

from pipeline.encoders.base import LoadOptions
from tests.extract.tiny_encoders import TinyImage

RECORD = "ROWS_ENCODED"
"""Names the file to write to."""


class Recording(TinyImage):
    """Writes down in a file how many rows it encoded; its features are those of `TinyImage`."""

    def __init__(self, options: LoadOptions) -> None:
        super().__init__(options)
        self._line("load")

    def encode(self, prepared: Sequence[Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
        self._line(str(len(prepared)))
        return super().encode(prepared, layers)

    def _line(self, word: str) -> None:
        write_line(word)


class RecordingAll(Recording):
    """Writes down each image that it makes ready, too, and takes its time for that instead of for the forward pass."""

    def __init__(self, options: LoadOptions) -> None:
        super().__init__(options)
        os.environ["TINY_SLEEP"] = "0"

    def prepare(self, sample: Image | str) -> Tensor:
        write_line("prepare")
        time.sleep(0.05)
        return super().prepare(sample)


def write_line(word: str) -> None:
    with Path(os.environ[RECORD]).open("a") as file:
        file.write(f"{os.getpid()} {word}\n")
