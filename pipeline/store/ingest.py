"""Make a store of vectors that something else computed: npy + ids, or Parquet with ids and vectors."""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import KeyMismatchError, UserError
from pipeline.files import json_digest
from pipeline.store.digests import ids_digest
from pipeline.store.dtypes import DTYPES
from pipeline.store.formats.base import Features
from pipeline.store.key import FeatureKey
from pipeline.store.manifest import Header, Manifest
from pipeline.store.replace import replace_store
from pipeline.store.samples import COLUMNS, Samples
from pipeline.store.writer import StoreWriter

_ENDINGS = ".npy or .parquet"
_BLOCK_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """What to take in, and as what.

    Args:
        vectors: npy [N, D], or Parquet with one list column of vectors.
        out: The store to make.
        modality: "image" or "text".
        ids: For npy: .txt (an id a line), .json (a list), or .csv with sample_id and any of image_id, split, label,
            content. For Parquet: not needed; the columns of those names are taken.
        column: For Parquet: the column of vectors; "" = the only list column.
        layer: Name of the layer in the store.
        shard_rows: Rows in a shard.
        file_format: "hdf5" or "parquet".
        replace: Throw away a store of something else at `out`, once all that is to be taken in has been checked.
    """

    vectors: Path
    out: Path
    modality: str
    ids: Path | None = None
    column: str = ""
    layer: str = "output"
    shard_rows: int = 65536
    file_format: str = "hdf5"
    replace: bool = False


def ingest(config: IngestConfig) -> Manifest:
    """Write a store whose key says family "ingested" and the digest of ids and vectors.

    An image id that is not given is the sample id, for captions without "#<number>" at its end.

    Raises:
        UserError: The vectors are no [N, D] floats, ids are missing, too few or doubled, or it is another kind of file.
        KeyMismatchError: The folder holds a store of something else.
        PipelineError: Writing failed.
    """
    if not config.vectors.is_file():
        raise UserError(expected=f"a file of vectors ({_ENDINGS})", found="no such file", where=str(config.vectors))
    if config.vectors.suffix == ".npy":
        values, columns = _read_npy(config.vectors), _read_ids(config)
    elif config.vectors.suffix == ".parquet":
        values, columns = _read_parquet(config)
    else:
        raise UserError(expected=_ENDINGS, found=config.vectors.suffix or "no ending", where=str(config.vectors))
    samples = _samples(columns, config)
    _check(values, samples, config)
    return _write(config, values, samples)


def _write(config: IngestConfig, values: Features, samples: Samples) -> Manifest:
    digest = json_digest([ids_digest(samples.sample_id), _sha256(values), list(values.shape), values.dtype.name])
    key = FeatureKey(
        modality=config.modality,
        dataset_digest=digest,
        encoder={"family": "ingested", "content": digest},
        preprocessing={},
        pooling="none",
        compute_dtype=values.dtype.name,
        storage_dtype=values.dtype.name,
    )
    header = Header(
        key=key,
        items=len(samples),
        shard_rows=config.shard_rows,
        file_format=config.file_format,
        layer_names=(config.layer,),
    )
    try:
        writer = StoreWriter(config.out, header)
    except KeyMismatchError:
        if not config.replace:
            raise
        replace_store(config.out)
        writer = StoreWriter(config.out, header)
    for shard in writer.work([config.layer]):
        rows = slice(shard.start, shard.stop)
        writer.commit(shard, samples.sample_id[rows], {config.layer: values[rows]})
    return writer.finish(samples, {"spec": "ingested", "source": config.vectors.name})


def _sha256(values: Features) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(values), _BLOCK_ROWS):
        digest.update(np.ascontiguousarray(values[start : start + _BLOCK_ROWS]).data)
    return digest.hexdigest()


def _read_npy(path: Path) -> Features:
    try:
        values: Features = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:  # numpy's own words advise to load pickles
        found = "Python objects or a damaged file"
        raise UserError(expected="an npy array", found=found, where=str(path)) from error
    return values


def _read_ids(config: IngestConfig) -> dict[str, list[str]]:
    path = config.ids
    if path is None or not path.is_file():
        found = "no --ids" if path is None else "no such file"
        raise UserError(expected="a file of ids (.txt, .json or .csv)", found=found, where=str(path or config.vectors))
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return {"sample_id": [str(name) for name in json.loads(text)]}
        if path.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(text, newline=""), restval=""))
            return {name: [row[name] for row in rows] for name in COLUMNS if rows and name in rows[0]}
    except (ValueError, TypeError) as error:
        raise UserError(expected="a file of ids", found=" ".join(str(error).split()), where=str(path)) from error
    return {"sample_id": text.splitlines()}


def _read_parquet(config: IngestConfig) -> tuple[Features, dict[str, list[str]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(config.vectors).read()
    except pa.ArrowException as error:
        found = " ".join(str(error).split())
        raise UserError(expected="a Parquet file", found=found, where=str(config.vectors)) from error
    names = [field.name for field in table.schema if _is_list(field.type)]
    if config.column not in names and (config.column or len(names) != 1):
        raise UserError(
            expected=f"the column {config.column!r} of vectors" if config.column else "one list column of vectors",
            found=f"list columns {', '.join(names) or 'none'}",
            where=str(config.vectors),
            remedy="name it with --column",
        )
    column = table.column(config.column or names[0])
    known = [name for name in COLUMNS if name in table.column_names and name != (config.column or names[0])]
    return _vectors(column, config.vectors), {name: _texts(table.column(name)) for name in known}


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _vectors(column: Any, path: Path) -> Features:
    import pyarrow.compute as pc

    widths = pc.unique(pc.list_value_length(column)).to_pylist()
    if len(widths) != 1 or not widths[0]:
        raise UserError(expected="vectors of one width, none missing", found=f"widths {widths[:5]}", where=str(path))
    return np.asarray(pc.list_flatten(column).to_numpy()).reshape(len(column), widths[0])


def _texts(column: Any) -> list[str]:
    return ["" if value is None else str(value) for value in column.to_pylist()]


def _samples(columns: dict[str, list[str]], config: IngestConfig) -> Samples:
    ids = columns.get("sample_id")
    if ids is None:
        where = str(config.ids or config.vectors)
        raise UserError(expected="a column sample_id", found=", ".join(columns) or "none", where=where)
    image_ids = columns.get("image_id") or [_image_id(name, config.modality) for name in ids]
    blank = [""] * len(ids)
    return Samples(ids, image_ids, *(columns.get(name, blank) for name in COLUMNS[2:]))


def _image_id(sample_id: str, modality: str) -> str:
    stem, mark, number = sample_id.rpartition("#")
    return stem if modality == "text" and mark and number.isdecimal() else sample_id


def _check(values: Features, samples: Samples, config: IngestConfig) -> None:
    known: Sequence[str] = [
        name for name, dtype in DTYPES.items() if dtype.numpy == values.dtype and name != "bfloat16"
    ]
    if values.ndim != 2 or not known or not values.shape[1]:
        raise UserError(
            expected="vectors [N, D] in float16, float32 or float64",
            found=f"{list(values.shape)} in {values.dtype}",
            where=str(config.vectors),
        )
    if len(values) != len(samples) or not len(samples):
        found = f"{len(samples)} ids for {len(values)} vectors"
        raise UserError(expected="one id for each vector", found=found, where=str(config.ids or config.vectors))
    twice = [name for name, times in Counter(samples.sample_id).items() if times > 1]
    if twice:
        found = f"{twice[0]!r} twice"
        raise UserError(expected="every sample id once", found=found, where=str(config.ids or config.vectors))
