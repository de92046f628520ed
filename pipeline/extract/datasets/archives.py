"""Tables that carry the images' bytes: Parquet, data sets of Hugging Face. Nothing is unpacked. Tars: `tars`.

- Parquet with a column of bytes, or of {bytes, path} as Hugging Face writes it: a file, or a folder with one or more
  `*.parquet`, also in `data/` or in folders named as splits. Names of files say the splits (`train-00000-of-00002`), if
  no column does. Integer labels are named by `classes.json` beside the files or by the schema's own metadata.
- A folder of Arrow files as `save_to_disk` makes it, or one such folder a split. pyarrow reads them: the package
  `datasets` is not needed, nothing is fetched, and no code of the data set is run.
- An id, through the package `datasets`: needs a network, or a filled cache.

      hf:ORG/NAME[/CONFIG][@REVISION][#SPLIT]      hf:nlphuji/flickr30k@main#test[:1000]

  CONFIG, REVISION and SPLIT are what `datasets.load_dataset` takes. Without #SPLIT all splits come under their names;
  with it, the rows are split by their ids, as of a source that has no splits.
"""

import importlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.errors import MissingExtraError, UserError, machine_error
from pipeline.extract.datasets.classes import Classes, classes_beside
from pipeline.extract.datasets.layout import Fence
from pipeline.extract.datasets.records import (
    SPLIT_NAMES,
    Columns,
    ImportOptions,
    Record,
    Records,
    Skipped,
)
from pipeline.files import one_line, read_json
from pipeline.words import shortened

Tables = Mapping[str, Iterable[Mapping[str, Any]]]
"""Split → rows; the split without a name has none."""


_PATHS = ("source_path", "path")
"""Columns that say where an image came from."""


def _records(tables: Tables, columns: Columns, **about: Any) -> Records:
    """Return the records of tables whose rows carry an image's bytes; `about` are fields of `Records`."""
    rows = ((split, row) for split, some in tables.items() for row in some)
    read = {"labels": f"{columns.say()['labels']}, {len(columns.classes.names)} names"} if columns.classes else {}
    unread = tuple(name for name in columns.unread if name not in _PATHS)
    by_name = {"splits": "splits by name"} if "" not in tables and not columns.split else {}
    return Records(
        records=(record for number, (split, row) in enumerate(rows) for record in _record(number, split, row, columns)),
        classes=columns.classes,
        has_splits=bool(columns.split) or "" not in tables,
        columns=replace(columns, unread=unread),
        read=by_name | (read if columns.label else {}),
        **about,
    )


def _record(number: int, split: str, row: Mapping[str, Any], columns: Columns) -> Iterator[Record | Skipped]:
    """Make a record of a row; its id is the row's number over all files, with the path's stem where known.

    What a column says of the split comes before the split that the row lies in: some put all three into one file.
    """
    value = row[columns.filepath]
    path = str(next(filter(None, map(row.get, _PATHS)), ""))
    if isinstance(value, dict):
        path, value = str(value.get("path") or path), value.get("bytes")
    image_id = f"{number:06d}-{Path(path).stem}" if path else f"{number:06d}"
    if not isinstance(value, bytes):  # a text would be a path of this machine that the file chose
        yield Skipped(image_id, "the row carries no image bytes")
        return
    stated: dict[str, Any] = {"split": split} if split and not columns.value(row, "split") else {}
    label = columns.value(row, "label")
    if isinstance(label, list):
        if len(label) > 1:
            yield Skipped(f"{image_id}: labels", f"{len(label)} labels, and an image has one: it is kept without")
        stated["label"] = label[0] if len(label) == 1 else None
    record = columns.record(row, image_id, value, **stated)
    yield replace(record, name=f"{record.label}/{image_id}") if record.label else record


def _columns(options: ImportOptions, schema: Any, where: str, classes: Classes | None = None) -> Columns:
    """Find the columns of a schema of pyarrow; where the user does not say, the first column of bytes is the image."""
    image = options.filepath or _image_column(schema)
    if image not in schema.names:
        raise UserError(expected="a column of image bytes", found=shortened(schema.names) or "none", where=where)
    columns = Columns.find(replace(options, filepath=image), schema.names, where, classes)
    return columns if classes else replace(columns, classes=_classes(_features(schema, where).get(columns.label)))


def _features(schema: Any, where: str) -> Mapping[str, Any]:
    """Return column → feature, as the package `datasets` writes them into a schema; empty where it did not."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = about.get("info", {}).get("features", {})
        if isinstance(features, list):  # as in a data set's card
            features = {str(feature["name"]): feature.get("dtype") or feature for feature in features}
        return dict(features)
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise UserError(
            expected="features in the metadata 'huggingface' of the schema", found=one_line(error), where=where
        ) from error


def _classes(feature: object) -> Classes | None:
    """Return the classes of a feature, which may be a list of them, and whose names may be numbered; None for none."""
    for _ in range(8):
        if isinstance(feature, list) and feature:
            (feature, *_) = feature
        if not isinstance(feature, Mapping):
            return None
        names = feature.get("names")
        if isinstance(names, Mapping):
            names = [names[number] for number in sorted(names, key=lambda number: (len(number), number))]
        if isinstance(names, list):
            return Classes.numbered(names) if names else None
        feature = next(
            (feature[key] for key in ("feature", "class_label", "sequence", "dtype") if key in feature), None
        )
    return None


# ---- Parquet ---------------------------------------------------------------------------------------------------------


def open_parquet(path: Path) -> Any:
    """Open a Parquet file; a `UserError` says that it is not there, or is none."""
    import pyarrow.parquet as pq

    with _readable("a Parquet file", path):
        return pq.ParquetFile(path)


def parquet_rows(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Yield the rows of Parquet files, a batch in memory at a time.

    Raises:
        UserError: One is damaged.
    """
    for path in files:
        with open_parquet(path) as file:
            yield from _rows(file.iter_batches(batch_size=256), path)


def _rows(batches: Iterable[Any], path: Path) -> Iterator[dict[str, Any]]:
    with _readable("sound rows of Parquet or Arrow", path):
        for batch in batches:
            yield from batch.to_pylist()


@contextmanager
def _readable(what: str, path: Path) -> Iterator[None]:
    """Let what pyarrow says of damaged data be one sentence."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError, SystemError) as error:  # the last: a text of negative length
        damaged = UserError(expected=what, found=one_line(error), where=str(path))
        raise machine_error(error, str(path)) or damaged from error


def _image_column(schema: Any) -> str:
    """Return the first column of bytes, or of a struct with a field `bytes`; empty where there is none."""
    import pyarrow as pa

    for field in schema:
        kind = field.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return str(field.name)
    return ""


def _parquets(source: str) -> dict[str, list[Path]]:
    """Return split → files; a split without a name has those of a single file, and of a folder that names none."""
    root = Path(source)
    if not root.is_dir():
        return {"": [root]} if root.suffix.lower() == ".parquet" else {}
    files = sorted(root.glob("*.parquet"))
    if not files:
        inner = (*SPLIT_NAMES, "data")
        files = sorted(path for path in root.glob("*/*.parquet") if path.parent.name.lower() in inner)
    named = {path: _split_of(path) for path in files}
    if not any(name.lower() in SPLIT_NAMES for name in named.values()):
        return {"": files} if files else {}
    return {split: [path for path in files if named[path] == split] for split in dict.fromkeys(named.values())}


def _split_of(path: Path) -> str:
    """Return what a file's name says before its number (`train-00000-of-00002`), or else its folder's name."""
    name = re.split(r"-\d{5}-of-\d{5}|[-_.]?\d+$", path.stem)[0] or path.stem
    folder = path.parent.name
    return folder if folder.lower() in SPLIT_NAMES and name.lower() not in SPLIT_NAMES else name


def _first(files: Mapping[str, list[Path]]) -> Path:
    return next(iter(files.values()))[0]


def is_image_parquet(source: str) -> bool:
    """Tell whether the source is Parquet with a column of image bytes."""
    files = _parquets(source)
    try:
        return bool(files) and bool(_image_column(open_parquet(_first(files)).schema_arrow))
    except UserError:
        return False


def read_image_parquet(source: str, options: ImportOptions) -> Records:
    """Open the Parquet files.

    Raises:
        UserError: No Parquet, no column of image bytes, another schema in one of several files, or a label of no class.
    """
    files = _parquets(source)
    if not files:
        raise UserError(expected="Parquet with image bytes", found="none", where=source)
    first = _first(files)
    columns = _columns(options, open_parquet(first).schema_arrow, str(first), classes_beside(first))
    total = 0
    for path in (path for some in files.values() for path in some):
        file = open_parquet(path)
        total += file.metadata.num_rows
        if columns.filepath not in file.schema_arrow.names:
            found = shortened(file.schema_arrow.names) or "none"
            raise UserError(
                expected=f"the column {columns.filepath!r}, as in {first.name}", found=found, where=str(path)
            )
    rows = {split: parquet_rows(some) for split, some in files.items()}
    return _records(rows, columns, total=total, origin=first.name)


# ---- Hugging Face ----------------------------------------------------------------------------------------------------

PREFIX = "hf:"
_ID = re.compile(
    r"(?P<path>[\w.-]+(?:/[\w.-]+)?)(?:/(?P<name>[^/@#]+))?(?:@(?P<revision>[^@#]+))?(?:#(?P<split>[^#]+))?", re.ASCII
)


def is_hugging_face(source: str) -> bool:
    """Tell whether the source is a folder made by `save_to_disk`, or an id."""
    path = Path(source)
    return source.startswith(PREFIX) or (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def read_hugging_face(source: str, options: ImportOptions) -> Records:
    """Open the data set.

    Raises:
        MissingExtraError: It is an id, and the package `datasets` is not installed.
        UserError: It is not such a folder, its files are damaged, it cannot be loaded by its id, or it has no images.
    """
    return _read_hub(source, options) if source.startswith(PREFIX) else _read_saved(source, options)


def _read_saved(source: str, options: ImportOptions) -> Records:
    root = Path(source)
    folders = {"": root}
    if (root / "dataset_dict.json").is_file():
        names = list(map(str, read_json(root / "dataset_dict.json", "splits").get("splits") or []))
        fence = Fence(root)
        folders = {name: fence.path(name, str(root / "dataset_dict.json")) for name in names}
    if not folders or not all((folder / "state.json").is_file() for folder in folders.values()):
        raise UserError(expected="a folder made by save_to_disk (state.json)", found="none", where=source)
    tables = {split: _saved_table(folder) for split, folder in folders.items()}
    columns = _columns(options, next(iter(tables.values())).schema, source)
    about = next(iter(folders.values())) / "dataset_info.json"
    features = read_json(about, "features").get("features") if about.is_file() else None
    classes = _classes(features.get(columns.label)) if isinstance(features, dict) else None
    columns = replace(columns, classes=classes or columns.classes)
    rows = {split: _rows(table.to_batches(max_chunksize=256), folders[split]) for split, table in tables.items()}
    total = sum(table.num_rows for table in tables.values())
    return _records(rows, columns, total=total, origin=root.name)


def _saved_table(folder: Path) -> Any:
    import pyarrow as pa

    state = read_json(folder / "state.json", "a data set")
    fence = Fence(folder)

    def load(field: str) -> list[Any]:
        entries = state.get(field) or []
        if not isinstance(entries, list) or not all(isinstance(each, dict) and "filename" in each for each in entries):
            expected, where = f'{field} as a list of {{"filename": ...}}', str(folder / "state.json")
            raise UserError(expected=expected, found=json.dumps(entries)[:80], where=where)
        return [_arrow(fence.path(str(each["filename"]), str(folder / "state.json"))) for each in entries]

    with _readable("readable Arrow files", folder):
        files = load("_data_files")
        if not files:
            raise UserError(expected="Arrow files", found="none", where=str(folder / "state.json"))
        indices = load("_indices_files")
        return pa.concat_tables(files).take(pa.concat_tables(indices).column(0)) if indices else pa.concat_tables(files)


def _arrow(path: Path) -> Any:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_stream(source).read_all()


def parse_id(source: str) -> dict[str, str | None]:
    """Return `hf:ORG/NAME[/CONFIG][@REVISION][#SPLIT]` as the arguments of `datasets.load_dataset`.

    Raises:
        UserError: It is not of that form.
    """
    match = _ID.fullmatch(source.removeprefix(PREFIX))
    if not match or ".." in match["path"]:
        raise UserError(expected="hf:ORG/NAME[/CONFIG][@REVISION][#SPLIT]", found=repr(source), where="the source")
    return match.groupdict()


def _read_hub(source: str, options: ImportOptions) -> Records:
    parts, library = parse_id(source), _library()
    try:
        loaded = library.load_dataset(**parts)
    except Exception as error:  # the library raises some fifty kinds, its own and those of what it is made of
        said, *_ = [*str(error).strip().splitlines(), ""]
        raise UserError(
            expected=f"the data set {parts['path']}",
            found=f"{type(error).__name__}: {said}" if said else type(error).__name__,
            where=source,
            remedy="check id and network; or save it elsewhere with save_to_disk and import that folder",
        ) from error
    tables = dict(loaded) if isinstance(loaded, Mapping) else {"": loaded}
    first = next(iter(tables.values()))
    image = options.filepath or next(
        (key for key, kind in first.features.items() if isinstance(kind, library.Image)), ""
    )
    if not isinstance(first.features.get(image), library.Image):
        raise UserError(expected="a column of images", found=", ".join(first.features), where=source)
    columns = Columns.find(replace(options, filepath=image), list(first.features), source)
    feature = first.features.get(columns.label)
    classes = _classes({"names": getattr(getattr(feature, "feature", feature), "names", None)})
    tables = {split: table.cast_column(image, library.Image(decode=False)) for split, table in tables.items()}
    cache = _cache(library)
    rows = {split: ({**row, image: _with_bytes(row[image], cache)} for row in table) for split, table in tables.items()}
    total = sum(table.num_rows for table in tables.values())
    licence = str(getattr(first.info, "license", "") or "")
    return _records(rows, replace(columns, classes=classes), total=total, origin=source, licence=licence)


def _library() -> Any:
    try:
        return importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise MissingExtraError("datasets", "pip install datasets", "loads Hugging Face data sets by id") from error


def _cache(library: Any) -> list[Path]:
    """Return the folders that the library unpacks images into; nothing else is read for a path in a row."""
    config = getattr(library, "config", None)
    places = [getattr(config, name, None) for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE")]
    home = getattr(config, "HF_CACHE_HOME", None)
    places.append(Path(home) / "hub" if home else None)
    return [Path(place).resolve() for place in places if place]


def _with_bytes(value: Any, cache: list[Path]) -> Any:
    """Return an image's {bytes, path}, read from the library's cache where the row carries a path alone."""
    path = value.get("path") if isinstance(value, dict) and value.get("bytes") is None else None
    if not path:
        return value
    real = Path(path).resolve()
    known = any(real.is_relative_to(place) for place in cache) and real.is_file()
    return {"path": path, "bytes": real.read_bytes() if known else None}
