"""Digests of what a store holds: sha256 names content for good; xxh3 (128 bits) guards a (shard, layer) when read."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.files import json_digest

_BLOCK_BYTES = 1 << 20
_BLOCK_IDS = 1 << 16


def array_xxh3(parts: Iterable[NDArray[np.generic]]) -> str:
    """Return the xxh3 (128 bits, hexadecimal) over the bytes of contiguous arrays, one after the other."""
    digest = xxhash.xxh3_128()
    for part in parts:
        flat = part.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, _BLOCK_BYTES):
            digest.update(flat[start : start + _BLOCK_BYTES].data)
    return digest.hexdigest()


def ids_digest(ids: Sequence[str]) -> str:
    """Return the sha256 over N ids in order, each with a NUL after it (no id holds one)."""
    digest = hashlib.sha256()
    for start in range(0, len(ids), _BLOCK_IDS):
        digest.update(("\0".join(ids[start : start + _BLOCK_IDS]) + "\0").encode())
    return digest.hexdigest()


def content_digest(rows: int, ids: str, layers: Iterable[tuple[str, int, str, str]]) -> str:
    """Combine what a store holds into one digest.

    Args:
        rows: N.
        ids: Digest of the N ids.
        layers: (name, width, dtype, sha256 over the N × D values in order) of each layer, in any order.
    """
    return json_digest({"rows": rows, "ids": ids, "layers": sorted([list(layer) for layer in layers])})
