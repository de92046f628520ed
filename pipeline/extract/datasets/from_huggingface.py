"""Import a Hugging Face data set saved by `save_to_disk`: a folder of Arrow files, or one such folder a split.

The files are read with pyarrow, so the package `datasets` is not needed. Nothing is fetched and no code of the data
set is run. A source that begins with `hf:` is an id: see `from_hub`.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.extract.datasets import from_hub
from pipeline.extract.datasets.from_image_parquet import image_column, record_of
from pipeline.extract.datasets.labels import LabelNames
from pipeline.extract.datasets.layout import read_json
from pipeline.extract.datasets.options import ImportOptions, find_column
from pipeline.extract.datasets.paths import Fence
from pipeline.extract.datasets.record import Classes, Record, Skipped, Source


def recognises(source: str) -> bool:
    """Tell whether the source is such a folder, or an id."""
    path = Path(source)
    return from_hub.recognises(source) or (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def read(source: str, options: ImportOptions) -> Source:
    """Open the data set.

    Raises:
        MissingExtraError: It is an id, and the package `datasets` is not installed.
        UserError: It is not such a folder, its files are damaged, it cannot be loaded by its id, or it has no images.
    """
    if from_hub.recognises(source):
        return from_hub.read(source, options)
    root = Path(source)
    folders = {"": root}
    if (root / "dataset_dict.json").is_file():
        names = list(map(str, read_json(root / "dataset_dict.json").get("splits") or []))
        fence = Fence(root)
        folders = {name: fence.path(name, str(root / "dataset_dict.json")) for name in names}
    if not folders or not all((folder / "state.json").is_file() for folder in folders.values()):
        raise UserError(expected="a folder made by save_to_disk (state.json)", found="none", where=source)
    tables = {split: _table(folder) for split, folder in folders.items()}
    schema = next(iter(tables.values())).schema
    image = options.filepath or image_column(schema)
    if image not in schema.names:
        raise UserError(expected="a column of image bytes", found=", ".join(schema.names), where=source)
    columns = {field: find_column(options, field, schema.names, source) for field in ("caption", "label", "split")}
    labels = LabelNames(_class_names(next(iter(folders.values())), columns["label"]), source)
    return Source(
        records=_records(tables, image, columns, labels),
        total=sum(table.num_rows for table in tables.values()),
        classes=labels.classes,
        has_splits=bool(columns["split"]) or "" not in tables,
        origin=root.name,
    )


def _table(folder: Path) -> Any:
    import pyarrow as pa

    state = read_json(folder / "state.json")
    fence = Fence(folder)

    def load(field: str) -> Any:
        names = [str(entry["filename"]) for entry in state.get(field) or []]
        return [_arrow(fence.path(name, str(folder / "state.json"))) for name in names]

    try:
        files = load("_data_files")
        if not files:
            raise UserError(expected="Arrow files", found="none", where=str(folder / "state.json"))
        table = pa.concat_tables(files)
        indices = load("_indices_files")
        return table.take(pa.concat_tables(indices)["indices"]) if indices else table
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(expected="readable Arrow files", found=str(error), where=str(folder)) from error


def _arrow(path: Path) -> Any:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()


def _class_names(folder: Path, column: str) -> Classes | None:
    path = folder / "dataset_info.json"
    features = read_json(path).get("features") if path.is_file() else None
    names = features.get(column, {}).get("names") if isinstance(features, dict) and column else None
    return Classes(names=tuple(map(str, names)), templates=("a photo of a {c}.",)) if names else None


def _records(
    tables: dict[str, Any], image: str, columns: dict[str, str], labels: LabelNames
) -> Iterator[Record | Skipped]:
    number = 0
    for split, table in tables.items():
        for batch in table.to_batches(max_chunksize=256):
            for row in batch.to_pylist():
                record = record_of(row, number, image, columns, labels)
                number += 1
                yield _in_split(record, split) if isinstance(record, Record) and split else record


def _in_split(record: Record, split: str) -> Record:
    return replace(record, split=split)
