"""What extraction adds to the bare forward pass. Run: `python benchmarks/extract.py [--image SPEC] [--rows N] ...`.

In one run, on the same random images and sentences: the forward pass on tensors that are ready (last layer, all
layers), the whole extraction from files to a committed store (last, all), and a second run that has nothing to do.
Each is timed `--repeat` times in turn and the best is kept; trust the ratios.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.encoders.base import Encoder
from pipeline.encoders.load import load_encoder
from pipeline.extract.config import ExtractConfig
from pipeline.extract.datasets.layout import open_dataset
from pipeline.extract.forward import batches_by_length, batches_in_order
from pipeline.extract.items import caption_items, image_items
from pipeline.extract.prepare import prepare
from pipeline.extract.run import extract

WORDS = "a the dog cat man woman runs sits on grass in snow with red ball near water two children play"
"""What sentences are made of."""


def make_raw(root: Path, rows: int, size: int) -> None:
    """Write random JPEGs and sentences of 5 to 20 words as a raw data set."""
    (root / "images").mkdir(parents=True)
    draw, pixels = random.Random(0), np.random.default_rng(0)
    images, captions = ["image_id,file"], ["image_id,caption"]
    for number in range(rows):
        small = Image.fromarray(pixels.integers(0, 256, (16, 16, 3), np.uint8))
        small.resize((size, size), Image.Resampling.BICUBIC).save(root / "images" / f"{number}.jpg", quality=90)
        images.append(f"{number},images/{number}.jpg")
        captions.append(f"{number},{' '.join(draw.choices(WORDS.split(), k=draw.randint(5, 20)))}")
    (root / "images.csv").write_text("\n".join(images) + "\n", encoding="utf-8")
    (root / "captions.csv").write_text("\n".join(captions) + "\n", encoding="utf-8")


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def bare(encoder: Encoder, raw: Path, layers: tuple[str, ...], batch_size: int) -> Callable[[], None]:
    """Return the forward pass over tensors that are ready, in the batches that extract would cut."""
    dataset = open_dataset(raw)
    items = image_items(dataset, 2) if encoder.modality == "image" else caption_items(dataset)
    cut = batches_in_order if encoder.modality == "image" else batches_by_length
    batches = list(cut([prepare(encoder, items, position) for position in range(len(items))], batch_size))

    def run() -> None:
        for batch in batches:
            encoder.encode([item.tensor for item in batch if item.tensor is not None], layers)

    return run


def whole(encoder: Encoder, raw: Path, out: Path, layers: str, arguments: argparse.Namespace) -> Callable[[], None]:
    """Return the whole extraction, without the time to load the encoder."""
    config = ExtractConfig(
        dataset=raw,
        encoder=encoder.spec,
        out=out,
        layers=layers,
        batch_size=arguments.batch_size,
        device=arguments.device,
        dtype=arguments.dtype,
        format=arguments.format,
        workers=arguments.workers,
    )

    def run() -> None:
        shutil.rmtree(out, ignore_errors=True)
        extract(config)

    return run


NO_OP = """
import sys, time
start = time.perf_counter()
from pathlib import Path
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
raw, out, encoder, dtype = sys.argv[1:]
extract(ExtractConfig(dataset=Path(raw), encoder=encoder, out=Path(out), dtype=dtype, device="auto"))
print(time.perf_counter() - start)
"""


def measure(spec: str, raw: Path, out: Path, arguments: argparse.Namespace) -> None:
    """Time one encoder and print a line each."""
    import pipeline.encoders.load as loading

    encoder = load_encoder(spec, device=arguments.device, dtype=arguments.dtype)
    loading.load_encoder = lambda *_, **__: encoder  # loading is not what is compared
    names = tuple(layer.name for layer in encoder.layers)
    tasks = {
        "forward pass, last layer": bare(encoder, raw, names[-1:], arguments.batch_size),
        "forward pass, all layers": bare(encoder, raw, names, arguments.batch_size),
        "extract, last layer": whole(encoder, raw, out, "last", arguments),
        "extract, all layers": whole(encoder, raw, out, "all", arguments),
    }
    tasks["forward pass, last layer"]()  # warm up
    best = dict.fromkeys(tasks, float("inf"))
    for _ in range(arguments.repeat):
        for name, work in tasks.items():
            best[name] = min(best[name], timed(work))
    print(f"\n{spec}: {arguments.rows} rows, {len(names)} layers, batch {arguments.batch_size}")
    for name, seconds in best.items():
        print(f"  {name:26} {seconds:8.2f} s  {arguments.rows / seconds:9.1f} rows/s")
    print(f"  extract all / forward all  {best['extract, all layers'] / best['forward pass, all layers']:8.3f}")
    print(f"  extract all / extract last {best['extract, all layers'] / best['extract, last layer']:8.3f}")
    print(f"  forward all / forward last {best['forward pass, all layers'] / best['forward pass, last layer']:8.3f}")
    command = [sys.executable, "-c", NO_OP, str(raw), str(out), spec, arguments.dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(f"  second run, imports too    {float(done.stdout):8.2f} s")


def main() -> None:
    """Read the flags and measure both encoders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="package:efficientnet-lite0")
    parser.add_argument("--text", default="package:all-minilm-l6-v2")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--size", type=int, default=320, help="pixels of a side of the JPEGs")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--format", default="hdf5")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        make_raw(raw, arguments.rows, arguments.size)
        for number, spec in enumerate(spec for spec in (arguments.image, arguments.text) if spec):
            measure(spec, raw, Path(folder) / str(number), arguments)


if __name__ == "__main__":
    main()
