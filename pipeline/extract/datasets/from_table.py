"""Import a table: CSV, TSV, JSONL or Parquet with a column of image paths and any of caption, label, split.

Also the folder that holds such a table as `captions.csv` next to its `images/`.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.extract.datasets.labels import LabelNames
from pipeline.extract.datasets.options import ImportOptions, find_column
from pipeline.extract.datasets.paths import Fence
from pipeline.extract.datasets.record import IMAGE_SUFFIXES, Record, Skipped, Source
from pipeline.extract.datasets.table import open_parquet, read_rows

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


def recognises(source: str) -> bool:
    """Tell whether the source is such a table, or a folder with captions.csv and images/."""
    path = Path(source)
    return (path.suffix.lower() in READERS and path.is_file()) or (
        (path / "captions.csv").is_file() and (path / "images").is_dir()
    )


def read(source: str, options: ImportOptions) -> Source:
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
    return Source(
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
