"""A tiny project that the contract is looked at on: 48 drawn pictures, two captions each, made by commands alone."""

import csv
import json
from contextlib import chdir
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image, ImageDraw

from tests.commands.running import done

DATA, IMAGE, TEXT = "data/0_raw/shapes", "data/1_features/shapes/pixels", "data/1_features/shapes/words"
CCA, TRAINED, REPORT = "data/2_projectors/cca", "data/2_projectors/info_nce", "data/3_report"
PIXELS, WORDS = "tests.contract.tiny:Pixels", "tests.contract.tiny:Words"
COLOURS = ["red", "green", "blue", "yellow", "purple", "orange", "black", "pink"]
SHAPES = ["circle", "square", "bar"]
SIZES = {"small": 3, "large": 5}
PARAMS: dict[str, Any] = {
    "image_encoder": "pixels",
    "text_encoder": "words",
    "encoders": {"pixels": PIXELS, "words": WORDS},
    "datasets": ["shapes"],
    "data": {"shapes": "import shapes.csv"},
    "extract": {"layers": "all", "device": "cpu", "shard_rows": 20},
    "methods": ["cca", "procrustes", "ridge", "asif", "pls", "fewpairs", "info_nce", "combined"],
    "align": {"dataset": "shapes", "seeds": [1, 2], "settings": {"dim": 8, "training": {"epochs": 2}}, "device": "cpu"},
    "sweep": {"pairs": [12], "captions": [1], "seeds": [1], "split": "test", "zero_shot": ["shapes"]},
    "evaluate": {"split": "test", "zero_shot": ["shapes"], "bootstrap": 100, "examples": 2},
}


def draw(shape: str, colour: str, radius: int) -> Image.Image:
    """Draw a shape, 12 × 12 pixels, no anti-aliasing."""
    image = Image.new("RGB", (12, 12), "white")
    pen = ImageDraw.Draw(image)
    box = [6 - radius, 6 - radius, 6 + radius, 6 + radius]
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.rectangle([6 - radius, 5, 6 + radius, 7], fill=colour)
    return image


def draw_pictures(folder: Path, count: int = 48, table: str = "pictures.csv") -> None:
    """Draw pictures, each another size, colour or shape, and write the table that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [(size, colour, shape) for shape in SHAPES for colour in COLOURS for size in SIZES]
    with (folder / table).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["filepath", "caption", "label", "split"])
        for place, (size, colour, shape) in enumerate(names[:count]):
            split = ("train", "train", "train", "val", "test")[place % 5]
            name = f"{size}_{colour}_{shape}.png"
            draw(shape, colour, SIZES[size]).save(folder / name)
            rows.writerow([name, f"a {size} {colour} {shape}", shape, split])
            rows.writerow([name, f"{colour} {shape}", shape, split])


def make_source(folder: Path) -> None:
    """Draw the pictures, write their table and params.yaml."""
    draw_pictures(folder, table="shapes.csv")
    (folder / "params.yaml").write_text(yaml.safe_dump(PARAMS), encoding="utf-8")


def make_project(folder: Path) -> None:
    """Make features, a closed form, a training with two seeds, and a report."""
    make_source(folder)
    with chdir(folder):
        for command in ("extract", "align", "evaluate"):
            done(command, "--quiet")


def make_timm_folder(folder: Path) -> Path:
    """Save a tiny vision transformer with random weights, whose files are all known: its stores get a receipt."""
    from safetensors.torch import save_file

    from pipeline.encoders.libraries import import_library

    folder.mkdir(parents=True)
    torch.manual_seed(3)
    size: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2}
    model = import_library("timm").create_model("vit_tiny_patch16_224", pretrained=False, num_classes=2, **size)
    described = {
        "architecture": "vit_tiny_patch16_224",
        "model_args": size,
        "pretrained_cfg": {
            "input_size": [3, 16, 16],
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "num_classes": 2,
            **{name: model.pretrained_cfg[name] for name in ("first_conv", "classifier")},
        },
    }
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder
