"""Every way into the raw layout, one table; and the sources whose images lie as files.

`pipeline data import` picks by name, or by what the source looks like. Images and texts in archives: `archives`.

- A folder a class; images with captions in a `.txt` of the same stem; images alone. Any of them may lie in split
  folders.
- CSV, TSV, JSONL or Parquet with a column of image paths and any of caption, label, split; also the folder that holds
  such a table as `captions.csv` next to its `images/`.
- Karpathy's split files of Flickr8k, Flickr30k and COCO (arXiv:1412.2306): `images`, each with `filename`, `split`,
  `sentences` (`raw`) and perhaps `filepath`, the folder inside the images' root.
"""

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, product
from pathlib import Path, PurePath
from typing import Any

from pipeline.errors import UnknownNameError, UserError
from pipeline.extract.datasets import archives
from pipeline.extract.datasets.layout import Classes, Fence, classes_beside, read_rows
from pipeline.extract.datasets.records import (
    IMAGE_SUFFIXES,
    Columns,
    ImportOptions,
    Record,
    Records,
    Skipped,
    SplitRule,
    named_splits,
    unread,
)
from pipeline.extract.datasets.writing import MadeDataset, write_dataset
from pipeline.files import read_json
from pipeline.progress import Progress, silent
from pipeline.words import count


def import_dataset(
    source: str | Path, out: Path, options: ImportOptions | None = None, *, progress: Progress = silent
) -> MadeDataset:
    """Make a raw data set of a user's table, folder or archive.

    Args:
        source: File, folder, or a pattern of tars.
        out: The new folder.
        options: Columns, root and the like.
        progress: Is told how far it is.

    Raises:
        UserError: The source is not there or not understood, or the importer's own complaints.
        UnknownNameError: No such kind.
    """
    options = options or ImportOptions()
    kind = detect(str(source)) if options.kind == "auto" else options.kind
    if kind not in IMPORTERS:
        raise UnknownNameError("kind of source", kind, IMPORTERS, "--kind")
    found = IMPORTERS[kind].read(str(source), options)
    said = {name: getattr(options, name) for name in ("origin", "licence", "attribution") if getattr(options, name)}
    rule = options.rule or SplitRule()
    return write_dataset(
        out, replace(found, **said), rule=rule, replace=options.replace, link=options.link, progress=progress
    )


def detect(source: str) -> str:
    """Return the name of the first importer that recognises a source.

    Raises:
        UserError: The source does not exist, or none does.
    """
    for name, importer in IMPORTERS.items():
        if importer.recognises(source):
            return name
    kinds = "; ".join(f"{name}: {importer.about}" for name, importer in IMPORTERS.items())
    raise UserError(
        expected=f"one of ({kinds})",
        found="something else" if Path(source).exists() else "nothing",
        where=source,
        remedy="name the kind with --kind, or bring the data into a CSV with the columns filepath,caption",
    )


# ---- folders ---------------------------------------------------------------------------------------------------------


def _files(root: Path) -> Iterator[str]:
    """Yield the files below a folder, in order; hidden ones are left out."""
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        inner = Path(folder).relative_to(root)
        yield from ((inner / name).as_posix() for name in sorted(files) if not name.startswith("."))


def _is_image(name: str) -> bool:
    return PurePath(name).suffix.lower() in IMAGE_SUFFIXES


def _is_text(name: str) -> bool:
    return name.lower().endswith(".txt")


def _has_captions(source: str) -> bool:
    names = list(_files(Path(source)))
    texts = {_plain(name) for name in names if _is_text(name)}
    return any(_plain(name) in texts for name in names if _is_image(name))


def _has_classes(source: str) -> bool:
    return Path(source).is_dir() and any(_has_images(path) for path in Path(source).iterdir() if path.is_dir())


def _has_images(source: str | Path) -> bool:
    return any(_is_image(name) or unread(name) for _, _, files in os.walk(source) for name in files)


def _read_folder(source: str, options: ImportOptions, *, captions: bool = False, classes: bool = False) -> Records:
    """Open a folder of images, whose first level may be the splits.

    With `captions`, texts of the same stem are captions, one a line; with `classes`, the folder of an image is its
    class, underscores read as spaces.
    """
    root = options.root or Path(source)
    if not root.is_dir():
        raise UserError(expected="a folder of images", found="none", where=str(root))
    folders = [path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    has_splits = named_splits(folders)
    names = list(_files(root))
    labels = {name: _label(name, has_splits) if classes else "" for name in names if _is_image(name)}
    known = tuple(sorted(set(labels.values()) - {""}))
    return Records(
        records=_folder_records(root, names, labels, has_splits, _Texts(root, names if captions else ())),
        total=len(labels),
        classes=Classes(names=known, templates=("a photo of a {c}.",)) if known else None,
        has_splits=has_splits,
        origin=root.name,
    )


def _label(name: str, has_splits: bool) -> str:
    folders = name.split("/")[:-1][int(has_splits) :]
    return folders[0].replace("_", " ").strip() if folders else ""


def _folder_records(
    root: Path, names: Sequence[str], labels: Mapping[str, str], has_splits: bool, texts: "_Texts"
) -> Iterator[Record | Skipped]:
    fence, columns, others = Fence(root), Columns(), Counter[str]()
    for name in names:
        problem = fence.problem(name) or unread(name)
        if name in labels and not problem:
            split = name.split("/")[0] if has_splits and "/" in name else ""
            yield columns.record({}, name, root / name, caption=texts.of(name), label=labels[name], split=split)
        elif problem:
            yield Skipped(name, problem)
        elif name not in texts:
            others[PurePath(name).suffix.lower() or PurePath(name).name] += 1
    yield from (Skipped(name, "no picture of this name lies beside it") for name in texts.left())
    if others:
        kinds = ", ".join(f"{kind} {number}" for kind, number in others.most_common(10))
        yield Skipped("other files", f"{count(others.total(), 'file')} of which nothing was read ({kinds})")


class _Texts:
    """The `.txt` files of a folder, found by the stem of their picture, however either writes its accents."""

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self._root = root
        self._fence = Fence(root)
        self._names = {name: False for name in names if _is_text(name) and not self._fence.problem(name)}
        """Name → whether a picture has taken it."""
        self._exact: dict[str, list[str]] = {}
        self._plain: dict[str, list[str]] = {}
        for name in self._names:
            self._exact.setdefault(_stem(name), []).append(name)
            self._plain.setdefault(_plain(name), []).append(name)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def of(self, image: str) -> list[str]:
        """Return an image's captions."""
        names = self._exact.get(_stem(image)) or self._plain.get(_plain(image), [])
        self._names |= dict.fromkeys(names, True)
        return [line for name in names for line in archives.lines((self._root / name).read_bytes())]

    def left(self) -> list[str]:
        """Return the texts that no picture has taken."""
        return [name for name, taken in self._names.items() if not taken]


def _stem(name: str) -> str:
    return name[: -len(PurePath(name).suffix)]


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", _stem(name))


# ---- tables ----------------------------------------------------------------------------------------------------------

Rows = Iterator[tuple[int, Mapping[str, Any]]]
"""(line number, column → value); the first item holds the columns alone."""


def _jsonl(path: Path) -> Rows:
    rows: list[tuple[int, Mapping[str, Any]]] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                rows.append((number, _object(line, f"{path}, line {number}")))
    yield 1, dict.fromkeys(chain.from_iterable(row for _, row in rows))
    yield from rows


def _object(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise UserError(expected="a JSON object a line", found=str(error), where=where) from error
    if not isinstance(row, dict):
        raise UserError(expected="a JSON object a line", found=type(row).__name__, where=where)
    return row


def _parquet(path: Path) -> Rows:
    yield 0, dict.fromkeys(archives.open_parquet(path).schema_arrow.names)
    yield from enumerate(archives.parquet_rows([path]), 1)


READERS: dict[str, Callable[[Path], Rows]] = {
    ".csv": read_rows,
    ".tsv": partial(read_rows, delimiter="\t"),
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
}
"""File name ending → reader."""


def _is_table(source: str) -> bool:
    path = Path(source)
    return (path.suffix.lower() in READERS and path.is_file()) or (
        (path / "captions.csv").is_file() and (path / "images").is_dir()
    )


def _read_table(source: str, options: ImportOptions) -> Records:
    """Open a table, or the folder that holds it as captions.csv."""
    path = Path(source)
    table = path / "captions.csv" if path.is_dir() else path
    if table.suffix.lower() not in READERS:
        raise UserError(expected=f"a table ({', '.join(READERS)})", found=table.name, where=source)
    rows = READERS[table.suffix.lower()](table)
    _, header = next(rows)
    columns = Columns.find(options, list(header), str(table), classes_beside(table))
    if not columns.filepath and not columns.captions:
        raise UserError(
            expected="a column 'caption'",
            found=", ".join(header) or "none",
            where=str(table),
            remedy="name the column with --caption",
        )
    return Records(
        records=_table_records(rows, columns, ImageFiles(options.root or table.parent)),
        classes=columns.classes,
        has_splits=bool(columns.split),
        origin=table.name,
    )


def _table_records(rows: Rows, columns: Columns, files: "ImageFiles") -> Iterator[Record | Skipped]:
    for line, row in rows:
        name = str(columns.value(row, "filepath") or "").strip()
        if name:
            inner = files.relative(name)
            yield columns.record(row, inner, files.find((inner,), f"{columns.where}, line {line}"))
            continue
        alone = Columns().record({}, caption=columns.texts(row))
        yield alone if any(map(str.strip, alone.captions)) else Skipped(f"line {line}", "neither image nor caption")


class ImageFiles:
    """Finds the image files that a table names, below a folder and nowhere else.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self._fence = Fence(root, remedy="say --root DIR, the folder that all image paths lie in")
        self._found: dict[Sequence[str], Path] = {}

    def relative(self, name: str) -> str:
        """Return a path as one relative to the folder."""
        path = Path(name)
        if path.is_absolute() and path.is_relative_to(self._fence.root.absolute()):
            return path.relative_to(self._fence.root.absolute()).as_posix()
        return name.removeprefix("./")

    def find(self, names: Sequence[str], where: str) -> Path:
        """Return the first file that is there of some names, each also in `images/` and with an image's ending added.

        Raises:
            UserError: A name leaves the folder.
        """
        if names not in self._found:
            tries = (
                self._fence.path(f"{folder}{name}{suffix}", where)
                for name, folder, suffix in product(names, ("", "images/"), ("", *sorted(IMAGE_SUFFIXES)))
            )
            self._found[names] = next((path for path in tries if path.is_file()), self._fence.root / names[0])
        return self._found[names]


# ---- Karpathy's split files ------------------------------------------------------------------------------------------


def _is_karpathy(source: str) -> bool:
    path = Path(source)
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        return b'"images"' in file.read(2**16) and b'"sentences"' in path.read_bytes()


def _read_karpathy(source: str, options: ImportOptions) -> Records:
    """Open a Karpathy file; images are looked for beside it, in `images/`, or under `--root`."""
    path = Path(source)
    entries = read_json(path, "images and sentences").get("images")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "filename" in entry for entry in entries):
        raise UserError(
            expected='{"images": [{"filename", "sentences", "split"}]}',
            found=json.dumps(entries, ensure_ascii=False)[:80] if entries is not None else "no images",
            where=source,
        )
    columns = Columns(captions=("sentences",), split="split", where=source)
    records = _karpathy_records(entries, columns, ImageFiles(options.root or path.parent))
    has_splits = any("split" in entry for entry in entries)
    return Records(records=records, total=len(entries), has_splits=has_splits, origin=path.name)


def _karpathy_records(entries: Sequence[Mapping[str, Any]], columns: Columns, files: ImageFiles) -> Iterator[Record]:
    for number, entry in enumerate(entries):
        name = str(entry["filename"])
        inner = f"{entry['filepath']}/{name}" if entry.get("filepath") else name
        yield columns.record(entry, inner, files.find((inner, name), f"{columns.where}, image {number}"))


# ---- all of them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Importer:
    """One way in."""

    about: str
    """What it reads, in a few words."""
    recognises: Callable[[str], bool]
    """Whether a source looks like it."""
    read: Callable[[str, ImportOptions], Records]
    """Open a source; its own complaints are `UserError`."""


IMPORTERS = {
    "huggingface": Importer(
        "folder of save_to_disk, or hf:ORG/NAME", archives.is_hugging_face, archives.read_hugging_face
    ),
    "webdataset": Importer(
        "tar, tars by {000..012} or a folder of tars", archives.is_webdataset, archives.read_webdataset
    ),
    "karpathy": Importer("JSON with images and sentences", _is_karpathy, _read_karpathy),
    "image-parquet": Importer("Parquet of image bytes", archives.is_image_parquet, archives.read_image_parquet),
    "table": Importer("CSV, TSV, JSONL or Parquet of image paths", _is_table, _read_table),
    "captions": Importer("images with same-stem .txt", _has_captions, partial(_read_folder, captions=True)),
    "classes": Importer("a folder a class", _has_classes, partial(_read_folder, classes=True)),
    "images": Importer("a folder of images", _has_images, _read_folder),
}
"""Importers by name, asked in this order where the kind is `auto`."""
