"""Export a store for other tools: npy, safetensors, Parquet with list columns, or clip-retrieval's layout."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.errors import UnknownNameError, UserError
from pipeline.files import canonical
from pipeline.store.clip_retrieval import export_clip_retrieval
from pipeline.store.export import plain_values, put_new, put_npy
from pipeline.store.formats.hdf5 import escape
from pipeline.store.reader import FeatureStore
from pipeline.store.samples import COLUMNS


def convert(path: Path, out: Path, to: str, *, layers: Sequence[str] = (), text: Path | None = None) -> list[Path]:
    """Write a store's layers and ids in another layout; bfloat16 becomes float32, but in safetensors.

    Args:
        path: The store.
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
    store = FeatureStore.open(path)
    for name in layers:
        store.layer(name)
    return EXPORTS[to](store, out, tuple(layers), text)


def _all(store: FeatureStore, layers: Sequence[str]) -> Sequence[str]:
    return layers or [layer.name for layer in store.layers]


def _ids(store: FeatureStore, out: Path) -> Path:
    return put_new(out / "ids.json", lambda path: path.write_bytes(canonical(store.ids)))


def _npy(store: FeatureStore, out: Path, layers: Sequence[str], _: Path | None) -> list[Path]:
    names = _all(store, layers)
    return [*(put_npy(out / f"{escape(name)}.npy", plain_values(store, name)) for name in names), _ids(store, out)]


def _safetensors(store: FeatureStore, out: Path, layers: Sequence[str], _: Path | None) -> list[Path]:
    from safetensors.torch import save_file

    about = {"content_digest": store.content_digest, "key_digest": store.key.digest()}
    tensors = {name: store.read(name) for name in _all(store, layers)}
    return [put_new(out / "features.safetensors", lambda path: save_file(tensors, path, about)), _ids(store, out)]


def _parquet(store: FeatureStore, out: Path, layers: Sequence[str], _: Path | None) -> list[Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {name: pa.array(column) for name, column in zip(COLUMNS, store.samples.columns(), strict=True)}
    for name in _all(store, layers):
        values = plain_values(store, name)
        column = f"layer:{name}" if name in COLUMNS else name
        arrays[column] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return [put_new(out / "features.parquet", lambda path: pq.write_table(pa.table(arrays), path))]


def _clip_retrieval(store: FeatureStore, out: Path, layers: Sequence[str], text: Path | None) -> list[Path]:
    if len(layers) > 1:
        raise UserError(expected="one layer for clip-retrieval", found=", ".join(layers), where="--layers")
    layer = layers[0] if layers else store.layers[-1].name
    return export_clip_retrieval(store, out, layer, text)


EXPORTS: dict[str, Callable[[FeatureStore, Path, Sequence[str], Path | None], list[Path]]] = {
    "npy": _npy,
    "safetensors": _safetensors,
    "parquet": _parquet,
    "clip-retrieval": _clip_retrieval,
}
