"""What an extraction is made of before the first row: which stores, of which key, cut how, and what they lack."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.encoders.base import Encoder
from pipeline.errors import PipelineError, UserError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.datasets.layout import RawDataset
from pipeline.extract.items import Items, caption_items, image_items, prepare, prompt_items
from pipeline.extract.receipt import RECEIPT
from pipeline.runtime import DTYPE_NAMES, cpu_cores, free_disk, resolve_device
from pipeline.storage.contract import Storage
from pipeline.storage.open import open_storage
from pipeline.store.cleaning import own_files, replace_store
from pipeline.store.commit import PendingShard, pending_shards
from pipeline.store.formats.base import storage_dtype
from pipeline.store.key import FeatureKey
from pipeline.store.manifest import CLASSES, HEADER, Header, read_header
from pipeline.words import duration, size

_REMEDY = "extract to another --out, or start over with --replace"
_ON_A_CPU = {"image": 16, "text": 32}
"""Rows a pass: more are no faster on a CPU (see `runtime.keep_freed_memory`), and their activations take memory."""
SHARD_BYTES = 128 * 2**20
"""What a shard's layers sum up to, about."""
_LEAST_ROWS, _MOST_ROWS, _LEAST_SHARDS = 256, 65536, 8
_FINE_ROWS = {"image": 256, "text": 4096}
"""Rows that no shard is cut finer than for the sake of a kill: a quarter to a whole minute of a small model's work."""


@dataclass(frozen=True)
class Job:
    """One store to make."""

    root: Storage
    items: Items


def jobs_of(config: ExtractConfig, dataset: RawDataset, modality: str) -> Iterator[Job]:
    """Yield the stores that an encoder of this modality makes of a data set.

    Raises:
        UserError: The data set has nothing for it to read.
    """
    out = open_storage(config.out)
    if modality == "image":
        if not dataset.images:
            raise UserError(expected="images", found="none in images.csv", where=str(dataset.root))
        yield Job(out, image_items(dataset, workers_of(config), jpeg=config.jpeg, exif=config.exif))
        return
    captions = bool(dataset.captions) and config.texts != "classes"
    classes = dataset.classes if config.texts != "captions" else None
    if not captions and not classes:
        wanted = {"all": "captions or classes", "captions": "captions", "classes": "classes.json"}[config.texts]
        raise UserError(expected=wanted, found="none", where=str(dataset.root), remedy="a text encoder needs texts")
    if captions:
        yield Job(out, caption_items(dataset))
    if classes:
        yield Job(out / CLASSES, prompt_items(dataset, classes))


def header_of(config: ExtractConfig, items: Items, encoder: Encoder, layers: Sequence[str]) -> Header:
    """Return the header of a new store; modules that are asked for by name count as layers before the output."""
    known = [layer.name for layer in encoder.layers]
    modules = [name for name in layers if name not in known]
    widths = [encoder.width(name) for name in layers]
    return Header(
        key=feature_key(config, items, encoder),
        items=len(items),
        shard_rows=config.shard_rows or default_shard_rows(len(items), widths, config.storage, encoder.modality),
        file_format=config.format,
        layer_names=(*known[:-1], *modules, known[-1]),
    )


def feature_key(config: ExtractConfig, items: Items, encoder: Encoder) -> FeatureKey:
    """Return the key of the features: everything that changes their bytes."""
    from pipeline.encoders.load import own_source

    made = encoder.key()
    preprocessing = dict(made.preprocessing)
    if encoder.modality == "image":
        from pipeline.extract.decode import DECODE_VERSION, JPEG_RULES

        preprocessing["decode"] = {
            "version": DECODE_VERSION,
            "library": "pillow",
            "transparency": "white",
            "jpeg": JPEG_RULES[config.jpeg],
            **({"exif": "turned upright"} if config.exif == "apply" else {}),  # without it they are refused
        }
    return FeatureKey(
        modality=encoder.modality,
        dataset_digest=items.digest,
        encoder={**made.encoder, **own_source(encoder)},
        preprocessing=preprocessing,
        pooling=made.pooling,
        compute_dtype=DTYPE_NAMES[config.dtype],
        storage_dtype=config.storage,
    )


def pending_of(config: ExtractConfig, root: Storage, header: Header, layers: tuple[str, ...]) -> list[PendingShard]:
    """Return what is missing, before anything is written; with `replace`, a store that does not fit is removed."""
    if HEADER in root.list():
        try:
            existing = read_header(root)
            header.key.require(existing.key, str(root), _REMEDY)
            return pending_shards(root, existing, layers)
        except UserError:  # another key, a damaged header, another version of the format
            if not config.replace:
                raise
            if not config.dry_run:
                (root.here / RECEIPT).unlink(missing_ok=True)
                replace_store(root)
    return [PendingShard(index, *header.span(index), layers) for index in range(header.shards)]


def require_free(out: Storage) -> None:
    """Check that a folder is a store, what a killed run left of one, or free for one.

    Raises:
        UserError: It holds something else.
    """
    if out.absent() or own_files(out) or HEADER in (out / CLASSES).list():
        return
    others = sorted(path.name for path in out.here.iterdir() if not path.name.startswith("."))
    if others:
        raise UserError(
            expected="a feature store, or a folder that is empty or not there yet",
            found=f"{', '.join(others[:3])}{', …' * (len(others) > 3)} and no store",
            where=str(out),
            remedy="name another --out, such as data/1_features/<data set>/<encoder>",
        )


def workers_of(config: ExtractConfig) -> int:
    """Return the number of threads that decode and tokenise."""
    return config.workers or min(32, cpu_cores())


def batch_size_of(config: ExtractConfig, modality: str) -> int:
    """Return the rows of a forward pass."""
    if config.batch_size:
        return config.batch_size
    return 256 if resolve_device(config.device).type == "cuda" else _ON_A_CPU[modality]


# ---- cost ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What is to be done and what it takes."""

    what: str
    """What the rows are."""
    rows: int
    """N items of the data set."""
    layers: tuple[tuple[str, int], ...]
    """(name, width D) of the L layers that are asked for."""
    bytes: int
    """Bytes of all N rows of all L layers."""
    missing_rows: int
    """Rows of shards that lack a layer."""
    missing_bytes: int
    """Bytes that are still to be written."""
    free_bytes: int
    """Free bytes on the disk of the store."""
    seconds: float | None = None
    """Expected time for what is missing; None where it was not measured."""

    def sentence(self) -> str:
        """Return the cost for people."""
        widths = sum(width for _, width in self.layers)
        text = (
            f"{self.rows:,} {self.what} × {len(self.layers)} layers ({widths:,} values a row) = {size(self.bytes)}; "
            f"still to do: {self.missing_rows:,} rows, {size(self.missing_bytes)}; free disk: {size(self.free_bytes)}"
        )
        return text if self.seconds is None else f"{text}; expected time: {duration(self.seconds)}"


def estimate(
    root: Storage, items: Items, layers: Sequence[tuple[str, int]], pending: Sequence[PendingShard], storage: str
) -> Cost:
    """Count rows and bytes. `layers` are (name, D), `pending` is what lacks some of them.

    Raises:
        PipelineError: What is missing does not fit on the disk.
    """
    itemsize, width = storage_dtype(storage).itemsize, dict(layers)
    missing = sum((shard.stop - shard.start) * sum(width[name] for name in shard.layers) for shard in pending)
    cost = Cost(
        what=items.what,
        rows=len(items),
        layers=tuple(layers),
        bytes=len(items) * sum(width.values()) * itemsize,
        missing_rows=sum(shard.stop - shard.start for shard in pending),
        missing_bytes=missing * itemsize,
        free_bytes=free_disk(root.here),
    )
    if cost.missing_bytes * 1.02 > cost.free_bytes:
        raise PipelineError(
            expected=f"{size(cost.missing_bytes)} of free disk",
            found=f"{size(cost.free_bytes)}",
            where=str(root),
            remedy="take fewer layers (--layers), --storage-dtype fp16, or another --out",
        )
    return cost


def seconds_a_row(encoder: Encoder, items: Items, layers: Sequence[str], batch_size: int, first: int) -> float:
    """Measure one small batch from loading to features, after one that warms up; 0 where no item is sound."""
    positions = range(first, min(len(items), first + min(batch_size, 8)))
    took = 0.0
    for _ in range(2):
        start = time.perf_counter()
        prepared = [prepare(encoder, items.at(position)) for position in positions]
        tensors = [item.tensor for item in prepared if item.tensor is not None]
        if tensors:
            encoder.encode(tensors, layers)
        took = time.perf_counter() - start
    return took / max(len(positions), 1)


def default_shard_rows(items: int, widths: Sequence[int], storage: str, modality: str) -> int:
    """Return a power of two: about `SHARD_BYTES` a shard, yet at least eight shards where they hold enough items.

    Small data sets are cut finer than the bytes ask for, because a shard is what a killed run loses at most. Enough are
    256 images, and 4096 texts: those are sorted by length inside a shard, and 256 of them give batches with 6 % more
    tokens, all of them padding; 4096 with less than 1 %.
    """
    by_bytes = SHARD_BYTES // max(1, sum(widths) * storage_dtype(storage).itemsize)
    wanted = min(by_bytes, max(_FINE_ROWS[modality], items // _LEAST_SHARDS), _MOST_ROWS)
    return max(_LEAST_ROWS, 1 << (max(wanted, 1).bit_length() - 1))
