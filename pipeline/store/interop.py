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
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import KeyMismatchError, UnknownNameError, UserError
from pipeline.files import canonical, json_digest, one_line, publish, sync_folder
from pipeline.storage.contract import Place
from pipeline.storage.local import temp_file, writing
from pipeline.store.cleaning import replace_store
from pipeline.store.formats import escape
from pipeline.store.key import DTYPES, FeatureKey, Features
from pipeline.store.manifest import Header, Manifest, ids_digest
from pipeline.store.reader import FeatureStore
from pipeline.store.samples import COLUMNS, Samples, join
from pipeline.store.writer import StoreWriter

_ENDINGS = ".npy or .parquet"
_BLOCK_ROWS = 8192
Columns = dict[str, list[str]]
"""Names of a table's columns → their values [N]."""


# ---- in --------------------------------------------------------------------------------------------------------------


def ingest(
    vectors: Path,
    out: Place,
    modality: str,
    *,
    ids: Path | None = None,
    column: str = "",
    layer: str = "output",
    shard_rows: int = 65536,
    file_format: str = "hdf5",
    replace: bool = False,
) -> Manifest:
    """Write a store whose key says family "ingested" and the digest of ids and vectors.

    An image id that is not given is the sample id, for captions without "#<number>" at its end.

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

    Raises:
        UserError: The vectors are no [N, D] floats, ids are missing, too few or doubled, or it is another kind of file.
        KeyMismatchError: The folder holds a store of something else.
        PipelineError: Writing failed.
    """
    values, columns = _read(vectors, ids, column)
    where = str(ids or vectors)
    samples = _samples(columns, modality, where)
    _check(values, samples, str(vectors), where)
    digest = json_digest([ids_digest(samples.sample_id), _sha256(values), list(values.shape), values.dtype.name])
    key = FeatureKey(
        modality=modality,
        dataset_digest=digest,
        encoder={"family": "ingested", "content": digest},
        preprocessing={},
        pooling="none",
        compute_dtype=values.dtype.name,
        storage_dtype=values.dtype.name,
    )
    header = Header(key=key, items=len(samples), shard_rows=shard_rows, file_format=file_format, layer_names=(layer,))
    try:
        writer = StoreWriter(out, header)
    except KeyMismatchError:
        if not replace:
            raise
        replace_store(out)
        writer = StoreWriter(out, header)
    for shard in writer.work([layer]):
        rows = slice(shard.start, shard.stop)
        writer.commit(shard, samples.sample_id[rows], {layer: values[rows]})
    return writer.finish(samples, {"spec": "ingested", "source": vectors.name})


def _sha256(values: Features) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(values), _BLOCK_ROWS):
        digest.update(np.ascontiguousarray(values[start : start + _BLOCK_ROWS]).data)
    return digest.hexdigest()


def _read(vectors: Path, ids: Path | None, column: str) -> tuple[Features, Columns]:
    if not vectors.is_file():
        raise UserError(expected=f"a file of vectors ({_ENDINGS})", found="no such file", where=str(vectors))
    if vectors.suffix == ".npy":
        return _read_npy(vectors), _read_ids(ids, str(vectors))
    if vectors.suffix == ".parquet":
        return _read_parquet(vectors, column)
    raise UserError(expected=_ENDINGS, found=vectors.suffix or "no ending", where=str(vectors))


def _read_npy(path: Path) -> Features:
    try:
        values: Features = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:  # numpy's own words advise to load pickles
        found = "Python objects or a damaged file"
        raise UserError(expected="an npy array", found=found, where=str(path)) from error
    return values


def _read_ids(path: Path | None, vectors: str) -> Columns:
    if path is None or not path.is_file():
        found = "no --ids" if path is None else "no such file"
        raise UserError(expected="a file of ids (.txt, .json or .csv)", found=found, where=str(path or vectors))
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return {"sample_id": [str(name) for name in json.loads(text)]}
        if path.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(text, newline=""), restval=""))
            return {name: [row[name] for row in rows] for name in COLUMNS if rows and name in rows[0]}
    except (ValueError, TypeError) as error:
        raise UserError(expected="a file of ids", found=one_line(error), where=str(path)) from error
    return {"sample_id": text.splitlines()}


def _read_parquet(path: Path, column: str) -> tuple[Features, Columns]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except pa.ArrowException as error:
        raise UserError(expected="a Parquet file", found=one_line(error), where=str(path)) from error
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    names = [field.name for field in table.schema if any(is_kind(field.type) for is_kind in lists)]
    if column not in names and (column or len(names) != 1):
        raise UserError(
            expected=f"the column {column!r} of vectors" if column else "one list column of vectors",
            found=f"list columns {', '.join(names) or 'none'}",
            where=str(path),
            remedy="name it with --column",
        )
    column = column or names[0]
    vectors = table.column(column)
    widths = pc.unique(pc.list_value_length(vectors)).to_pylist()
    if len(widths) != 1 or not widths[0]:
        raise UserError(expected="vectors of one width, none missing", found=f"widths {widths[:5]}", where=str(path))
    values = np.asarray(pc.list_flatten(vectors).to_numpy()).reshape(len(vectors), widths[0])
    known = [name for name in COLUMNS if name in table.column_names and name != column]
    return values, {name: _texts(table.column(name)) for name in known}


def _texts(column: Any) -> list[str]:
    return ["" if value is None else str(value) for value in column.to_pylist()]


def _samples(columns: Columns, modality: str, where: str) -> Samples:
    ids = columns.get("sample_id")
    if ids is None:
        raise UserError(expected="a column sample_id", found=", ".join(columns) or "none", where=where)
    image_ids = columns.get("image_id") or [_image_id(name, modality) for name in ids]
    blank = [""] * len(ids)
    return Samples(ids, image_ids, *(columns.get(name, blank) for name in COLUMNS[2:]))


def _image_id(sample_id: str, modality: str) -> str:
    stem, mark, number = sample_id.rpartition("#")
    return stem if modality == "text" and mark and number.isdecimal() else sample_id


def _check(values: Features, samples: Samples, vectors: str, ids: str) -> None:
    known = [dtype.numpy for name, dtype in DTYPES.items() if name != "bfloat16"]
    if values.ndim != 2 or values.dtype not in known or not values.shape[1]:
        expected = "vectors [N, D] in float16, float32 or float64"
        raise UserError(expected=expected, found=f"{list(values.shape)} in {values.dtype}", where=vectors)
    if len(values) != len(samples) or not len(samples):
        found = f"{len(samples)} ids for {len(values)} vectors"
        raise UserError(expected="one id for each vector", found=found, where=ids)
    name, times = Counter(samples.sample_id).most_common(1)[0]
    if times > 1:
        raise UserError(expected="every sample id once", found=f"{name!r} twice", where=ids)


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
        raise UnknownNameError("export layout", to, EXPORTS, "--format")
    store = FeatureStore.open(place)
    for name in layers:
        store.layer(name)
    all_names = [layer.name for layer in store.layers]
    return EXPORTS[to](store, out, layers or (all_names[-1:] if to == "clip-retrieval" else all_names), text)


def _ids(store: FeatureStore, out: Path) -> Path:
    return put_new(out / "ids.json", lambda path: path.write_bytes(canonical(store.ids)))


def _npy(store: FeatureStore, out: Path, layers: Sequence[str], _: Place | None) -> list[Path]:
    return [*(put_npy(out / f"{escape(name)}.npy", plain_values(store, name)) for name in layers), _ids(store, out)]


def _safetensors(store: FeatureStore, out: Path, layers: Sequence[str], _: Place | None) -> list[Path]:
    from safetensors.torch import save_file

    about = {"content_digest": store.content_digest, "key_digest": store.key.digest()}
    tensors = {name: store.read(name) for name in layers}
    return [put_new(out / "features.safetensors", lambda path: save_file(tensors, path, about)), _ids(store, out)]


def _parquet(store: FeatureStore, out: Path, layers: Sequence[str], _: Place | None) -> list[Path]:
    import pyarrow as pa

    columns: dict[str, Any] = dict(zip(COLUMNS, store.samples.columns(), strict=True))
    for name in layers:
        values = plain_values(store, name)
        column = f"layer:{name}" if name in COLUMNS else name
        columns[column] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return [put_table(out / "features.parquet", columns)]


def _clip_retrieval(store: FeatureStore, out: Path, layers: Sequence[str], text: Place | None) -> list[Path]:
    """Write one layer of a store, and of a text store beside an image store if one is named (its last layer).

    With two stores a row is an image that has captions and the first of them.
    """
    if len(layers) > 1:
        raise UserError(expected="one layer for clip-retrieval", found=", ".join(layers), where="--layers")
    metadata = out / "metadata" / "metadata_0.parquet"
    if text is None:
        column = "image_path" if store.key.modality == "image" else "caption"
        columns = {"sample_id": store.ids, column: store.samples.content}
        return [_embeddings(store, out, layers[0], slice(None)), put_table(metadata, columns)]
    captions = FeatureStore.open(text)
    if (store.key.modality, captions.key.modality) != ("image", "text"):
        found = f"{store.key.modality} and {captions.key.modality}"
        raise UserError(expected="an image store and a text store", found=found, where=str(text))
    pairs = join(store.samples, captions.samples)
    images, first = np.unique(pairs.caption_image, return_index=True)
    image_rows, text_rows = pairs.image_rows[images], pairs.caption_rows[first]
    seen, said = store.samples.take(image_rows.tolist()), captions.samples.take(text_rows.tolist())
    return [
        _embeddings(store, out, layers[0], image_rows),
        _embeddings(captions, out, captions.layers[-1].name, text_rows),
        put_table(metadata, {"sample_id": seen.sample_id, "image_path": seen.content, "caption": said.content}),
    ]


def _embeddings(store: FeatureStore, out: Path, layer: str, rows: Any) -> Path:
    name = "img_emb" if store.key.modality == "image" else "text_emb"
    return put_npy(out / name / f"{name}_0.npy", plain_values(store, layer)[rows])


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
    with writing(target.parent, target.name):
        target.parent.mkdir(parents=True, exist_ok=True)
        with temp_file(target) as temp:
            write(temp)
            publish(temp, target)
            sync_folder(target.parent)
    return target


def put_table(target: Path, columns: dict[str, Any]) -> Path:
    """Write columns as a new Parquet file and return its path; errors as for `put_new`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return put_new(target, lambda path: pq.write_table(pa.table(columns), path))


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
