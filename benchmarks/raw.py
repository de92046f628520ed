"""Made-up data for benchmarks: raw data sets of pictures with some grain and sentences, and vectors for indexes."""

import random
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.indexes.parts import BLOCK_ROWS

WORDS = "a the dog cat man woman runs sits on grass in snow with red ball near water two children play"
"""What sentences are made of."""
CENTRES, DIMENSIONS = 10_000, 32
"""Of vectors: around how many centres they lie, in how many of their dimensions."""
GRAIN = 10.0
"""Standard deviation of the noise: files of about 0.25 bytes a pixel at quality 90, as photographs have them."""


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Return a coloured picture with grain."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    grain = generator.normal(0, GRAIN, (height, width, 1)).astype(np.float32)
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def make_raw(root: Path, rows: int, width: int, height: int) -> str:
    """Write N pictures and a sentence of 5 to 20 words for each as a raw data set; say what the pictures are."""
    (root / "images").mkdir(parents=True)
    draw, size = random.Random(0), 0
    images, captions = ["image_id,file"], ["image_id,caption"]
    for number in range(rows):
        path = root / "images" / f"{number}.jpg"
        picture(number, width, height).save(path, quality=90)
        size += path.stat().st_size
        images.append(f"{number},images/{number}.jpg")
        captions.append(f"{number},{' '.join(draw.choices(WORDS.split(), k=draw.randint(5, 20)))}")
    (root / "images.csv").write_text("\n".join(images) + "\n", encoding="utf-8")
    (root / "captions.csv").write_text("\n".join(captions) + "\n", encoding="utf-8")
    return f"{rows} JPEGs of {width} × {height}, {size / rows / 1e3:.0f} kB each"


class Drawn:
    """Vectors [N, D] that are drawn when they are read: the same ones every time.

    Args:
        rows: N.
        width: D.
    """

    def __init__(self, rows: int, width: int) -> None:
        self.rows, self.width = rows, width
        generator = torch.Generator().manual_seed(0)
        self._basis = torch.randn(DIMENSIONS, width, generator=generator)
        self._centres = torch.randn(CENTRES, DIMENSIONS, generator=generator)

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """Return some rows, rising."""
        blocks, starts = np.unique(rows // BLOCK_ROWS, return_index=True)
        stops = [*starts[1:], len(rows)]
        return torch.cat(
            [
                self._block(int(block))[torch.from_numpy(rows[start:stop] - block * BLOCK_ROWS)]
                for block, start, stop in zip(blocks, starts, stops, strict=True)
            ]
        )

    def queries(self, count: int) -> Tensor:
        """Return vectors of the same kind that are no rows."""
        return self._draw(count, -1)

    def _block(self, number: int) -> Tensor:
        return self._draw(min(BLOCK_ROWS, self.rows - number * BLOCK_ROWS), number)

    def _draw(self, count: int, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number + 2**32)
        owner = torch.randint(CENTRES, (count,), generator=generator)
        inner = self._centres[owner] + 0.7 * torch.randn(count, DIMENSIONS, generator=generator)
        outer = 0.5 * torch.randn(count, self.width, generator=generator)
        return torch.nn.functional.normalize(inner @ self._basis + outer, dim=1)
