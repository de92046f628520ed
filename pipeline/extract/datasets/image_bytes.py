"""Import images that come as bytes: Parquet, and data sets of Hugging Face, saved or by their id.

- Parquet with a column of bytes, or of {bytes, path} as Hugging Face writes it, with `classes.json` beside it for
  integer labels: a file, or a folder with one or more `*.parquet`.
- A folder of Arrow files as `save_to_disk` makes it, or one such folder a split. pyarrow reads them: the package
  `datasets` is not needed, nothing is fetched, and no code of the data set is run.
- An id, through the package `datasets`: needs a network, or a filled cache.

      hf:ORG/NAME[/CONFIG][@REVISION][#SPLIT]      hf:nlphuji/flickr30k@main#test[:1000]

  CONFIG, REVISION and SPLIT are what `datasets.load_dataset` takes. Without #SPLIT all splits come under their names;
  with it, the rows are split by their ids, as of a source that has no splits.
"""

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import MissingExtraError, UserError
from pipeline.extract.datasets.layout import Classes, read_json
from pipeline.extract.datasets.records import ImportOptions, LabelNames, Record, Records, Skipped, find_column
from pipeline.extract.datasets.tables import Fence, open_parquet


@dataclass(frozen=True)
class _Columns:
    """Which columns of a table that carries images' bytes hold what."""

    image: str
    others: dict[str, str | None]
    """`caption`, `label` and `split` → column, or None."""
    labels: LabelNames

    @classmethod
    def find(cls, options: ImportOptions, image: str, names: list[str], where: str) -> "_Columns":
        """Find the columns of a table by their names; labels are kept as they are written."""
        if image not in names:
            raise UserError(expected="a column of image bytes", found=", ".join(names), where=where)
        others = {field: find_column(options, field, names, where) or None for field in ("caption", "label", "split")}
        return cls(image, others, LabelNames(None, where))

    def named(self, classes: Iterable[object] | None) -> "_Columns":
        """Return the columns with labels that are numbers of these classes."""
        known = Classes(names=tuple(map(str, classes)), templates=("a photo of a {c}.",)) if classes else None
        return replace(self, labels=LabelNames(known, self.labels.where))

    def records(
        self, rows: Mapping[str, Iterable[dict[str, Any]]], *, total: int, origin: str, licence: str = ""
    ) -> Records:
        """Return the records of split → rows; the split without a name has none."""
        return Records(
            records=self._records(rows),
            total=total,
            classes=self.labels.classes,
            has_splits=bool(self.others["split"]) or "" not in rows,
            origin=origin,
            licence=licence,
        )

    def _records(self, rows: Mapping[str, Iterable[dict[str, Any]]]) -> Iterator[Record | Skipped]:
        numbered = enumerate((split, row) for split, some in rows.items() for row in some)
        for number, (split, row) in numbered:
            record = self._record(row, number)
            yield replace(record, split=split) if isinstance(record, Record) and split else record

    def _record(self, row: Mapping[Any, Any], number: int) -> Record | Skipped:
        """Make a record of a row; its id is the row's number over all files, with the path's stem where known."""
        value = row[self.image]
        path = str(row.get("source_path") or row.get("path") or "")
        if isinstance(value, dict):
            path, value = str(value.get("path") or path), value.get("bytes")
        image_id = f"{number:06d}-{Path(path).stem}" if path else f"{number:06d}"
        if value is None:
            return Skipped(image_id, "the row carries no image bytes")
        caption = row.get(self.others["caption"])
        captions = caption if isinstance(caption, list) else [] if caption is None else [caption]
        label = self.labels.of(row.get(self.others["label"]))
        return Record(
            image_id=image_id,
            source=value,
            name=f"{label}/{image_id}" if label else image_id,
            split=str(row.get(self.others["split"]) or ""),
            label=label,
            captions=tuple(map(str, captions)),
        )


# ---- Parquet ---------------------------------------------------------------------------------------------------------


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


def _parquets(source: str) -> list[Path]:
    path = Path(source)
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.suffix.lower() == ".parquet" else []


def recognises_parquet(source: str) -> bool:
    """Tell whether the source is Parquet with a column of image bytes."""
    files = _parquets(source)
    if not files or not files[0].is_file():
        return False
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return bool(image_column(pq.read_schema(files[0])))
    except (pa.ArrowException, OSError):
        return False


def read_parquet(source: str, options: ImportOptions) -> Records:
    """Open the Parquet files.

    Raises:
        UserError: No Parquet, no column of image bytes, or a label that classes.json does not know.
    """
    files = _parquets(source)
    if not files:
        raise UserError(expected="Parquet with image bytes", found="none", where=source)
    schema = open_parquet(files[0]).schema_arrow
    columns = _Columns.find(options, options.filepath or image_column(schema), schema.names, str(files[0]))
    found = replace(columns, labels=LabelNames.beside(files[0]))
    total = sum(open_parquet(path).metadata.num_rows for path in files)
    return found.records({"": _parquet_rows(files)}, total=total, origin=files[0].name)


def _parquet_rows(files: list[Path]) -> Iterator[dict[str, Any]]:
    for path in files:
        with open_parquet(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()


# ---- Hugging Face ----------------------------------------------------------------------------------------------------

PREFIX = "hf:"
_ID = re.compile(
    r"(?P<path>[\w.-]+(?:/[\w.-]+)?)(?:/(?P<config>[^/@#]+))?(?:@(?P<revision>[^@#]+))?(?:#(?P<split>[^#]+))?", re.ASCII
)


def recognises_hugging_face(source: str) -> bool:
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
        names = list(map(str, read_json(root / "dataset_dict.json").get("splits") or []))
        fence = Fence(root)
        folders = {name: fence.path(name, str(root / "dataset_dict.json")) for name in names}
    if not folders or not all((folder / "state.json").is_file() for folder in folders.values()):
        raise UserError(expected="a folder made by save_to_disk (state.json)", found="none", where=source)
    tables = {split: _saved_table(folder) for split, folder in folders.items()}
    schema = next(iter(tables.values())).schema
    columns = _Columns.find(options, options.filepath or image_column(schema), schema.names, source)
    about = next(iter(folders.values())) / "dataset_info.json"
    features = read_json(about).get("features") if about.is_file() else None
    feature = features.get(columns.others["label"]) if isinstance(features, dict) else None
    classes = feature.get("names") if isinstance(feature, dict) else None
    rows = {
        split: (row for batch in table.to_batches(max_chunksize=256) for row in batch.to_pylist())
        for split, table in tables.items()
    }
    total = sum(table.num_rows for table in tables.values())
    return columns.named(classes).records(rows, total=total, origin=root.name)


def _saved_table(folder: Path) -> Any:
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


@dataclass(frozen=True)
class HubId:
    """A parsed id, as `datasets.load_dataset` takes it."""

    path: str
    """ORG/NAME, or NAME alone for the oldest sets."""
    config: str | None = None
    """One of the set's configurations."""
    revision: str | None = None
    """Branch, tag or commit."""
    split: str | None = None
    """A split, such as `test` or `train[:1000]`."""


def parse_id(source: str) -> HubId:
    """Cut `hf:ORG/NAME[/CONFIG][@REVISION][#SPLIT]` into its parts.

    Raises:
        UserError: It is not of that form.
    """
    match = _ID.fullmatch(source.removeprefix(PREFIX))
    if not match or ".." in match["path"]:
        raise UserError(expected="hf:ORG/NAME[/CONFIG][@REVISION][#SPLIT]", found=repr(source), where="the source")
    return HubId(**match.groupdict())


def _read_hub(source: str, options: ImportOptions) -> Records:
    name = parse_id(source)
    library = _library()
    try:
        loaded = library.load_dataset(name.path, name=name.config, revision=name.revision, split=name.split)
    except Exception as error:  # the library raises some fifty kinds, its own and those of what it is made of
        raise UserError(
            expected=f"the data set {name.path}",
            found=_first_line(error),
            where=source,
            remedy="check id and network; or save it elsewhere with save_to_disk and import that folder",
        ) from error
    tables = dict(loaded) if isinstance(loaded, Mapping) else {"": loaded}
    features = next(iter(tables.values())).features
    image = options.filepath or next((key for key, kind in features.items() if isinstance(kind, library.Image)), "")
    if not isinstance(features.get(image), library.Image):
        raise UserError(expected="a column of images", found=", ".join(features), where=source)
    tables = {split: table.cast_column(image, library.Image(decode=False)) for split, table in tables.items()}
    cache = _cache(library)
    rows = {split: ({**row, image: _with_bytes(row[image], cache)} for row in table) for split, table in tables.items()}
    total = sum(table.num_rows for table in tables.values())
    licence = str(getattr(next(iter(tables.values())).info, "license", "") or "")
    columns = _Columns.find(options, image, list(features), source)
    names = getattr(features.get(columns.others["label"]), "names", None)
    return columns.named(names).records(rows, total=total, origin=source, licence=licence)


def _library() -> Any:
    try:
        return importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise MissingExtraError("datasets", "pip install datasets", "loads Hugging Face data sets by id") from error


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


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
