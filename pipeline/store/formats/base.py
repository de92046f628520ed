"""The contract of a shard file: ids and, for each layer, rows of values that lie uncompressed at known offsets.

A format only writes the file and says where the values lie; reading and zero-copy views are the same for all formats.
So are the number formats that a store can hold, all little-endian. numpy has no bfloat16: such features travel as
uint16 and only the name says what the bits mean.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.errors import UnknownNameError

_BLOCK_BYTES = 1 << 19
_BLOCK_VALUES = 1 << 20

Features = NDArray[np.generic]
"""Features [N, D] in a numpy type that carries a storage dtype's bits."""


@dataclass(frozen=True)
class StorageDtype:
    """How one value lies on the disk.

    Args:
        name: The name that keys and manifests use.
        numpy: The numpy type that carries the bits.
        bits: Unsigned integer type of the same size.
        exponent: Mask of the exponent's bits: all set means infinite or not a number.
    """

    name: str
    numpy: np.dtype[np.generic]
    bits: np.dtype[np.generic]
    exponent: int

    @property
    def itemsize(self) -> int:
        """Return the bytes of one value."""
        return int(self.numpy.itemsize)


DTYPES: dict[str, StorageDtype] = {
    "float16": StorageDtype("float16", np.dtype("<f2"), np.dtype("<u2"), 0x7C00),
    "bfloat16": StorageDtype("bfloat16", np.dtype("<u2"), np.dtype("<u2"), 0x7F80),
    "float32": StorageDtype("float32", np.dtype("<f4"), np.dtype("<u4"), 0x7F800000),
    "float64": StorageDtype("float64", np.dtype("<f8"), np.dtype("<u8"), 0x7FF0000000000000),
}


def storage_dtype(name: str, where: str = "") -> StorageDtype:
    """Return the storage type of a name.

    Raises:
        UnknownNameError: No such type.
    """
    if name not in DTYPES:
        raise UnknownNameError("storage dtype", name, DTYPES, where)
    return DTYPES[name]


def count_nonfinite(features: NDArray[np.generic], dtype: StorageDtype) -> int:
    """Return how many values of features [N, D] are infinite or not a number, in blocks of bounded memory."""
    flat = features.reshape(-1).view(dtype.bits)
    mask = dtype.bits.type(dtype.exponent)
    blocks = range(0, flat.size, _BLOCK_VALUES)
    return sum(int(np.count_nonzero((flat[i : i + _BLOCK_VALUES] & mask) == mask)) for i in blocks)


def array_xxh3(parts: Iterable[NDArray[np.generic]]) -> str:
    """Return the xxh3 (128 bits, hexadecimal) over the bytes of contiguous arrays, one after the other."""
    digest = xxhash.xxh3_128()
    for part in parts:
        flat = part.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, 2 * _BLOCK_BYTES):
            digest.update(flat[start : start + 2 * _BLOCK_BYTES].data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Extent:
    """A run of rows of one layer: where it begins in the file, and how many rows."""

    offset: int
    rows: int


@dataclass(frozen=True)
class LayerExtents:
    """Where one layer's values lie in a file: width D, dtype, runs in order of rows."""

    width: int
    dtype: str
    runs: tuple[Extent, ...]

    @property
    def rows(self) -> int:
        """Return the number of rows N."""
        return sum(run.rows for run in self.runs)


class ShardFormat(ABC):
    """How a shard is written to and found in a file.

    A damaged file makes any method but `write` raise whatever its library raises, or say something else than was
    written; the caller compares with the commit record.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]

    @abstractmethod
    def write(self, path: Path, ids: Sequence[str], features: Mapping[str, Features], dtype: StorageDtype) -> None:
        """Write ids [N] and features, layer → [N, D] (N may be 0), the same bytes for the same input."""

    @abstractmethod
    def ids(self, path: Path) -> list[str]:
        """Read the ids."""

    @abstractmethod
    def layers(self, path: Path) -> tuple[str, ...]:
        """Return the names of the layers in a file, in order of writing."""

    @abstractmethod
    def extents(self, path: Path, layer: str) -> LayerExtents:
        """Return where a layer's values lie."""

    def view(self, path: Path, extents: LayerExtents, dtype: StorageDtype) -> list[Features]:
        """Return read-only zero-copy views [n, D], in order of rows, one a run (an empty run gives none)."""
        return [
            np.memmap(path, dtype=dtype.numpy, mode="r", offset=run.offset, shape=(run.rows, extents.width))
            for run in extents.runs
            if run.rows
        ]

    def read_into(self, path: Path, extents: LayerExtents, out: Features) -> str:
        """Read a layer into contiguous rows [N, D] and return the xxh3 of the bytes read.

        Raises:
            OSError: The file ends too early.
        """
        digest = xxhash.xxh3_128()
        target = out.reshape(-1).view(np.uint8).data
        row_bytes = extents.width * out.dtype.itemsize
        done = 0
        with path.open("rb", buffering=0) as file:
            for run in extents.runs:
                file.seek(run.offset)
                end = done + run.rows * row_bytes
                while done < end:
                    count = _fill(file, target[done : min(end, done + _BLOCK_BYTES)])
                    digest.update(target[done : done + count])
                    done += count
        return digest.hexdigest()

    def stream(self, path: Path, extents: LayerExtents, dtype: StorageDtype) -> Iterator[memoryview]:
        """Read a layer's bytes block by block into one small buffer, which each step overwrites.

        Raises:
            OSError: The file ends too early.
        """
        buffer = memoryview(bytearray(_BLOCK_BYTES))
        with path.open("rb", buffering=0) as file:
            for run in extents.runs:
                file.seek(run.offset)
                left = run.rows * extents.width * dtype.itemsize
                while left:
                    count = _fill(file, buffer[: min(left, _BLOCK_BYTES)])
                    yield buffer[:count]
                    left -= count


def _fill(file: io.FileIO, buffer: memoryview) -> int:
    count = file.readinto(buffer)
    if not count:
        raise OSError("the file ends inside a layer")
    return count
