"""Stores and other programs: vectors that something else computed come in, features go out in layouts that others read.

In: npy + ids, or Parquet with ids and vectors. Out: npy, safetensors, Parquet with list columns, or clip-retrieval's
layout (img_emb/, text_emb/ and metadata/, row by row the same pairs). A file is written whole or not at all.
"""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import KeyMismatchError, UnknownNameError, UserError
from pipeline.files import canonical, json_digest, publish, sync_folder
from pipeline.storage.contract import Place
from pipeline.storage.local import temp_file, writing
from pipeline.storage.open import open_storage
from pipeline.store.cleaning import replace_store
from pipeline.store.formats.base import DTYPES, Features
from pipeline.store.formats.hdf5 import escape
from pipeline.store.key import FeatureKey
from pipeline.store.manifest import Header, Manifest, ids_digest
from pipeline.store.reader import FeatureStore
from pipeline.store.samples import COLUMNS, Samples, join
from pipeline.store.writer import StoreWriter

_ENDINGS = ".npy or .parquet"
_BLOCK_ROWS = 8192


# ---- in --------------------------------------------------------------------------------------------------------------


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
    out: Place
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


# ---- out -------------------------------------------------------------------------------------------------------------


def convert(place: Place, out: Path, to: str, *, layers: Sequence[str] = (), text: Place | None = None) -> list[Path]:
    """Write a store's layers and ids in another layout; bfloat16 becomes float32, but in safetensors.

    Args:
        place: The store.
        out: Folder to write to; created.
        to: "npy" (<layer>.npy, ids.json), "safetensors" (one file of all layers, ids.json), "parquet" (one file: the
            samples' columns and one list column a layer), or "clip-retrieval" (img_emb/ or text_emb/, and metadata/).
        layers: Layers to export; none = all, or the last alone for clip-retrieval.
        text: For clip-retrieval from an image store: a text store, whose first caption of each image goes beside it.

    Returns:
        The files written.

    Raises:
        UnknownNameError: No such layout or layer.
        UserError: A store does not open, a file to write exists already, or too many layers.
        PipelineError: Writing failed.
    """
    if to not in EXPORTS:
        raise UnknownNameError("export layout", to, EXPORTS, "--to")
    store = FeatureStore.open(place)
    for name in layers:
        store.layer(name)
    return EXPORTS[to](store, out, tuple(layers), text)


def _all(store: FeatureStore, layers: Sequence[str]) -> Sequence[str]:
    return layers or [layer.name for layer in store.layers]


def _ids(store: FeatureStore, out: Path) -> Path:
    return put_new(out / "ids.json", lambda path: path.write_bytes(canonical(store.ids)))


def _npy(store: FeatureStore, out: Path, layers: Sequence[str], _: Place | None) -> list[Path]:
    names = _all(store, layers)
    return [*(put_npy(out / f"{escape(name)}.npy", plain_values(store, name)) for name in names), _ids(store, out)]


def _safetensors(store: FeatureStore, out: Path, layers: Sequence[str], _: Place | None) -> list[Path]:
    from safetensors.torch import save_file

    about = {"content_digest": store.content_digest, "key_digest": store.key.digest()}
    tensors = {name: store.read(name) for name in _all(store, layers)}
    return [put_new(out / "features.safetensors", lambda path: save_file(tensors, path, about)), _ids(store, out)]


def _parquet(store: FeatureStore, out: Path, layers: Sequence[str], _: Place | None) -> list[Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {name: pa.array(column) for name, column in zip(COLUMNS, store.samples.columns(), strict=True)}
    for name in _all(store, layers):
        values = plain_values(store, name)
        column = f"layer:{name}" if name in COLUMNS else name
        arrays[column] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return [put_new(out / "features.parquet", lambda path: pq.write_table(pa.table(arrays), path))]


def _clip_retrieval(store: FeatureStore, out: Path, layers: Sequence[str], text: Place | None) -> list[Path]:
    if len(layers) > 1:
        raise UserError(expected="one layer for clip-retrieval", found=", ".join(layers), where="--layers")
    layer = layers[0] if layers else store.layers[-1].name
    return _paired(store, out, layer, text)


def _paired(store: FeatureStore, out: Path, layer: str, text: Place | None) -> list[Path]:
    """Write one layer of a store, and of a text store beside an image store if one is named (its last layer).

    With two stores a row is an image that has captions and the first of them.

    Raises:
        UserError: A second store of the wrong modality, or a file to write exists already.
    """
    if text is None:
        column = "image_path" if store.key.modality == "image" else "caption"
        metadata = {"sample_id": store.ids, column: store.samples.content}
        return [_embeddings(store, out, layer, None), _metadata(out, metadata)]
    captions = FeatureStore.open(text)
    if (store.key.modality, captions.key.modality) != ("image", "text"):
        found = f"{store.key.modality} and {captions.key.modality}"
        raise UserError(expected="an image store and a text store", found=found, where=str(text))
    pairs = join(store.samples, captions.samples)
    images, first = np.unique(pairs.caption_image, return_index=True)
    image_rows, text_rows = pairs.image_rows[images], pairs.caption_rows[first]
    seen, said = store.samples.take(image_rows.tolist()), captions.samples.take(text_rows.tolist())
    return [
        _embeddings(store, out, layer, image_rows),
        _embeddings(captions, out, captions.layers[-1].name, text_rows),
        _metadata(out, {"sample_id": seen.sample_id, "image_path": seen.content, "caption": said.content}),
    ]


def _embeddings(store: FeatureStore, out: Path, layer: str, rows: Any) -> Path:
    values = plain_values(store, layer)
    name = "img_emb" if store.key.modality == "image" else "text_emb"
    return put_npy(out / name / f"{name}_0.npy", values if rows is None else values[rows])


def _metadata(out: Path, columns: dict[str, list[str]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(columns)
    return put_new(out / "metadata" / "metadata_0.parquet", lambda path: pq.write_table(table, path))


def plain_values(store: FeatureStore, layer: str) -> Features:
    """Read a layer [N, D] in a type that numpy knows: bfloat16 becomes float32."""
    values = store.numpy(layer)
    if store.layer(layer).dtype != "bfloat16":
        return values
    return (values.astype(np.uint32) << 16).view(np.float32)


def put_new(target: Path, write: Callable[[Path], object]) -> Path:
    """Write a file that must not be there yet, whole or not at all, and return its path.

    Raises:
        UserError: It is there.
        PipelineError: Writing failed.
    """
    if target.exists():
        raise UserError(expected="a new file", found=f"{target.name} exists", where=str(target.parent))
    with writing(open_storage(target.parent), target.name):
        target.parent.mkdir(parents=True, exist_ok=True)
        with temp_file(target) as temp:
            write(temp)
            publish(temp, target)
            sync_folder(target.parent)
    return target


def put_npy(target: Path, values: Features) -> Path:
    """Write an array as a new npy file and return its path; errors as for `put_new`."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, values, allow_pickle=False)

    return put_new(target, write)


EXPORTS: dict[str, Callable[[FeatureStore, Path, Sequence[str], Place | None], list[Path]]] = {
    "npy": _npy,
    "safetensors": _safetensors,
    "parquet": _parquet,
    "clip-retrieval": _clip_retrieval,
}
