"""The table of shard formats. One more is one file beside these and one line in the table."""

from pipeline.errors import UnknownNameError
from pipeline.store.formats.base import ShardFormat
from pipeline.store.formats.hdf5 import Hdf5Format
from pipeline.store.formats.parquet import ParquetFormat

FORMATS: dict[str, ShardFormat] = {"hdf5": Hdf5Format(), "parquet": ParquetFormat()}


def file_format(name: str, where: str = "--format") -> ShardFormat:
    """Return a shard format by name.

    Raises:
        UnknownNameError: No such format.
    """
    if name not in FORMATS:
        raise UnknownNameError("file format", name, FORMATS, where)
    return FORMATS[name]
