"""Import a Hugging Face data set by its id, through the package `datasets`: needs a network, or a filled cache.

    hf:ORG/NAME[/CONFIG][@REVISION][#SPLIT]      hf:nlphuji/flickr30k@main#test[:1000]

CONFIG, REVISION and SPLIT are what `datasets.load_dataset` takes. Without #SPLIT all splits come under their names;
with it, the rows are split by their ids, as of a source that has no splits. Images are taken as the bytes that are
stored. No code of a data set is run.
"""

import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import MissingExtraError, UserError
from pipeline.extract.datasets.from_image_parquet import record_of
from pipeline.extract.datasets.labels import LabelNames
from pipeline.extract.datasets.options import ImportOptions, find_column
from pipeline.extract.datasets.record import Classes, Record, Skipped, Source

PREFIX = "hf:"
_ID = re.compile(
    r"(?P<path>[\w.-]+(?:/[\w.-]+)?)(?:/(?P<config>[^/@#]+))?(?:@(?P<revision>[^@#]+))?(?:#(?P<split>[^#]+))?", re.ASCII
)


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


def recognises(source: str) -> bool:
    """Tell whether the source is an id."""
    return source.startswith(PREFIX)


def read(source: str, options: ImportOptions) -> Source:
    """Load the data set and open it.

    Raises:
        MissingExtraError: The package `datasets` is not installed.
        UserError: It cannot be loaded (no network, no such id), or has no column of images.
    """
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
    columns = {field: find_column(options, field, list(features), source) for field in ("caption", "label", "split")}
    labels = LabelNames(_class_names(features.get(columns["label"])), source)
    tables = {split: table.cast_column(image, library.Image(decode=False)) for split, table in tables.items()}
    info = next(iter(tables.values())).info
    return Source(
        records=_records(tables, image, columns, labels, _cache(library)),
        total=sum(table.num_rows for table in tables.values()),
        classes=labels.classes,
        has_splits=bool(columns["split"]) or "" not in tables,
        origin=source,
        licence=str(getattr(info, "license", "") or ""),
    )


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


def _class_names(feature: Any) -> Classes | None:
    names = getattr(feature, "names", None)
    return Classes(names=tuple(map(str, names)), templates=("a photo of a {c}.",)) if names else None


def _cache(library: Any) -> list[Path]:
    """Return the folders that the library unpacks images into; nothing else is read for a path in a row."""
    config = getattr(library, "config", None)
    places = [getattr(config, name, None) for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE")]
    home = getattr(config, "HF_CACHE_HOME", None)
    places.append(Path(home) / "hub" if home else None)
    return [Path(place).resolve() for place in places if place]


def _records(
    tables: Mapping[str, Any], image: str, columns: dict[str, str], labels: LabelNames, cache: list[Path]
) -> Iterator[Record | Skipped]:
    number = 0
    for split, table in tables.items():
        for row in table:
            record = record_of({**row, image: _with_bytes(row[image], cache)}, number, image, columns, labels)
            number += 1
            yield replace(record, split=split) if isinstance(record, Record) and split else record


def _with_bytes(value: Any, cache: list[Path]) -> Any:
    """Return an image's {bytes, path}, read from the library's cache where the row carries a path alone."""
    path = value.get("path") if isinstance(value, dict) and value.get("bytes") is None else None
    if not path:
        return value
    real = Path(path).resolve()
    known = any(real.is_relative_to(place) for place in cache) and real.is_file()
    return {"path": path, "bytes": real.read_bytes() if known else None}
