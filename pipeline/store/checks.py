"""What a shard must satisfy before it is committed; every refusal says expected and found."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.errors import UserError
from pipeline.store.digests import ids_digest
from pipeline.store.dtypes import storage_dtype
from pipeline.store.formats.base import Features
from pipeline.store.manifest import Header, ShardFile
from pipeline.store.records import PendingShard

_LONGEST_ID = 1024


def check_layers(layers: Sequence[str]) -> None:
    """Check that some layers are named, each once.

    Raises:
        UserError: They are not.
    """
    if not layers or len(set(layers)) != len(layers) or not all(layers):
        raise UserError(expected="layer names, each once", found=", ".join(map(repr, layers)) or "none")


def checked_ids(shard: PendingShard, ids: Sequence[str], rejected: Sequence[tuple[str, str]], where: str) -> None:
    """Check that ids and rejected ids are as many as the shard's items, each once and storable.

    Raises:
        UserError: They are not.
    """
    seen = [*ids, *(name for name, _ in rejected)]
    if len(seen) != shard.stop - shard.start:
        raise UserError(
            expected=f"{shard.stop - shard.start} items in shard {shard.index}",
            found=f"{len(ids)} rows and {len(rejected)} rejected",
            where=where,
        )
    if len(set(seen)) != len(seen):
        twice = next(name for place, name in enumerate(seen) if name in seen[:place])
        raise UserError(expected="every sample id once", found=f"{twice!r} twice in shard {shard.index}", where=where)
    shortest, longest = min(map(len, seen), default=1), max(map(len, seen), default=1)
    if not shortest or longest > _LONGEST_ID or not _storable("\0".join(seen), len(seen)):
        wrong = next(name for name in seen if not 0 < len(name) <= _LONGEST_ID or not _storable(name, 1))
        raise UserError(
            expected=f"sample ids of 1 to {_LONGEST_ID} characters of UTF-8 without NUL",
            found=repr(wrong)[:80],
            where=where,
        )


def _storable(joined: str, count: int) -> bool:
    try:
        return joined.encode().count(b"\0") == max(0, count - 1)
    except UnicodeEncodeError:
        return False


def checked_features(
    shard: PendingShard, rows: int, features: Mapping[str, Features], header: Header, where: str
) -> dict[str, Features]:
    """Return a shard's layers as contiguous arrays [N, D].

    Raises:
        UserError: A layer is missing, or has another shape or dtype.
    """
    missing = [name for name in shard.layers if name not in features]
    if missing:
        raise UserError(
            expected=f"layers {', '.join(shard.layers)} of shard {shard.index}",
            found=f"no {', '.join(missing)}",
            where=where,
        )
    dtype = storage_dtype(header.key.storage_dtype)
    for name in shard.layers:
        values = features[name]
        if values.ndim != 2 or len(values) != rows or not values.shape[1] or values.dtype != dtype.numpy:
            raise UserError(
                expected=f"layer {name} as [{rows}, D] in {dtype.numpy.name} (storage dtype {dtype.name})",
                found=f"{list(values.shape)} in {values.dtype}",
                where=where,
            )
    return {name: np.ascontiguousarray(features[name]) for name in shard.layers}


def check_same_rows(
    files: Sequence[ShardFile], ids: Sequence[str], rejected: Sequence[tuple[str, str]], where: str
) -> None:
    """Check that a later file of a shard has the rows of the earlier ones.

    Raises:
        UserError: An item was rejected in one run and not in the other.
    """
    digest = ids_digest(ids)
    for file in files:
        if file.ids != digest:
            raise UserError(
                expected=f"the {file.rows} rows of shard {file.index} that {file.name} has",
                found=f"{len(ids)} other rows ({len(rejected)} items rejected, {len(file.rejected)} before)",
                where=where,
                remedy="read the same items as the first run did; or extract to another --out, or use --replace",
            )
