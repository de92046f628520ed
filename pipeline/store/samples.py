"""The samples of a data set: what is known of each item beside its features, and samples.parquet that keeps it.

Metadata alone: it is no part of a store's key and may be rewritten without touching a shard.
"""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

COLUMNS = ("sample_id", "image_id", "split", "label", "content")


@dataclass(frozen=True)
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
        lengths = {name: len(column) for name, column in zip(COLUMNS, self.columns(), strict=True)}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise UserError(expected="sample columns of one length", found=found)

    def __len__(self) -> int:
        return len(self.sample_id)

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


def samples_digest(samples: Samples) -> str:
    """Return the sha256 of the Parquet file of samples."""
    return hashlib.sha256(samples_bytes(samples)).hexdigest()


def read_samples(path: Path) -> Samples:
    """Read samples.parquet."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read(columns=list(COLUMNS))
    return Samples(*(table.column(name).to_pylist() for name in COLUMNS))
