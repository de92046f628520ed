"""What extraction adds to the bare forward pass. Run: `python -m benchmarks.extract [--image SPEC] [--rows N] ...`.

In one run, on the same made-up images and sentences, in turn (`--repeat` times, medians):

    model alone      the library's forward pass on batches that are ready on the device, nothing kept but its output
    prepare          reading, decoding and resizing, or tokenising, nothing else
    encode last/all  the encoder on prepared samples: stack or pad, one pass, pool one layer or all, copy back
    extract last/all everything, from reading tables and files to a committed store; loading the encoder is left out
    no-op            a second run in a process of its own, its imports included

Where all cores are at work, the forward pass and the preparing add up: their sum is what extract can reach at best.
Both sides reuse freed memory (`pipeline.runtime`). Trust ratios, on a busy machine those of CPU seconds.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import torch

from benchmarks.alternate import Seconds, Work, alternate, show
from benchmarks.raw import make_raw
from pipeline.encoders.load import load_encoder
from pipeline.encoders.torch_encoder import TorchEncoder
from pipeline.extract.compute import batches_by_length, batches_in_order
from pipeline.extract.config import ExtractConfig
from pipeline.extract.datasets.layout import open_dataset
from pipeline.extract.items import caption_items, image_items, prepare
from pipeline.extract.run import extract
from pipeline.runtime import keep_freed_memory

Batches = list[list[torch.Tensor]]


def prepared_batches(encoder: TorchEncoder, raw: Path, batch_size: int) -> Batches:
    """Return batches that are ready: images in order; texts by length over the whole set, better than any shard can."""
    dataset = open_dataset(raw)
    items = image_items(dataset, 1) if encoder.modality == "image" else caption_items(dataset)
    cut = batches_in_order if encoder.modality == "image" else batches_by_length
    ready = [prepare(encoder, items.at(position)) for position in range(len(items))]
    return [[item.tensor for item in batch if item.tensor is not None] for batch in cut(ready, batch_size)]


def preparing(encoder: TorchEncoder, raw: Path) -> Work:
    """Return reading, decoding and resizing all images, or tokenising all captions: CPU seconds that nothing hides."""
    dataset = open_dataset(raw)
    items = image_items(dataset, 1) if encoder.modality == "image" else caption_items(dataset)

    def run() -> None:
        for position in range(len(items)):
            prepare(encoder, items.at(position))

    return run


def model_alone(encoder: TorchEncoder, batches: Batches) -> Work:
    """Return the library's forward pass over batches that are on the device, in the encoder's arithmetic."""
    with torch.inference_mode():
        collated = [encoder._collate(batch) for batch in batches]

    def run() -> None:
        with encoder._arithmetic():
            for batch in collated:
                encoder._output(batch, ())

    return run


def encoded(encoder: TorchEncoder, batches: Batches, layers: tuple[str, ...]) -> Work:
    """Return the encoder's own pass over prepared samples."""

    def run() -> None:
        for batch in batches:
            encoder.encode(batch, layers)

    return run


def extracted(encoder: TorchEncoder, config: ExtractConfig) -> Work:
    """Return the whole extraction with an encoder that is loaded already."""

    def run() -> None:
        shutil.rmtree(str(config.out), ignore_errors=True)
        with mock.patch("pipeline.encoders.load.load_encoder", return_value=encoder):
            extract(config)

    return run


NO_OP = """
import json, sys, time
wall = time.perf_counter()
from pathlib import Path
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
said = json.loads(sys.argv[1])
result = extract(ExtractConfig(**{**said, "dataset": Path(said["dataset"]), "out": Path(said["out"])}))
print(result.computed_shards, time.perf_counter() - wall, time.process_time())
"""


def no_op(config: dict[str, object]) -> tuple[Seconds, int]:
    """Run the same again in a new process; return its seconds and the shards that it computed."""
    command = [sys.executable, "-c", NO_OP, json.dumps(config, default=str)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shards, wall, cpu = done.stdout.split()
    return Seconds(wall=float(wall), cpu=float(cpu)), int(shards)


def measure(spec: str, raw: Path, out: Path, arguments: argparse.Namespace) -> dict[str, Seconds]:
    """Time one encoder and print its table."""
    encoder = load_encoder(spec, device=arguments.device, dtype=arguments.dtype)
    if not isinstance(encoder, TorchEncoder):
        raise SystemExit(f"{spec} is no encoder of one of the families")
    names = tuple(layer.name for layer in encoder.layers)
    batches = prepared_batches(encoder, raw, arguments.batch_size)
    said: dict[str, object] = {"dataset": raw, "encoder": spec, "batch_size": arguments.batch_size}
    said |= {name: getattr(arguments, name) for name in ("device", "dtype", "format", "workers")}

    def config(layers: str) -> ExtractConfig:
        return ExtractConfig(**{**said, "layers": layers, "out": out / layers})  # type: ignore[arg-type]

    tasks = {
        "model alone": model_alone(encoder, batches),
        "prepare": preparing(encoder, raw),
        "encode last": encoded(encoder, batches, names[-1:]),
        "encode all": encoded(encoder, batches, names),
        "extract last": extracted(encoder, config("last")),
        "extract all": extracted(encoder, config("all")),
    }
    alternate(tasks, 1)  # warm up
    found = alternate(tasks, arguments.repeat)
    seconds, shards = no_op({**said, "layers": "all", "out": out / "all"})
    found[f"no-op ({shards} shards computed)"] = seconds
    show(f"{spec}: {arguments.rows} rows, {len(names)} layers, batch {arguments.batch_size}", arguments.rows, found)
    for over, under in (("encode all", "encode last"), ("extract all", "extract last"), ("extract all", "encode all")):
        ratios = found[over].wall / found[under].wall, found[over].cpu / found[under].cpu
        print(f"  {over + ' / ' + under:34} {'':26} {ratios[0]:7.2f} {ratios[1]:7.2f}")
    least = found["model alone"].cpu + found["prepare"].cpu
    for name in ("extract last", "extract all"):
        print(f"  {'(alone + prepare) / ' + name:34} {'':26} {'':7} {least / found[name].cpu:7.2f}")
    return found


def main() -> None:
    """Read the flags and measure both encoders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="package:efficientnet-lite0", help="'' leaves images out")
    parser.add_argument("--text", default="package:all-minilm-l6-v2", help="'' leaves texts out")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--width", type=int, default=500, help="pixels of the JPEGs")
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--format", default="hdf5")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        print(make_raw(raw, arguments.rows, arguments.width, arguments.height))
        for number, spec in enumerate(spec for spec in (arguments.image, arguments.text) if spec):
            measure(spec, raw, Path(folder) / str(number), arguments)


if __name__ == "__main__":
    main()
