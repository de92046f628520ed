"""Sources that carry the images' bytes: Parquet, data sets of Hugging Face, webdataset tars. Nothing is unpacked.

- Parquet with a column of bytes, or of {bytes, path} as Hugging Face writes it, with `classes.json` beside it for
  integer labels: a file, or a folder with one or more `*.parquet`.
- A folder of Arrow files as `save_to_disk` makes it, or one such folder a split. pyarrow reads them: the package
  `datasets` is not needed, nothing is fetched, and no code of the data set is run.
- An id, through the package `datasets`: needs a network, or a filled cache.

      hf:ORG/NAME[/CONFIG][@REVISION][#SPLIT]      hf:nlphuji/flickr30k@main#test[:1000]

  CONFIG, REVISION and SPLIT are what `datasets.load_dataset` takes. Without #SPLIT all splits come under their names;
  with it, the rows are split by their ids, as of a source that has no splits.
- Tars whose members of one stem are one sample (`key.jpg`, `key.txt`, `key.json`, `key.cls`), wherever they lie in the
  tar: one tar, a folder of tars, or a pattern with braces (`train-{0000..0012}.tar`, `{a,b}.tar`). Several tars may use
  the same stems. Members that are links, or whose names leave the folder, are refused and listed.
"""

import gzip
import importlib
import json
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pipeline.errors import MissingExtraError, UserError
from pipeline.extract.datasets.layout import Classes, Fence, classes_beside
from pipeline.extract.datasets.records import IMAGE_SUFFIXES, Columns, ImportOptions, Record, Records, Skipped
from pipeline.files import one_line, read_json

Tables = Mapping[str, Iterable[Mapping[str, Any]]]
"""Split → rows; the split without a name has none."""


def _records(tables: Tables, columns: Columns, **about: Any) -> Records:
    """Return the records of tables whose rows carry an image's bytes; `about` are fields of `Records`."""
    rows = ((split, row) for split, some in tables.items() for row in some)
    return Records(
        records=(_record(number, split, row, columns) for number, (split, row) in enumerate(rows)),
        classes=columns.classes,
        has_splits=bool(columns.split) or "" not in tables,
        columns=columns,
        **about,
    )


def _record(number: int, split: str, row: Mapping[str, Any], columns: Columns) -> Record | Skipped:
    """Make a record of a row; its id is the row's number over all files, with the path's stem where known."""
    value = row[columns.filepath]
    path = str(row.get("source_path") or row.get("path") or "")
    if isinstance(value, dict):
        path, value = str(value.get("path") or path), value.get("bytes")
    image_id = f"{number:06d}-{Path(path).stem}" if path else f"{number:06d}"
    if not isinstance(value, bytes):  # a text would be a path of this machine that the file chose
        return Skipped(image_id, "the row carries no image bytes")
    record = columns.record(row, image_id, value, **({"split": split} if split else {}))
    return replace(record, name=f"{record.label}/{image_id}") if record.label else record


def _columns(options: ImportOptions, schema: Any, where: str, classes: Classes | None = None) -> Columns:
    """Find the columns of a schema of pyarrow; where the user does not say, the first column of bytes is the image."""
    image = options.filepath or _image_column(schema)
    if image not in schema.names:
        raise UserError(expected="a column of image bytes", found=", ".join(schema.names), where=where)
    return Columns.find(replace(options, filepath=image), schema.names, where, classes)


# ---- Parquet ---------------------------------------------------------------------------------------------------------


def open_parquet(path: Path) -> Any:
    """Open a Parquet file.

    Raises:
        UserError: It is not there, or is none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(expected="a Parquet file", found=" ".join(str(error).split()), where=str(path)) from error


def parquet_rows(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Yield the rows of Parquet files, a batch in memory at a time."""
    for path in files:
        with open_parquet(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()


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


def _parquets(source: str) -> list[Path]:
    path = Path(source)
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.suffix.lower() == ".parquet" else []


def is_image_parquet(source: str) -> bool:
    """Tell whether the source is Parquet with a column of image bytes."""
    files = _parquets(source)
    try:
        return bool(files) and bool(_image_column(open_parquet(files[0]).schema_arrow))
    except UserError:
        return False


def read_image_parquet(source: str, options: ImportOptions) -> Records:
    """Open the Parquet files.

    Raises:
        UserError: No Parquet, no column of image bytes, or a label that classes.json does not know.
    """
    files = _parquets(source)
    if not files:
        raise UserError(expected="Parquet with image bytes", found="none", where=source)
    columns = _columns(options, open_parquet(files[0]).schema_arrow, str(files[0]), classes_beside(files[0]))
    total = sum(open_parquet(path).metadata.num_rows for path in files)
    return _records({"": parquet_rows(files)}, columns, total=total, origin=files[0].name)


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


def _classes(names: Iterable[object] | None) -> Classes | None:
    return Classes(names=tuple(map(str, names)), templates=("a photo of a {c}.",)) if names else None


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
    feature = features.get(columns.label) if isinstance(features, dict) else None
    classes = _classes(feature.get("names") if isinstance(feature, dict) else None)
    rows = {
        split: (row for batch in table.to_batches(max_chunksize=256) for row in batch.to_pylist())
        for split, table in tables.items()
    }
    total = sum(table.num_rows for table in tables.values())
    return _records(rows, replace(columns, classes=classes), total=total, origin=root.name)


def _saved_table(folder: Path) -> Any:
    import pyarrow as pa

    state = read_json(folder / "state.json", "a data set")
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
    classes = _classes(getattr(first.features.get(columns.label), "names", None))
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


# ---- webdataset ------------------------------------------------------------------------------------------------------

MAX_MEMBER = 256 * 2**20
"""Bytes; a larger member of a tar is refused (a compressed tar may promise any size)."""

MOST_TIMES = 100
"""A packed tar that unpacks to more than so many times its size (and a large member) would fill the disk."""

_BRACES = re.compile(r"\{([^{}]+)\}")
_ENDINGS = (".tar", ".tar.gz", ".tgz")


def expand_braces(pattern: str) -> list[str]:
    """Return the names of a pattern: `{000..012}` counts with its zeros kept, `{a,b}` lists."""
    match = _BRACES.search(pattern)
    if not match:
        return [pattern]
    first, dots, last = match[1].partition("..")
    items = match[1].split(",")
    if dots and first.isdecimal() and last.isdecimal():
        items = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return [name for item in items for name in expand_braces(pattern[: match.start()] + item + pattern[match.end() :])]


def _tars(source: str) -> list[Path]:
    if Path(source).is_dir():
        return sorted(path for path in Path(source).iterdir() if path.name.endswith(_ENDINGS))
    return [Path(name) for name in expand_braces(source)] if source.endswith(_ENDINGS) else []


def is_webdataset(source: str) -> bool:
    """Tell whether the source is a tar, a pattern of tars or a folder of tars."""
    return bool(_tars(source))


def read_webdataset(source: str, options: ImportOptions) -> Records:
    """Open the tars.

    Raises:
        UserError: A tar of the pattern is missing or is no tar.
    """
    tars = _tars(source)
    missing = [str(path) for path in tars if not path.is_file()]
    if missing or not tars:
        raise UserError(
            expected=f"{len(tars) or 'some'} tar files",
            found=f"{len(missing)} missing, such as {(missing or [source])[0]}",
            where=source,
        )
    classes = classes_beside(tars[0])
    return Records(
        records=_samples(tars, options, classes),
        classes=classes,
        has_splits=bool(options.split),
        origin=tars[0].name if len(tars) == 1 else f"{tars[0].name} and {len(tars) - 1} more",
        read={"captions": "captions from .txt or .json", "labels": "labels from .cls or .json"},
    )


def _samples(tars: list[Path], options: ImportOptions, classes: Classes | None) -> Iterator[Record | Skipped]:
    for path in tars:
        prefix = f"{_named(path)}/" if len(tars) > 1 else ""
        with _opened(path) as tar:
            stems, replaced = _by_stem(tar)
            yield from (Skipped(f"{path.name}:{name}", "a later member has the same name") for name in replaced)
            for key, members in stems.items():
                parts: dict[str, bytes] = {}
                for suffix, member in members.items():
                    problem = _problem(member)
                    file = None if problem else tar.extractfile(member)
                    if file is None:
                        yield Skipped(f"{path.name}:{member.name}", problem or "it cannot be read")
                    else:
                        parts[suffix] = file.read()
                if parts:
                    yield _sample(prefix + key, parts, options, classes)


def _named(path: Path) -> str:
    return next(path.name.removesuffix(ending) for ending in reversed(_ENDINGS) if path.name.endswith(ending))


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar for reading anywhere in it; a gzipped one is unpacked beside, which compares its checksum."""
    try:
        with ExitStack() as stack:
            file: IO[bytes] = stack.enter_context(path.open("rb"))
            magic = file.read(6)
            if magic.startswith(b"\x1f\x8b"):
                plain = stack.enter_context(tempfile.TemporaryFile())
                _unpack(path, plain)
                file = plain
            file.seek(0)
            packed_otherwise = magic.startswith((b"BZh", b"\xfd7zXZ"))
            yield stack.enter_context(tarfile.open(fileobj=file, mode="r:*" if packed_otherwise else "r:"))
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(expected="a tar file", found=one_line(error) or "none", where=str(path)) from error


def _unpack(path: Path, plain: IO[bytes]) -> None:
    most = MOST_TIMES * path.stat().st_size + MAX_MEMBER
    with gzip.open(path) as packed:
        while block := packed.read(2**20):
            plain.write(block)
            if plain.tell() > most:
                raise tarfile.ReadError(f"more than {MOST_TIMES} times its size when unpacked")


def _by_stem(tar: tarfile.TarFile) -> tuple[dict[str, dict[str, tarfile.TarInfo]], list[str]]:
    """Return stem → ending → member, the stems as they first come; and the names that a later member has again."""
    found: dict[str, dict[str, tarfile.TarInfo]] = {}
    replaced = []
    for member in tar:
        if not member.isdir():
            folder, slash, base = member.name.removeprefix("./").rpartition("/")
            stem, dot, suffix = base.partition(".")
            members, ending = found.setdefault(folder + slash + stem, {}), (dot + suffix).lower()
            replaced += [members[ending].name] if ending in members else []
            members[ending] = member
    return found, replaced


def _problem(member: tarfile.TarInfo) -> str:
    if member.name.startswith(("/", "\\")) or ".." in PurePosixPath(member.name.replace("\\", "/")).parts:
        return "the member's name leaves the folder"
    if not member.isfile():
        return "the member is a link or a device"
    return "the member is too large" if member.size > MAX_MEMBER else ""


def _sample(key: str, parts: Mapping[str, bytes], options: ImportOptions, classes: Classes | None) -> Record | Skipped:
    """Make a record of a sample's parts; what .txt and .cls say comes before the fields of .json."""
    suffix = next((name for name in parts if name in IMAGE_SUFFIXES), "")
    try:
        fields = json.loads(parts.get(".json", b"{}").decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        return Skipped(key, "its .json is not a JSON object")
    asked = (options.filepath, options.caption, options.label, options.split)  # not every sample has each column
    columns = Columns.find(options, [*fields, *filter(None, asked)], key, classes)
    text = parts.get(".txt", parts.get(".caption"))
    stated: dict[str, Any] = {"caption": lines(text)} if text is not None else {}
    if ".cls" in parts:
        stated["label"] = parts[".cls"].decode("utf-8", "surrogateescape")
    if not suffix:
        stated["label"] = None
    record = columns.record(fields, key if suffix else "", parts.get(suffix), **stated)
    if not suffix and not record.captions:
        return Skipped(key, f"neither image nor caption ({', '.join(parts)})")
    return replace(record, name=key + suffix)


def lines(text: bytes) -> list[str]:
    """Return the captions of a text file, one a line; an empty one where it has none."""
    found = re.split(r"\r\n|\n|\r", text.decode("utf-8-sig", "surrogateescape"))  # U+2028 is a letter of its caption
    return [line for line in found if line.strip()] or [""]
