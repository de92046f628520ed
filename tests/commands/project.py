"""A checkout in miniature for the commands: 48 drawn pictures with two captions each, and a params.yaml."""

import csv
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

from tests.commands.encoders import PIXELS, WORDS
from tests.commands.running import done

DATA, IMAGE, TEXT = "data/0_raw/shapes", "data/1_features/shapes/pixels", "data/1_features/shapes/words"
RUN, REPORT = "data/2_projectors/cca", "data/3_report"
COLOURS = ["red", "green", "blue", "yellow", "purple", "orange", "black", "pink"]
SHAPES = ["circle", "square", "bar"]
SIZES = {"small": 4, "large": 7}
IMAGES = len(COLOURS) * len(SHAPES) * len(SIZES)
PARAMS: dict[str, Any] = {
    "image_encoder": "pixels",
    "text_encoder": "words",
    "encoders": {"pixels": PIXELS, "words": WORDS},
    "datasets": ["shapes"],
    "data": {"shapes": "import shapes.csv"},
    "extract": {"layers": "all", "device": "cpu", "shard_rows": 16},
    "methods": ["cca", "info_nce"],
    "align": {"dataset": "shapes", "layers": "auto", "seeds": [1], "settings": {"training": {"epochs": 2}}},
    "evaluate": {"split": "test", "zero_shot": ["shapes"], "bootstrap": 100, "examples": 2},
}


def draw(shape: str, colour: str, radius: int) -> Image.Image:
    image = Image.new("RGB", (24, 24), "white")
    pen = ImageDraw.Draw(image)
    box = [12 - radius, 12 - radius, 12 + radius, 12 + radius]
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.rectangle([12 - radius, 10, 12 + radius, 14], fill=colour)
    return image


def rows() -> list[tuple[str, str, str, str]]:
    """Return file, caption, label and split: two rows a picture."""
    names = [(size, colour, shape) for shape in SHAPES for colour in COLOURS for size in SIZES]
    found = []
    for place, (size, colour, shape) in enumerate(names):
        split = ("train", "train", "train", "val", "test")[place % 5]
        file = f"{size}_{colour}_{shape}.png"
        found += [(file, f"a {size} {colour} {shape}", shape, split), (file, f"{colour} {shape}", shape, split)]
    return found


def make_source(folder: Path) -> Path:
    """Draw the pictures and write the table that names them; return the table."""
    folder.mkdir(parents=True, exist_ok=True)
    for shape in SHAPES:
        for colour in COLOURS:
            for size, radius in SIZES.items():
                draw(shape, colour, radius).save(folder / f"{size}_{colour}_{shape}.png")
    return write_table(folder / "shapes.csv", ("filepath", "caption", "label", "split"), rows())


def write_table(path: Path, header: Sequence[str], table: Sequence[Sequence[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *table])
    return path


def write_params(folder: Path, **changes: Any) -> Path:
    """Write params.yaml with some sections changed; None leaves one out."""
    path = folder / "params.yaml"
    params = {name: value for name, value in {**PARAMS, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    return path


def make_features(folder: Path) -> None:
    """Make a project up to its features, by nothing but commands."""
    make_source(folder)
    write_params(folder)
    with chdir(folder):
        done("data", "import", "shapes.csv", "--out", DATA, "--quiet")
        done("extract", "--quiet")


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}
