"""Digests and the JSON that carries them.

sha256 names content for good; xxh3 (128 bits) guards each (shard, layer) at reading speed. Signed JSON ends with a
digest of itself and must be byte for byte what this module would write, so that any flipped byte is seen.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.errors import DamagedStoreError

_BLOCK_BYTES = 1 << 20
_BLOCK_IDS = 1 << 16


def canonical(value: Any) -> bytes:
    """Return the one JSON text of a value: sorted keys, no spaces, UTF-8, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def json_digest(value: Any) -> str:
    """Return the sha256 of a JSON value's canonical text."""
    return hashlib.sha256(canonical(value)).hexdigest()


def dump_signed(value: Mapping[str, Any]) -> bytes:
    """Return a JSON object as readable text that ends with its own digest under "self"."""
    signed = {**value, "self": json_digest(dict(value))}
    return (json.dumps(signed, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def load_signed(path: Path) -> dict[str, Any]:
    """Read a signed JSON object and check it.

    Raises:
        DamagedStoreError: The text is not exactly what was signed.
    """
    data = path.read_bytes()
    try:
        value = json.loads(data)
        body = {name: item for name, item in value.items() if name != "self"}
        sound = dump_signed(body) == data
    except (ValueError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise DamagedStoreError(path.name, "the digest that it carries", "other bytes", str(path.parent))
    return body


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
