"""Made-up raw data sets for benchmarks: pictures with some grain, as JPEG files, and sentences."""

import random
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = "a the dog cat man woman runs sits on grass in snow with red ball near water two children play"
"""What sentences are made of."""
GRAIN = 10.0
"""Standard deviation of the noise: files of about 0.25 bytes a pixel at quality 90, as photographs have them."""


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Return a coloured picture with grain."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    grain = generator.normal(0, GRAIN, (height, width, 1)).astype(np.float32)
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def make_raw(root: Path, rows: int, width: int, height: int) -> int:
    """Write N pictures and a sentence of 5 to 20 words for each as a raw data set; return the bytes of the pictures."""
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
    return size
