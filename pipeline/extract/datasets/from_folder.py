"""Import folders of images: one folder a class, or images with captions in a `.txt` of the same stem.

Either may have a level of split folders on top (`train/`, `val/`, `test/`). Folders without texts and classes are
images alone.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.extract.datasets.options import ImportOptions
from pipeline.extract.datasets.paths import Fence
from pipeline.extract.datasets.record import IMAGE_SUFFIXES, Classes, Record, Skipped, Source
from pipeline.extract.datasets.splits import named_splits


def _images(root: Path) -> list[str]:
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        inner = Path(folder).relative_to(root)
        found += [
            (inner / name).as_posix()
            for name in sorted(files)
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
        ]
    return found


def _has_images(root: Path) -> bool:
    return any(Path(name).suffix.lower() in IMAGE_SUFFIXES for _, _, files in os.walk(root) for name in files)


def _split_folders(root: Path) -> bool:
    return named_splits([path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")])


def _has_texts(root: Path) -> bool:
    return any((root / name).with_suffix(".txt").is_file() for name in _images(root))


def recognises_captions(source: str) -> bool:
    """Tell whether the source is a folder with an image that has a text of the same stem."""
    return Path(source).is_dir() and _has_texts(Path(source))


def recognises_classes(source: str) -> bool:
    """Tell whether the source is a folder whose subfolders hold images."""
    return Path(source).is_dir() and any(_has_images(path) for path in Path(source).iterdir() if path.is_dir())


def recognises_images(source: str) -> bool:
    """Tell whether the source is a folder with images."""
    return Path(source).is_dir() and _has_images(Path(source))


def read_captions(source: str, options: ImportOptions) -> Source:
    """Open a folder of images with same-stem texts, one caption a line."""
    return _read(source, options, with_captions=True, with_labels=False)


def read_classes(source: str, options: ImportOptions) -> Source:
    """Open a folder of class folders; the class's name is the folder's, underscores read as spaces."""
    return _read(source, options, with_captions=False, with_labels=True)


def read_images(source: str, options: ImportOptions) -> Source:
    """Open a folder of images without captions or classes."""
    return _read(source, options, with_captions=False, with_labels=False)


def _read(source: str, options: ImportOptions, *, with_captions: bool, with_labels: bool) -> Source:
    root = options.root or Path(source)
    if not root.is_dir():
        raise UserError(expected="a folder of images", found="none", where=str(root))
    names = _images(root)
    has_splits = _split_folders(root)
    labels = {name: _label(name, has_splits) if with_labels else "" for name in names}
    known = tuple(sorted(set(labels.values()) - {""}))
    return Source(
        records=_records(root, labels, has_splits, with_captions),
        total=len(names),
        classes=Classes(names=known, templates=("a photo of a {c}.",)) if known else None,
        has_splits=has_splits,
        origin=root.name,
    )


def _label(name: str, has_splits: bool) -> str:
    folders = name.split("/")[:-1][int(has_splits) :]
    return folders[0].replace("_", " ").strip() if folders else ""


def _records(root: Path, labels: dict[str, str], has_splits: bool, with_captions: bool) -> Iterator[Record | Skipped]:
    fence = Fence(root)
    for name, label in labels.items():
        problem = fence.problem(name)
        if problem:
            yield Skipped(name, problem)
            continue
        path = root / name
        split = name.split("/")[0] if has_splits and "/" in name else ""
        text = path.with_suffix(".txt")
        captions = _lines(text) if with_captions and text.is_file() and not fence.problem(_inner(text, root)) else ()
        yield Record(image_id=name, source=path, name=name, split=split, label=label, captions=captions)


def _inner(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _lines(path: Path) -> tuple[str, ...]:
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    lines = tuple(line for line in text.splitlines() if line.strip())
    return lines or ("",)
