"""The number formats that a store can hold, all little-endian, and the count of values that are no numbers.

numpy has no bfloat16: such features travel as uint16 and only the name says what the bits mean.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UnknownNameError

_BLOCK_VALUES = 1 << 20


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
