"""The key of a feature store: everything that changes the stored bytes, and nothing else.

Not in it: batch size, workers, device, shard size, file format, which layers, splits and labels. The number formats
that a store can hold are here too, all little-endian. numpy has no bfloat16: such features travel as uint16 and only
the name says what the bits mean.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import KeyMismatchError, UnknownNameError, UserError
from pipeline.files import json_differences, json_digest

FORMAT = 1
"""Version of the store's layout and of what the key means."""

MODALITIES = ("image", "text")

Features = NDArray[np.generic]
"""Features [N, D] in a numpy type that carries a storage dtype's bits."""


@dataclass(frozen=True)
class StorageDtype:
    """How one value lies on the disk.

    Args:
        name: The name that keys and manifests use.
        numpy: The numpy type that carries the bits.
        exponent: Mask of the exponent's bits: all set means infinite or not a number.
    """

    name: str
    numpy: np.dtype[np.generic]
    exponent: int

    @property
    def itemsize(self) -> int:
        """Return the bytes of one value."""
        return int(self.numpy.itemsize)


DTYPES = {
    "float16": StorageDtype("float16", np.dtype("<f2"), 0x7C00),
    "bfloat16": StorageDtype("bfloat16", np.dtype("<u2"), 0x7F80),
    "float32": StorageDtype("float32", np.dtype("<f4"), 0x7F800000),
    "float64": StorageDtype("float64", np.dtype("<f8"), 0x7FF0000000000000),
}


def storage_dtype(name: str, where: str = "") -> StorageDtype:
    """Return the storage type of a name.

    Raises:
        UnknownNameError: No such type.
    """
    if name not in DTYPES:
        raise UnknownNameError("storage dtype", name, DTYPES, where)
    return DTYPES[name]


@dataclass(frozen=True, kw_only=True)
class FeatureKey:
    """What was computed from what, and how.

    Args:
        format: Version of the store's format.
        modality: "image" or "text".
        dataset_digest: Digest of the data set's content.
        encoder: Specification, weights' digest, implementation: any nested JSON.
        preprocessing: Image size, crop, mean, tokenizer, prompt: any nested JSON.
        pooling: How tokens become one vector.
        compute_dtype: Number format of the forward pass.
        storage_dtype: Number format on the disk: float16, bfloat16, float32 or float64.

    Raises:
        UserError: The modality is unknown or a value is not JSON.
        UnknownNameError: The storage dtype is unknown.
    """

    format: int = FORMAT
    modality: str
    dataset_digest: str
    encoder: Mapping[str, Any] = field(hash=False)
    preprocessing: Mapping[str, Any] = field(hash=False)
    pooling: str
    compute_dtype: str
    storage_dtype: str

    def __post_init__(self) -> None:
        """Check the values, and keep plain JSON of the nested ones."""
        if self.modality not in MODALITIES:
            raise UserError(expected=f"a modality ({' or '.join(MODALITIES)})", found=repr(self.modality))
        storage_dtype(self.storage_dtype, "storage_dtype")
        for name in ("encoder", "preprocessing"):
            object.__setattr__(self, name, _plain(name, getattr(self, name)))

    def to_json(self) -> dict[str, Any]:
        """Return the key as plain JSON data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "FeatureKey":
        """Rebuild a key from `to_json`'s data."""
        return cls(**{each.name: data[each.name] for each in fields(cls)})

    def digest(self) -> str:
        """Return the sha256 of the key."""
        return json_digest(self.to_json())

    def differences(self, other: "FeatureKey") -> list[tuple[str, str, str]]:
        """Return (dotted field, value here, value there) of each field that differs; empty if the keys are equal."""
        return json_differences(self.to_json(), other.to_json())

    def require(self, found: "FeatureKey", where: str, remedy: str) -> None:
        """Check that features of another key are not taken for these.

        Raises:
            KeyMismatchError: Names each field that differs.
        """
        differences = self.differences(found)
        if differences:
            raise KeyMismatchError(differences, where, remedy)


def _plain(name: str, value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(expected=f"JSON data in the key's field {name}", found=str(error)) from error
