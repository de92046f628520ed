"""Raw data sets in a few lines, for these tests."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

TEXT, IMAGE = "tests.extract.tiny_encoders:TinyText", "tests.extract.tiny_encoders:TinyImage"


def picture(seed: int, size: int = 12, kind: str = "PNG") -> bytes:
    """Return an image file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    return encoded(Image.fromarray(pixels), kind)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_raw(root: Path, images: int = 20, captions: int = 2, classes: Sequence[str] = ("cat", "dog")) -> Path:
    """Write a raw data set by hand: every image has a split, a label and some captions."""
    (root / "images").mkdir(parents=True)
    rows, texts = [], []
    for number in range(images):
        name = f"i{number:03d}"
        (root / "images" / f"{name}.png").write_bytes(picture(number))
        split = "test" if number % 5 == 0 else "train"
        rows.append((name, f"images/{name}.png", split, classes[number % len(classes)] if classes else ""))
        texts += [(f"{name}#{k}", name, f"picture number {number} said {'again ' * k}") for k in range(captions)]
    write_table(root / "images.csv", ("image_id", "file", "split", "label"), rows)
    if texts:
        write_table(root / "captions.csv", ("caption_id", "image_id", "caption"), texts)
    if classes:
        write_json(root / "classes.json", {"classes": list(classes), "templates": ["a {c}.", "the {}"]})
    return root


def write_json(path: Path, value: Mapping[str, object]) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path
