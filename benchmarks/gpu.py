"""How near extraction comes to the bare bf16 forward pass on a GPU. Run: `python -m benchmarks.gpu [--compile] ...`.

It has not run on a GPU yet; `--device cpu --tiny` is what the tests run. Nothing is downloaded: timm's ViT-B/16 and
ViT-L/14 with random weights, bf16 autocast, all layers, fp16 on the disk. In turn, `--repeat` times, medians:

    bare forward            the model on images that are on the device already, its output thrown away
    encode, all layers      prepared images on the host to features on the host, all layers pooled inside the pass
    extract, from memory    a committed store, from images that are decoded already (the transform still runs)
    extract, from JPEG      a committed store, from JPEG files
    extract, reduced        the same with `--jpeg reduced` (differs where the files are large: `--width`, `--height`)

`extract` is at the speed of the GPU where its ratio is near 1; where `from JPEG` is slower than `from memory`, decoding
is the limit (`--workers`, or more cores).
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image

from benchmarks.alternate import Seconds, Work, alternate, show
from benchmarks.extract import extracted
from benchmarks.raw import make_raw
from pipeline.encoders.base import LoadOptions, parse_spec
from pipeline.encoders.libraries import import_library
from pipeline.encoders.timm_family import TimmEncoder, build, from_timm
from pipeline.extract.config import ExtractConfig
from pipeline.extract.decode import decode_image
from pipeline.extract.receipt import versions
from pipeline.runtime import keep_freed_memory

MODELS: dict[str, dict[str, Any]] = {"vit_base_patch16_224": {}, "vit_large_patch14_224": {}}
TINY: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "pretrained_cfg_overlay": {"input_size": (3, 32, 32)},
    }
}


def random_encoder(name: str, arguments: dict[str, Any], options: LoadOptions) -> TimmEncoder:
    """Return a model of timm with random weights as an encoder."""
    torch.manual_seed(0)
    model = import_library("timm").create_model(name, pretrained=False, num_classes=0, **arguments)
    transform = from_timm(import_library("timm.data").resolve_model_data_config(model))
    spec = parse_spec(f"timm:{name}")
    return build(spec, options, model, transform=transform, family="timm", name=name, weights="random")


def bare(encoder: TimmEncoder, rows: int, batch_size: int) -> Work:
    """Return the model's forward pass over a batch that stays on the device, as often as the rows ask for."""
    batch = torch.randn(batch_size, 3, *encoder.info.transform.output_size, device=encoder.device)

    def run() -> None:
        with torch.inference_mode(), torch.autocast(encoder.device.type, dtype=torch.bfloat16):
            for start in range(0, rows, batch_size):
                encoder.model(batch[: rows - start])

    return run


def encoded(encoder: TimmEncoder, rows: int, batch_size: int) -> Work:
    """Return `encode` with all layers on prepared samples, each batch started before the last is waited for."""
    samples = list(torch.randn(min(rows, batch_size), 3, *encoder.info.transform.output_size))
    layers = [layer.name for layer in encoder.layers]

    def run() -> None:
        waiting = None
        for start in range(0, rows, batch_size):
            started = encoder.start(samples[: rows - start], layers)
            if waiting:
                waiting()
            waiting = started
        if waiting:
            waiting()

    return run


def from_memory(work: Work, pictures: dict[str, Image.Image]) -> Work:
    """Return an extraction that takes `pictures` instead of files."""

    def decoded(path: Path, reduction: object = None) -> Image.Image:
        return pictures[path.name]

    def run() -> None:
        with mock.patch("pipeline.extract.decode.decode_image", decoded):
            work()

    return run


def measure(name: str, raw: Path, out: Path, arguments: argparse.Namespace) -> dict[str, Seconds]:
    """Time one model and print its table."""
    options = LoadOptions(device=arguments.device, dtype="bf16", compile=arguments.compile)
    encoder = random_encoder(name, (TINY if arguments.tiny else MODELS)[name], options)
    pictures = {path.name: decode_image(path) for path in (raw / "images").iterdir()}

    def config(folder: str, jpeg: str = "exact") -> ExtractConfig:
        return ExtractConfig(
            dataset=raw,
            encoder=encoder.spec,
            out=out / folder,
            dtype="bf16",
            storage_dtype="fp16",
            device=arguments.device,
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            jpeg=jpeg,
        )

    tasks = {
        "bare forward": bare(encoder, arguments.rows, arguments.batch_size),
        "encode, all layers": encoded(encoder, arguments.rows, arguments.batch_size),
        "extract, from memory": from_memory(extracted(encoder, config("memory")), pictures),
        "extract, from JPEG": extracted(encoder, config("files")),
        "extract, reduced": extracted(encoder, config("reduced", "reduced")),
    }
    alternate(tasks, 1)  # warm up, and compile where asked
    if encoder.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found = alternate(tasks, arguments.repeat)
    compiled = ", compiled" if arguments.compile else ""
    title = f"{name}{compiled}: {arguments.rows} rows, {len(encoder.layers)} layers, batch {arguments.batch_size}"
    show(title, arguments.rows, found)
    if encoder.device.type == "cuda":
        print(f"  peak memory of the GPU: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    return found


def main(said: Sequence[str] | None = None) -> dict[str, dict[str, Seconds]]:
    """Read the flags, measure the models, return model → task → seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of a few thousand weights, for a test")
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--width", type=int, default=500, help="pixels of the JPEGs")
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args(said)
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.exit(2, "there is no CUDA device; --device cpu --tiny shows that the script works\n")
    keep_freed_memory()
    name = torch.cuda.get_device_name(arguments.device) if arguments.device.startswith("cuda") else "CPU"
    print(f"{name}, {os.cpu_count()} cores; {', '.join(' '.join(pair) for pair in versions().items())}")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        print(make_raw(raw, arguments.rows, arguments.width, arguments.height))
        for model in TINY if arguments.tiny else MODELS:
            found[model] = measure(model, raw, Path(folder) / model, arguments)
    return found


if __name__ == "__main__":
    main()
