"""HDF5 shards: `ids`, and one contiguous, unfiltered dataset `layers/<name>` [N, D] a layer.

Written so that HDF5 1.10 and later read it and that equal input gives equal bytes. Open one with
`h5py.File(path)["layers/<name>"]`; "/" in a layer's name is written "%2F".
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.store.formats.base import Extent, Features, LayerExtents, ShardFormat, StorageDtype

_ALIGN = 4096


class Hdf5Format(ShardFormat):
    """One file a shard, one dataset a layer."""

    name = "hdf5"
    suffix = ".h5"

    def write(self, path: Path, ids: Sequence[str], features: Mapping[str, Features], dtype: StorageDtype) -> None:
        """Write a shard."""
        import h5py

        options = {"libver": ("earliest", "v110"), "locking": False}
        aligned = {"alignment_threshold": _ALIGN, "alignment_interval": _ALIGN}
        with h5py.File(path, "w", **options, **aligned) as file:
            encoded = "\0".join(ids).encode().split(b"\0") if ids else []
            text = h5py.string_dtype("utf-8", max(map(len, encoded), default=1))
            file.create_dataset("ids", data=np.array(encoded, dtype=text), track_times=False)
            group = file.create_group("layers")
            for order, (layer, values) in enumerate(features.items()):
                dataset = group.create_dataset(escape(layer), data=values, dtype=dtype.numpy, track_times=False)
                dataset.attrs["dtype"] = np.bytes_(dtype.name)
                dataset.attrs["order"] = np.int64(order)

    def ids(self, path: Path) -> list[str]:
        """Read the ids."""
        with _open(path) as file:
            encoded = file["ids"][()].tolist()
        return b"\0".join(encoded).decode().split("\0") if encoded else []

    def layers(self, path: Path) -> tuple[str, ...]:
        """Return the layers' names."""
        with _open(path) as file:
            group = file["layers"]
            return tuple(unescape(name) for name in sorted(group, key=lambda name: int(group[name].attrs["order"])))

    def extents(self, path: Path, layer: str) -> LayerExtents:
        """Return where a layer's values lie."""
        with _open(path) as file:
            dataset = file["layers"][escape(layer)]
            rows, width = dataset.shape
            dtype = bytes(dataset.attrs["dtype"]).decode()
            offset = dataset.id.get_offset()
        if rows and offset is None:
            raise ValueError("the layer is not contiguous")
        return LayerExtents(width, dtype, (Extent(offset, rows),) if rows else ())


def escape(layer: str) -> str:
    """Return a layer's name as one HDF5 link name: no slash, not "."."""
    escaped = layer.replace("%", "%25").replace("/", "%2F")
    return escaped.replace(".", "%2E") if escaped.strip(".") == "" else escaped


def unescape(name: str) -> str:
    """Undo `escape`."""
    return name.replace("%2E", ".").replace("%2F", "/").replace("%25", "%")


def _open(path: Path) -> Any:
    import h5py

    return h5py.File(path, "r", locking=False)
