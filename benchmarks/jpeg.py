"""What `--jpeg reduced` gains and changes. Run: `python -m benchmarks.jpeg [--encoder SPEC]`; needs scikit-learn.

scikit-learn's two photographs, enlarged to a size (smooth) and mirrored at their edges until they fill it (full of
detail), as JPEGs of quality 90: images a CPU second through decoding and transform, and how far pixels and features are
from the exact ones.
"""

import argparse
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

from benchmarks.alternate import measured
from pipeline.encoders.image_model import ImageModel
from pipeline.encoders.load import load_encoder
from pipeline.extract.decode import Reduction, decode_image

SIZES = ((1536, 1024), (2400, 1600), (3072, 2048), (4032, 3024))


def photographs(width: int, height: int) -> dict[str, Image.Image]:
    """Return name → photograph of that size."""
    made = {}
    for name in ("china", "flower"):
        pixels = load_sample_image(f"{name}.jpg")
        row = np.concatenate([pixels, pixels[:, ::-1]] * (width // 1280 + 1), axis=1)
        column = np.concatenate([row, row[::-1]] * (height // 854 + 1))
        made[f"{name}, mirrored"] = Image.fromarray(column[:height, :width])
        made[f"{name}, enlarged"] = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return made


def rate(work: Callable[[], Tensor], repeat: int) -> tuple[float, Tensor]:
    """Return how often a CPU second does some work, at best, and what it gives."""
    runs = [measured(work) for _ in range(repeat)]
    return 1 / min(seconds.cpu for _, seconds in runs), runs[-1][0]


def main() -> None:
    """Print a line a photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="package:efficientnet-lite0")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    encoder = load_encoder(arguments.encoder)
    if not isinstance(encoder, ImageModel):
        raise SystemExit(f"{arguments.encoder} takes no images")
    shades = 255 * torch.tensor(encoder.info.transform.std)[:, None, None]
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            for name, image in photographs(*size).items():
                path = Path(folder) / "photograph.jpg"
                data = io.BytesIO()
                image.save(data, "JPEG", quality=90)
                path.write_bytes(data.getvalue())

                def prepared(reduction: Reduction | None, path: Path = path) -> Tensor:
                    return encoder.prepare(decode_image(path, reduction))

                exact_rate, exact = rate(lambda: prepared(None), arguments.repeat)
                reduced_rate, reduced = rate(lambda: prepared(encoder.reduction), arguments.repeat)
                gap = ((exact - reduced) * shades).abs()
                features = encoder.encode([exact, reduced], ["output"])["output"]
                cosine = torch.cosine_similarity(features[0], features[1], dim=0).item()
                print(
                    f"{name:17} {size[0]} × {size[1]} at 1/{encoder.reduction(*size)}: {exact_rate:4.0f} → "
                    f"{reduced_rate:4.0f} images/s ({reduced_rate / exact_rate:.1f} ×); of 255 {gap.mean():.2f} in the "
                    f"mean, {gap.max():.0f} at most; cosine {cosine:.4f}"
                )


if __name__ == "__main__":
    main()
