"""What it costs to decode elsewhere. Run: `python -m benchmarks.decoding [--images N] [--width W] [--height H]`.

The same JPEGs are made ready for EfficientNet-Lite0, in turns: by one thread here, by a decoder of a local Ray with one
CPU, and by both together. Two free cores are needed; trust ratios.

    a decoder   wall ×: what handing over costs, 1 would be nothing
    both        wall ×: what a decoder adds to one thread of an encoder, 0.5 would be all of it
"""

import argparse
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.alternate import Work, alternate, show
from benchmarks.raw import make_raw
from pipeline.encoders.base import Encoder
from pipeline.engines.cluster import Bundle, connect
from pipeline.engines.ray_engine import IMAGES_AT_ONCE, Decoding, calls_at_once, start_decoder
from pipeline.extract.config import ExtractConfig
from pipeline.extract.datasets.layout import open_dataset
from pipeline.extract.items import Items, Preparing, image_items
from pipeline.extract.run import loaded
from pipeline.runtime import keep_freed_memory


def making_ready(preparing: Preparing, encoder: Encoder, items: Items) -> Work:
    """Return making all images ready, by as many threads as may ask."""
    edges = range(0, len(items), IMAGES_AT_ONCE)
    tasks = [[items.at(at) for at in range(start, min(start + IMAGES_AT_ONCE, len(items)))] for start in edges]

    def run() -> None:
        with ThreadPoolExecutor(preparing.threads("image")) as pool:
            for _ in pool.map(lambda task: preparing(encoder, task), tasks):
                pass

    return run


def main() -> None:
    """Read the flags and measure in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw, out = Path(folder) / "raw", Path(folder) / "out"
        make_raw(raw, arguments.images, arguments.width, arguments.height)
        config = ExtractConfig(dataset=raw, encoder="package:efficientnet-lite0", out=out, device="cpu")
        keep_freed_memory()
        encoder, items = loaded(config), image_items(open_dataset(raw), 1)
        ray = connect()
        others = {start_decoder(ray, Bundle(1), config): calls_at_once(1, 1)}
        ways: dict[str, Preparing] = {
            "here": Preparing(1),
            "a decoder": Decoding(ray, 0, others),
            "both": Decoding(ray, 1, others),
        }
        tasks = {name: making_ready(way, encoder, items) for name, way in ways.items()}
        alternate(tasks, 1)  # the decoder loads the encoder
        found = alternate(tasks, arguments.repeat)
        ray.shutdown()
    show(
        f"{len(items)} JPEGs of {arguments.width} × {arguments.height}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}",
        len(items),
        found,
    )


if __name__ == "__main__":
    main()
