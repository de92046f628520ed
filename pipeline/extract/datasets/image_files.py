"""Import images that lie as files: folders of them, tables of their paths, and Karpathy's JSON.

- A folder a class; images with captions in a `.txt` of the same stem; images alone. Any
  of them may lie in split folders.
- CSV, TSV, JSONL or Parquet with a column of image paths and any of caption, label, split; also the folder that holds
  such a table as `captions.csv` next to its `images/`.
- Karpathy's split files of Flickr8k, Flickr30k and COCO (arXiv:1412.2306): `images`, each with `filename`, `split`,
  `sentences` (`raw`) and perhaps `filepath`, the folder inside the images' root.
"""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.extract.datasets.layout import Classes, read_json
from pipeline.extract.datasets.records import (
    IMAGE_SUFFIXES,
    ImportOptions,
    LabelNames,
    Record,
    Records,
    Skipped,
    find_column,
    named_splits,
)
from pipeline.extract.datasets.tables import Fence, open_parquet, read_rows

# ---- folders ---------------------------------------------------------------------------------------------------------


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


def recognises_captions(source: str) -> bool:
    """Tell whether the source is a folder with an image that has a text of the same stem."""
    root = Path(source)
    return root.is_dir() and any((root / name).with_suffix(".txt").is_file() for name in _images(root))


def recognises_classes(source: str) -> bool:
    """Tell whether the source is a folder whose subfolders hold images."""
    return Path(source).is_dir() and any(_has_images(path) for path in Path(source).iterdir() if path.is_dir())


def recognises_images(source: str) -> bool:
    """Tell whether the source is a folder with images."""
    return Path(source).is_dir() and _has_images(Path(source))


def read_folder(source: str, options: ImportOptions, *, captions: bool = False, classes: bool = False) -> Records:
    """Open a folder of images.

    Args:
        source: The folder; its first level may be the splits.
        options: Another root.
        captions: Whether texts of the same stem are captions, one a line.
        classes: Whether the folder of an image is its class, underscores read as spaces.

    Raises:
        UserError: It is no folder.
    """
    root = options.root or Path(source)
    if not root.is_dir():
        raise UserError(expected="a folder of images", found="none", where=str(root))
    names = _images(root)
    folders = [path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    has_splits = named_splits(folders)
    labels = {name: _label(name, has_splits) if classes else "" for name in names}
    known = tuple(sorted(set(labels.values()) - {""}))
    return Records(
        records=_folder_records(root, labels, has_splits, captions),
        total=len(names),
        classes=Classes(names=known, templates=("a photo of a {c}.",)) if known else None,
        has_splits=has_splits,
        origin=root.name,
    )


def _label(name: str, has_splits: bool) -> str:
    folders = name.split("/")[:-1][int(has_splits) :]
    return folders[0].replace("_", " ").strip() if folders else ""


def _folder_records(
    root: Path, labels: dict[str, str], has_splits: bool, with_captions: bool
) -> Iterator[Record | Skipped]:
    fence = Fence(root)
    for name, label in labels.items():
        problem = fence.problem(name)
        if problem:
            yield Skipped(name, problem)
            continue
        path = root / name
        split = name.split("/")[0] if has_splits and "/" in name else ""
        text = path.with_suffix(".txt")
        inner = text.relative_to(root).as_posix()
        captions = _lines(text) if with_captions and text.is_file() and not fence.problem(inner) else ()
        yield Record(image_id=name, source=path, name=name, split=split, label=label, captions=captions)


def _lines(path: Path) -> tuple[str, ...]:
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    lines = tuple(line for line in text.splitlines() if line.strip())
    return lines or ("",)


# ---- tables ----------------------------------------------------------------------------------------------------------

Rows = Iterator[tuple[int, dict[str, Any]]]
"""(line number, column → value); the first item holds the columns alone."""


def _jsonl(path: Path) -> Rows:
    with path.open("rb") as file:
        rows = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    columns: dict[str, Any] = {}
    parsed: list[tuple[int, dict[str, Any]]] = []
    for number, line in rows:
        try:
            row = json.loads(line.decode("utf-8", "surrogateescape"))
        except ValueError as error:
            raise UserError(
                expected="a JSON object a line", found=str(error), where=f"{path}, line {number}"
            ) from error
        if not isinstance(row, dict):
            raise UserError(expected="a JSON object a line", found=type(row).__name__, where=f"{path}, line {number}")
        columns.update(dict.fromkeys(row))
        parsed.append((number, row))
    yield 1, columns
    yield from parsed


def _parquet(path: Path) -> Rows:
    with open_parquet(path) as file:
        yield 0, dict.fromkeys(file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(batch_size=4096):
            for row in batch.to_pylist():
                number += 1
                yield number, row


READERS: dict[str, Callable[[Path], Rows]] = {
    ".csv": read_rows,
    ".tsv": partial(read_rows, delimiter="\t"),
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
}
"""File name ending → reader."""


def recognises_table(source: str) -> bool:
    """Tell whether the source is such a table, or a folder with captions.csv and images/."""
    path = Path(source)
    return (path.suffix.lower() in READERS and path.is_file()) or (
        (path / "captions.csv").is_file() and (path / "images").is_dir()
    )


def read_table(source: str, options: ImportOptions) -> Records:
    """Open a table.

    Raises:
        UserError: No column of paths or captions, a path that leaves the folder, or a table that cannot be read.
    """
    path = Path(source)
    table = path / "captions.csv" if path.is_dir() else path
    suffix = table.suffix.lower()
    if suffix not in READERS:
        raise UserError(expected=f"a table ({', '.join(READERS)})", found=table.name, where=source)
    rows = READERS[suffix](table)
    _, header = next(rows)
    columns = {
        field: find_column(options, field, list(header), str(table))
        for field in ("filepath", "caption", "label", "split")
    }
    if not columns["filepath"]:
        find_column(options, "caption", list(header), str(table), needed=True)
        if not columns["caption"]:
            find_column(options, "filepath", list(header), str(table), needed=True)
    labels = LabelNames.beside(table)
    reader = _Rows(table, options.root or table.parent, columns, labels)
    return Records(
        records=reader.records(rows), classes=labels.classes, has_splits=bool(columns["split"]), origin=table.name
    )


class _Rows:
    """Turns a table's rows into records."""

    def __init__(self, table: Path, root: Path, columns: dict[str, str], labels: LabelNames) -> None:
        self._table, self._columns, self._labels = table, columns, labels
        self._fence = Fence(root, remedy="say --root DIR, the folder that all image paths lie in")
        self._found: dict[str, Path] = {}

    def records(self, rows: Rows) -> Iterator[Record | Skipped]:
        for line, row in rows:
            value = {field: row.get(column) if column else None for field, column in self._columns.items()}
            captions = _texts(value["caption"])
            where = f"{self._table}, line {line}"
            if not self._columns["filepath"]:
                yield Record(captions=captions)
                continue
            name = str(value["filepath"] or "").strip()
            if not name:
                yield Record(captions=captions) if captions else Skipped(f"line {line}", "neither image nor caption")
                continue
            inner = self._relative(name)
            yield Record(
                image_id=inner,
                source=self._file(inner, where),
                name=inner,
                split=_text(value["split"]),
                label=self._labels.of(value["label"]),
                captions=captions,
            )

    def _relative(self, name: str) -> str:
        path = Path(name)
        if path.is_absolute() and path.is_relative_to(self._fence.root.absolute()):
            return path.relative_to(self._fence.root.absolute()).as_posix()
        return name.removeprefix("./")

    def _file(self, name: str, where: str) -> Path:
        if name not in self._found:
            self._found[name] = self._search(name, where)
        return self._found[name]

    def _search(self, name: str, where: str) -> Path:
        plain = self._fence.path(name, where)
        if plain.is_file():
            return plain
        for folder in ("", "images/"):
            for suffix in ("", *sorted(IMAGE_SUFFIXES)):
                path = self._fence.path(f"{folder}{name}{suffix}", where)
                if path.is_file():
                    return path
        return plain


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _texts(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(_text(item) for item in value) if isinstance(value, (list, tuple)) else (_text(value),)


# ---- Karpathy's split files ------------------------------------------------------------------------------------------


def recognises_karpathy(source: str) -> bool:
    """Tell whether the source is a JSON file with `images` that have `sentences`."""
    path = Path(source)
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        return b'"images"' in file.read(2**16) and b'"sentences"' in path.read_bytes()


def read_karpathy(source: str, options: ImportOptions) -> Records:
    """Open a Karpathy file; images are looked for beside it, in `images/`, or under `--root`.

    Raises:
        UserError: It is not such a file, or a path leaves the folder.
    """
    path = Path(source)
    entries = read_json(path).get("images")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "filename" in entry for entry in entries):
        raise UserError(
            expected='{"images": [{"filename", "sentences", "split"}]}',
            found=json.dumps(entries, ensure_ascii=False)[:80] if entries is not None else "no images",
            where=source,
        )
    has_splits = any("split" in entry for entry in entries)
    records = _entries(path, options.root or path.parent, entries)
    return Records(records=records, total=len(entries), has_splits=has_splits, origin=path.name)


def _entries(path: Path, root: Path, entries: list[dict[str, Any]]) -> Iterator[Record | Skipped]:
    fence = Fence(root, remedy="say --root DIR, the folder that the images lie in")
    for number, entry in enumerate(entries):
        where = f"{path}, image {number}"
        inner = f"{entry['filepath']}/{entry['filename']}" if entry.get("filepath") else str(entry["filename"])
        places = [fence.path(name, where) for name in (inner, entry["filename"], f"images/{entry['filename']}")]
        sentences = entry.get("sentences") or []
        yield Record(
            image_id=inner,
            source=next((place for place in places if place.is_file()), places[0]),
            name=inner,
            split=str(entry.get("split") or ""),
            captions=tuple(str(item.get("raw", "")) if isinstance(item, dict) else str(item) for item in sentences),
        )
