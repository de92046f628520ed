"""Annotation files: JSON with a list of images, and captions in them or in a list of their own.

- Karpathy's split files of Flickr8k, Flickr30k and COCO (arXiv:1412.2306): `images`, each with `filename`, `split`,
  `sentences` (`raw`) and perhaps `filepath`, the folder inside the images' root.
- COCO's captions (https://cocodataset.org/#format-data): `images` with `id` and `file_name`, `annotations` with
  `image_id` and `caption`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.extract.datasets.image_files import ImageFiles, unnamed
from pipeline.extract.datasets.records import Columns, ImportOptions, Record, Records, Skipped, split_within
from pipeline.files import is_endless, read_json


def _holds(path: Path, *words: bytes) -> bool:
    """Tell whether a file is JSON that begins with an object of `images` and holds some words."""
    if path.suffix.lower() != ".json" or not path.is_file() or is_endless(path):
        return False
    with path.open("rb") as file:
        if b'"images"' not in file.read(2**16):
            return False
    text = path.read_bytes()
    return all(word in text for word in words)


def _entries(value: Mapping[str, Any], name: str, where: str, *fields: str) -> list[dict[str, Any]]:
    """Return the list of objects that an annotation file has under a name, all of them with some fields."""
    entries = value.get(name)
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and entry.keys() >= set(fields) for entry in entries
    ):
        raise UserError(
            expected=f"{{{json.dumps(name)}: [{{{', '.join(map(json.dumps, fields))}}}]}}",
            found=json.dumps(entries, ensure_ascii=False)[:80] if entries is not None else f"no {name}",
            where=where,
        )
    return entries


def is_karpathy(source: str) -> bool:
    """Tell whether the source is JSON with images and their sentences."""
    return _holds(Path(source), b'"sentences"')


def read_karpathy(source: str, options: ImportOptions) -> Records:
    """Open a Karpathy file; images are looked for beside it, or under `--root`.

    Raises:
        UserError: A value is of another type than its name says.
    """
    path = Path(source)
    entries = _entries(read_json(path, "images and sentences"), "images", source, "filename")
    columns = Columns(filepath="filename", captions=("sentences",), split="split", where=source)
    return Records(
        records=_karpathy_records(entries, columns, ImageFiles(options.root or path.parent)),
        total=len(entries),
        has_splits=any("split" in entry for entry in entries),
        origin=path.name,
        columns=columns,
    )


def _karpathy_records(
    entries: Sequence[Mapping[str, Any]], columns: Columns, files: ImageFiles
) -> Iterator[Record | Skipped]:
    folders = Columns(filepath="filepath", where=columns.where)
    for number, entry in enumerate(entries):
        each = replace(columns, where=f"{columns.where}, image {number}")
        name, folder = each.path(entry), folders.path(entry)
        inner = f"{folder}/{name}" if folder else name
        found = files.find((inner, name), each.where)
        yield Skipped(inner, found) if isinstance(found, str) else each.record(entry, inner, found)


def _coco_files(source: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        return sorted((path / "annotations").glob("captions_*.json"))
    return [path] if _holds(path, b'"annotations"', b'"caption"') else []


def is_coco(source: str) -> bool:
    """Tell whether the source is a file of COCO's captions, or a folder with `annotations/captions_*.json`."""
    return bool(_coco_files(source))


def read_coco(source: str, options: ImportOptions) -> Records:
    """Open COCO's `captions_train2017.json`, or all of them in the `annotations` of a folder, a split each.

    The pictures are looked for in the folder that the file is named after (`train2017`), beside or above it.

    Raises:
        UserError: A value is of another type than its name says.
    """
    paths = _coco_files(source)
    if not paths:
        raise UserError(expected="annotations/captions_*.json", found="none", where=source)
    above = paths[0].parent.parent if paths[0].parent.name == "annotations" else paths[0].parent
    files = ImageFiles(options.root or above)
    whole = Path(source).is_dir()
    parts = [_coco_records(path, files, split_within(path.stem) if whole else "") for path in paths]
    return Records(
        records=chain(*parts, unnamed(above, [files]) if whole and not options.root else ()),
        has_splits=whole,
        origin=Path(source).name,
        read={"captions": "captions of the annotations", "labels": "no labels"}
        | ({"splits": "splits by the names of the annotation files"} if whole else {}),
    )


def _coco_records(path: Path, files: ImageFiles, split: str) -> Iterator[Record | Skipped]:
    columns = Columns(filepath="file_name", captions=("caption",), where=str(path))
    value = read_json(path, "images and annotations")
    images = _entries(value, "images", str(path), "id", "file_name")
    texts: dict[str, list[str]] = {str(image["id"]): [] for image in images}
    for number, note in enumerate(_entries(value, "annotations", str(path), "image_id", "caption")):
        if str(note["image_id"]) in texts:
            texts[str(note["image_id"])] += columns.record(note).captions
        else:
            yield Skipped(f"annotation {note.get('id', number)}", f"no image has the id {note['image_id']}")
    folder = path.stem.removeprefix("captions_")
    for entry in images:
        name = columns.path(entry)
        found = files.find((f"{folder}/{name}", name), f"{path}, image {entry['id']}")
        captions = texts.pop(str(entry["id"]), None)
        if isinstance(found, str) or captions is None:
            yield Skipped(f"{folder}/{name}", found if isinstance(found, str) else "its id came before")
        else:
            yield columns.record(entry, f"{folder}/{name}", found, caption=captions, split=split)
