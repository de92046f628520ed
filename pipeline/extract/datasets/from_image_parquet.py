"""Import Parquet files that carry the images' bytes, with `classes.json` beside them for integer labels.

A column of bytes, or of {bytes, path} as Hugging Face writes it. The file, or a folder with one or more `*.parquet`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.extract.datasets.labels import LabelNames
from pipeline.extract.datasets.options import ImportOptions, find_column
from pipeline.extract.datasets.record import Record, Skipped, Source
from pipeline.extract.datasets.table import open_parquet


def image_column(schema: Any) -> str:
    """Return the first column of bytes, or of a struct with a field `bytes`; empty where there is none."""
    import pyarrow as pa

    for field in schema:
        kind = field.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return str(field.name)
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return str(field.name)
    return ""


def _files(source: str) -> list[Path]:
    path = Path(source)
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.suffix.lower() == ".parquet" else []


def recognises(source: str) -> bool:
    """Tell whether the source is Parquet with a column of image bytes."""
    files = _files(source)
    if not files or not files[0].is_file():
        return False
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return bool(image_column(pq.read_schema(files[0])))
    except (pa.ArrowException, OSError):
        return False


def read(source: str, options: ImportOptions) -> Source:
    """Open the Parquet files.

    Raises:
        UserError: No Parquet, no column of image bytes, or a label that classes.json does not know.
    """
    files = _files(source)
    if not files:
        raise UserError(expected="Parquet with image bytes", found="none", where=source)
    schema, where = open_parquet(files[0]).schema_arrow, str(files[0])
    image = options.filepath or image_column(schema)
    if image not in schema.names:
        raise UserError(expected="a column of image bytes", found=", ".join(schema.names), where=where)
    columns = {field: find_column(options, field, schema.names, where) for field in ("caption", "label", "split")}
    labels = LabelNames.beside(files[0])
    total = sum(open_parquet(path).metadata.num_rows for path in files)
    records = _records(files, image, columns, labels)
    return Source(
        records=records, total=total, classes=labels.classes, has_splits=bool(columns["split"]), origin=files[0].name
    )


def _records(files: list[Path], image: str, columns: dict[str, str], labels: LabelNames) -> Iterator[Record | Skipped]:
    number = 0
    for path in files:
        with open_parquet(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    yield record_of(row, number, image, columns, labels)
                    number += 1


def record_of(
    row: dict[str, Any], number: int, image: str, columns: dict[str, str], labels: LabelNames
) -> Record | Skipped:
    """Make a record of a row that carries image bytes; ids are the row's number, with the path's stem where known.

    Args:
        row: Column → value.
        number: Which row, counted over all files.
        image: Column of the bytes.
        columns: `caption`, `label` and `split` → column, or an empty name.
        labels: Class names.
    """
    value = row[image]
    path = str(row.get("source_path") or row.get("path") or "")
    if isinstance(value, dict):
        path, value = str(value.get("path") or path), value.get("bytes")
    image_id = f"{number:06d}-{Path(path).stem}" if path else f"{number:06d}"
    if value is None:
        return Skipped(image_id, "the row carries no image bytes")
    caption = row.get(columns["caption"]) if columns["caption"] else None
    captions = caption if isinstance(caption, list) else [] if caption is None else [caption]
    label = labels.of(row.get(columns["label"])) if columns["label"] else ""
    return Record(
        image_id=image_id,
        source=value,
        name=f"{label}/{image_id}" if label else image_id,
        split=str(row.get(columns["split"]) or "") if columns["split"] else "",
        label=label,
        captions=tuple(map(str, captions)),
    )
