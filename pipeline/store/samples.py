"""The samples of a data set: what is known of each item beside its features, and samples.parquet that keeps it.

Metadata alone: it is no part of a store's key and may be rewritten without touching a shard. Rows of images and rows of
captions are joined by it, never by position.
"""

import csv
import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.words import count, html_table, inert

COLUMNS = ("sample_id", "image_id", "split", "label", "content")
SHOWN = 10
"""Rows that a notebook shows."""


@dataclass(frozen=True, repr=False)
class Samples:
    """Columns of equal length N, one entry an item.

    Args:
        sample_id: Unique id of the item.
        image_id: The image that it is or that it describes; "" = none.
        split: train, val, test or any other text; "" = none.
        label: Class name; "" = none.
        content: Caption text, or image file relative to the data set's folder.

    Raises:
        UserError: The columns differ in length.
    """

    sample_id: list[str]
    image_id: list[str]
    split: list[str]
    label: list[str]
    content: list[str]

    def __post_init__(self) -> None:
        """Check the lengths."""
        lengths = {name: len(column) for name, column in zip(COLUMNS, self.columns(), strict=True)}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise UserError(expected="sample columns of one length", found=found)

    def __len__(self) -> int:
        """Return N."""
        return len(self.sample_id)

    def __repr__(self) -> str:
        """Return how many there are of what, not all of them."""
        splits = ", ".join(sorted({name for name in self.split if name})) or "none"
        return f"<Samples: {count(len(self), 'row')} of {count(len(set(self.image_id)), 'image')}, splits: {splits}>"

    def _repr_html_(self) -> str:
        return html_table(repr(self)[1:-1], COLUMNS, list(zip(*self.columns(), strict=True))[:SHOWN])

    def take(self, rows: Iterable[int]) -> "Samples":
        """Return the samples at these positions."""
        chosen = list(rows)
        return Samples(*([column[row] for row in chosen] for column in self.columns()))

    def columns(self) -> tuple[list[str], ...]:
        """Return the columns, in the order of the fields."""
        return tuple(getattr(self, name) for name in COLUMNS)


def samples_bytes(samples: Samples) -> bytes:
    """Return the Parquet file of samples."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([pa.field(name, pa.string(), nullable=False) for name in COLUMNS])
    arrays = [pa.array(column, pa.string()) for column in samples.columns()]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), buffer)
    return buffer.getvalue()


def rejected_bytes(rejected: Iterable[tuple[str, str]]) -> bytes:
    """Return rejected.csv: (sample_id, reason) of each item that gave no row."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("sample_id", "reason"), *map(inert, rejected)])
    return text.getvalue().encode()


def samples_digest(samples: Samples) -> str:
    """Return the sha256 of the Parquet file of samples."""
    return hashlib.sha256(samples_bytes(samples)).hexdigest()


def read_samples(path: Path) -> Samples:
    """Read samples.parquet."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read(columns=list(COLUMNS))
    return Samples(*(table.column(name).to_pylist() for name in COLUMNS))


@dataclass(frozen=True)
class Pairs:
    """Images that have captions, and those captions.

    Args:
        image_rows: Rows of the image store, int64 [M], ascending, each once.
        caption_rows: Rows of the text store, int64 [P], ascending, each once; all captions of an image are kept.
        caption_image: For each of the P captions, the position of its image in `image_rows`, int64 [P].
    """

    image_rows: NDArray[np.int64]
    caption_rows: NDArray[np.int64]
    caption_image: NDArray[np.int64]


def join(image: Samples, text: Samples, split: str | None = None) -> Pairs:
    """Pair images with all their captions.

    Images without captions, captions without an image id, and captions of images that are not there are left out.

    Args:
        image: Samples of the image store.
        text: Samples of the text store.
        split: Keep only images of this split (the captions' own split does not count); None keeps all.

    Raises:
        UserError: Two rows of the image store have one image id.
    """
    row_of = _image_rows(image)
    wanted = {name: row for name, row in row_of.items() if split is None or image.split[row] == split}
    pairs = [(wanted[name], caption) for caption, name in enumerate(text.image_id) if name in wanted]
    images = np.array([row for row, _ in pairs], dtype=np.int64)
    captions = np.array([caption for _, caption in pairs], dtype=np.int64)
    image_rows, caption_image = np.unique(images, return_inverse=True)
    return Pairs(image_rows, captions, caption_image.astype(np.int64, copy=False))


def _image_rows(image: Samples) -> dict[str, int]:
    rows: dict[str, int] = {}
    for row, name in enumerate(image.image_id):
        if name and rows.setdefault(name, row) != row:
            raise UserError(
                expected="each image id once among the images",
                found=f"{name!r} in rows {rows[name]} and {row}",
                remedy="give each image its own id in images.csv",
            )
    return rows
