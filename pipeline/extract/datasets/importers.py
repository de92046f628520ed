"""Every way into the raw layout, one table; and the sources whose images lie as files.

`pipeline data import` picks by name, or by what the source looks like. Images and texts in archives: `archives`.

- A folder a class; images with captions in a `.txt` of the same stem; images alone. Any of them may lie in split
  folders.
- CSV, TSV, JSON or Parquet with a column of image paths and any of caption, label, split; also the folder that holds
  such tables. How they are read: `tables`.
- Annotation files of COCO and of Karpathy's splits: `annotations`.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path, PurePath
from typing import Any

from pipeline.errors import UnknownNameError, UserError
from pipeline.extract.datasets import annotations, archives, tars
from pipeline.extract.datasets.classes import Classes, classes_beside
from pipeline.extract.datasets.image_files import ImageFiles, files_below, is_image, unnamed, unread
from pipeline.extract.datasets.layout import Fence
from pipeline.extract.datasets.records import (
    Columns,
    ImportOptions,
    Record,
    Records,
    Skipped,
    SplitRule,
    named_splits,
)
from pipeline.extract.datasets.tables import READERS, Table, is_table, open_table, tables_of
from pipeline.extract.datasets.texts import Texts, is_text, plain_stem
from pipeline.extract.datasets.writing import MadeDataset, write_dataset
from pipeline.progress import Progress, silent
from pipeline.words import count, shortened

FIRST = 1000
"""Records that are looked at before the work, or as many as hold so many bytes of images:"""
FIRST_BYTES = 2**25


def import_dataset(
    source: str | Path,
    out: Path,
    options: ImportOptions | None = None,
    *,
    progress: Progress = silent,
    tell: Callable[[str], None] = lambda _: None,
) -> MadeDataset:
    """Make a raw data set of a user's table, folder or archive.

    Args:
        source: File, folder, or a pattern of tars.
        out: The new folder.
        options: Columns, root and the like.
        progress: Is told how far it is.
        tell: Is told before the work, in one line, what is read as captions, labels and splits.

    Raises:
        UserError: The source is not there or not understood, no caption comes of its texts, or the importer's own
            complaints.
        UnknownNameError: No such kind.
    """
    options = options or ImportOptions()
    found = open_source(source, options)
    tell(found.say())
    rule = options.rule or SplitRule()
    return write_dataset(out, found, rule=rule, replace=options.replace, link=options.link, progress=progress)


def open_source(source: str | Path, options: ImportOptions) -> Records:
    """Open a source with the importer that is named, or that recognises it.

    Raises:
        UserError: As `import_dataset`.
        UnknownNameError: No such kind.
    """
    kind = detect(str(source)) if options.kind == "auto" else options.kind
    if kind not in IMPORTERS:
        raise UnknownNameError("kind of source", kind, IMPORTERS, "--kind")
    found = IMPORTERS[kind].read(str(source), options)
    said = {name: getattr(options, name) for name in ("origin", "licence", "attribution") if getattr(options, name)}
    first, whole = _first(found.records)
    captioned = any(text.strip() for record in first if isinstance(record, Record) for text in record.captions)
    if not captioned and (whole or (found.columns and not found.columns.captions)):
        found.refuse_lost_texts()
    return replace(found, kind=kind, records=chain(first, found.records), counted=_counted(first, whole=whole), **said)


def _first(records: Iterator[Record | Skipped]) -> tuple[list[Record | Skipped], bool]:
    """Return the first records, and whether they are all."""
    first: list[Record | Skipped] = []
    left = FIRST_BYTES
    for record in islice(records, FIRST):
        first.append(record)
        left -= len(record.source) if isinstance(record, Record) and isinstance(record.source, bytes) else 0
        if left < 0:
            return first, False
    return first, len(first) < FIRST


def _counted(first: Sequence[Record | Skipped], *, whole: bool) -> str:
    """Return in words how many captions a picture has, and how many rows none."""
    images: Counter[str] = Counter()
    alone = 0
    for record in first:
        if isinstance(record, Record):
            captions = sum(bool(text.strip()) for text in record.captions)
            images[record.image_id] += captions
            alone += not record.image_id
    numbers = sorted({number for name, number in images.items() if name})
    said = []
    if numbers and numbers[-1]:
        said.append(f"{numbers[0]} to {numbers[-1]} a picture" if numbers[1:] else f"{numbers[0]} a picture")
    said += [f"{count(alone, 'row')} without a picture"] if alone else []
    return ", ".join(said) + f" in the first {len(first):,} rows" * bool(said and not whole)


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


def _has_captions(source: str) -> bool:
    names = list(files_below(Path(source)))
    texts = {plain_stem(name) for name in names if is_text(name)}
    return any(plain_stem(name) in texts for name in names if is_image(name))


def _has_classes(source: str) -> bool:
    return Path(source).is_dir() and any(_has_images(path) for path in Path(source).iterdir() if path.is_dir())


def _has_images(source: str | Path) -> bool:
    return any(is_image(name) or unread(name) for _, _, files in os.walk(source) for name in files)


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
    names = list(files_below(root))
    labels = {name: _label(name, has_splits) if classes else "" for name in names if is_image(name)}
    known = tuple(sorted(set(labels.values()) - {""}))
    return Records(
        records=_folder_records(root, names, labels, has_splits, Texts(root, names if captions else ())),
        total=len(labels),
        classes=Classes(names=known, templates=("a photo of a {c}.",)) if known else None,
        has_splits=has_splits,
        origin=root.name,
        read={
            "captions": "captions from the .txt of the same name" if captions else "no captions",
            "labels": "labels from the folders" if classes else "no labels",
        }
        | ({"splits": "splits by folder"} if has_splits else {}),
    )


def _label(name: str, has_splits: bool) -> str:
    folders = name.split("/")[:-1][int(has_splits) :]
    return folders[0].replace("_", " ").strip() if folders else ""


def _folder_records(
    root: Path, names: Sequence[str], labels: Mapping[str, str], has_splits: bool, texts: Texts
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


# ---- tables ----------------------------------------------------------------------------------------------------------


def _is_table(source: str) -> bool:
    return is_table(Path(source)) or bool(tables_of(Path(source)))


@dataclass(frozen=True)
class _Part:
    """A table of a source, with what is known of its rows."""

    table: Table
    columns: Columns
    files: ImageFiles
    prefix: str
    """The table's folder inside the source, which begins the ids of its images."""
    split: str
    """The split of all its rows; empty where they say it."""
    by_folder: bool
    """The paths of its images begin with the name of a split."""

    def records(self) -> Iterator[Record | Skipped]:
        """Yield a record a row."""
        for line, row in self.table.rows:
            name = self.columns.path(row)
            yield self._image(name, line, row) if name else self._alone(line, row)

    def _image(self, name: str, line: int, row: Mapping[str, Any]) -> Record | Skipped:
        inner = self.files.relative(name)
        found = self.files.find((inner,), f"{self.table.path}, line {line}")
        if isinstance(found, str):
            return Skipped(self.prefix + inner, found)
        split = inner.partition("/")[0] if self.by_folder else self.split
        stated = {"split": split} if split else {}
        return self.columns.record(row, self.prefix + self.files.image_id(found, inner), found, **stated)

    def _alone(self, line: int, row: Mapping[str, Any]) -> Record | Skipped:
        record = self.columns.record(row, label=None, split=None)
        empty = not any(map(str.strip, record.captions))
        return Skipped(f"{self.prefix}line {line}", "neither image nor caption") if empty else record


def _read_table(source: str, options: ImportOptions) -> Records:
    """Open a table, or those that a folder holds."""
    path = Path(source)
    places = tables_of(path) if path.is_dir() else [("", path)]
    if not places or (len(places) > 1 and not all(split for split, _ in places)):
        raise UserError(
            expected=f"one table ({', '.join(READERS)})",
            found=shortened([table.name for _, table in places]) or "none",
            where=source,
            remedy="name the one to import",
        )
    files = {table.parent: ImageFiles(options.root or table.parent) for _, table in places}
    parts = [_part(path, table, split, files[table.parent], options) for split, table in places]
    first = parts[0]
    by_name = {"splits": "splits by the names of tables or folders"} if first.split or first.by_folder else {}
    left = unnamed(path, files.values()) if path.is_dir() and not options.root else iter(())
    return Records(
        records=chain(chain.from_iterable(part.records() for part in parts), left),
        classes=first.columns.classes,
        has_splits=bool(first.columns.split or by_name),
        origin=path.name,
        columns=first.columns,
        read=by_name,
        form=first.table.form,
    )


def _part(source: Path, path: Path, split: str, files: ImageFiles, options: ImportOptions) -> _Part:
    table = open_table(path, options.encoding)
    columns = Columns.find(options, table.columns, str(path), classes_beside(path))
    if not columns.filepath and not columns.captions:
        raise UserError(
            expected="a column 'caption'",
            found=shortened(table.columns) or "none",
            where=str(path),
            remedy="name the column with --caption",
        )
    first = list(islice(table.rows, 50))
    folders = [columns.path(row).replace("\\", "/").rpartition("/")[0].partition("/")[0] for _, row in first]
    inside = path.parent.relative_to(source).as_posix() if source.is_dir() else "."
    return _Part(
        table=replace(table, rows=chain(first, table.rows)),
        columns=columns,
        files=files,
        prefix="" if inside == "." else f"{inside}/",
        split="" if columns.split else split,
        by_folder=not (split or columns.split) and named_splits(folders),
    )


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
        "tar, tars by {000..012}, a folder of tars, CLIP_benchmark's folders", tars.is_webdataset, tars.read_webdataset
    ),
    "coco": Importer("COCO's captions_*.json, or its folder", annotations.is_coco, annotations.read_coco),
    "karpathy": Importer("JSON with images and sentences", annotations.is_karpathy, annotations.read_karpathy),
    "image-parquet": Importer("Parquet of image bytes", archives.is_image_parquet, archives.read_image_parquet),
    "table": Importer("CSV, TSV, JSON or Parquet of image paths, or a folder of them", _is_table, _read_table),
    "captions": Importer("images with same-stem .txt", _has_captions, partial(_read_folder, captions=True)),
    "classes": Importer("a folder a class", _has_classes, partial(_read_folder, classes=True)),
    "images": Importer("a folder of images", _has_images, _read_folder),
}
"""Importers by name, asked in this order where the kind is `auto`."""
