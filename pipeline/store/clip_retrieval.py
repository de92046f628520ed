"""clip-retrieval's layout: img_emb/, text_emb/ and metadata/, row by row the same pairs."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.store.export import plain_values, put_new, put_npy
from pipeline.store.join import join
from pipeline.store.reader import FeatureStore


def export_clip_retrieval(store: FeatureStore, out: Path, layer: str, text: Path | None) -> list[Path]:
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
