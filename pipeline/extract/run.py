"""Extract: `extract(ExtractConfig(dataset=..., encoder=..., out=...))`, run by `pipeline extract`, stages/extract.py.

An image encoder reads images.csv into the store at `out`; a text encoder reads captions.csv into it and the class
prompts into `<out>/classes`. Only what is missing is computed; where nothing is, the encoder is not even loaded.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.encoders.base import Encoder
from pipeline.errors import PipelineError, UserError
from pipeline.extract.config import ExtractConfig, default_shard_rows
from pipeline.extract.datasets.layout import RawDataset, open_dataset
from pipeline.extract.items import (
    Job,
    Preparing,
    feature_key,
    jobs_of,
    prepare,
    require_key,
    with_its_rule,
)
from pipeline.extract.receipt import RECEIPT, prepare_receipt, read_receipt, same_receipt, versions, write_receipt
from pipeline.layers import select_layers
from pipeline.progress import Meter, Progress, Update, silent
from pipeline.runtime import free_disk, keep_freed_memory
from pipeline.storage.contract import Storage
from pipeline.storage.leases import Leases, this_process
from pipeline.storage.local import open_storage
from pipeline.store.cleaning import holds_no_row, replace_store
from pipeline.store.commit import PendingShard, pending_shards
from pipeline.store.events import EventLog
from pipeline.store.key import storage_dtype
from pipeline.store.manifest import CLASSES, HEADER, REJECTED, Header, Manifest, own_files, read_header
from pipeline.store.reader import FeatureStore
from pipeline.store.samples import samples_digest
from pipeline.store.writer import StoreWriter
from pipeline.words import count, duration, size


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
        layers, missing = count(len(self.layers), "layer"), count(self.missing_rows, "row")
        text = (
            f"{self.rows:,} {self.what} × {layers} ({widths:,} values a row) = {size(self.bytes)}; "
            f"still to do: {missing}, {size(self.missing_bytes)}; free disk: {size(self.free_bytes)}"
        )
        return text if self.seconds is None else f"{text}; expected time: {duration(self.seconds)}"


@dataclass(frozen=True, kw_only=True)
class ExtractResult:
    """One store, made or found."""

    path: Storage
    """The feature store."""
    what: str
    """What its rows are: images, captions or class prompts."""
    rows: int
    """N rows in it; 0 after a dry run of a new store."""
    layers: tuple[str, ...]
    """Layers that were asked for."""
    computed_shards: int
    """Shards of which this run computed something."""
    skipped_shards: int
    """Shards that were there already or came from another process."""
    rejected: int
    """Items that were left out; rejected.csv lists them."""
    nonfinite: int
    """Values that are infinite or not a number: fp16 overflows at 65504."""
    nonfinite_layers: dict[str, int]
    """How many of them each layer has; layers without any are left out."""
    seconds: float
    """Time that this run took."""
    content_digest: str
    """Digest of ids and values; empty after a dry run."""
    cost: Cost | None = None
    """What was to be done; None where nothing was."""
    classes: "ExtractResult | None" = None
    """The nested store of class prompts, where a text encoder has made one as well."""

    def sentence(self) -> str:
        """Return what was done, for people; the class prompts' sentence on a line of its own."""
        return "\n".join([self._own_sentence(), *([self.classes.sentence()] if self.classes else [])])

    def _own_sentence(self) -> str:
        if self.cost is not None and not self.content_digest:
            return f"{self.path}: {self.cost.sentence()}"
        if not self.computed_shards:
            return f"{self.path}: nothing to do, {self.rows} {self.what} are there ({self.seconds:.1f} s)"
        parts = [
            f"{self.path}: {self.rows} {self.what}, {count(len(self.layers), 'layer')}, {self.seconds:.1f} s",
            f"{count(self.computed_shards, 'shard')} computed, {self.skipped_shards} found",
        ]
        if self.rejected:
            parts.append(f"{count(self.rejected, 'item')} left out, see {self.path / REJECTED}")
        if self.nonfinite:
            layers = ", ".join(f"{name} {count}" for name, count in self.nonfinite_layers.items())
            parts.append(f"{self.nonfinite} values are no finite numbers ({layers})")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain JSON data."""
        classes = self.classes.to_json() if self.classes else None
        return {**asdict(self), "path": str(self.path), "layers": list(self.layers), "classes": classes}


def extract(config: ExtractConfig, progress: Progress = silent, preparing: Preparing | None = None) -> ExtractResult:
    """Bring the features of one data set through one encoder up to date.

    Args:
        config: What to extract.
        progress: Is told of the cost and the progress.
        preparing: What decodes and tokenises; nothing means threads of this process.

    Raises:
        UserError: The data set, the encoder or an option is at fault, or too many items are broken.
        KeyMismatchError: `out` holds features of another key and `replace` is not set.
        PipelineError: The disk is full or the device fails.
    """
    start = time.perf_counter()
    dataset = _opened(config)
    found = _unchanged(config, dataset) or _with_encoder(config, dataset, progress, preparing)
    return replace(found, seconds=time.perf_counter() - start)


def finished(config: ExtractConfig) -> ExtractResult | None:
    """Return what `extract` would return without loading the encoder; None if it would load it.

    Raises:
        UserError: The data set cannot be used, or `out` holds something else.
    """
    return _unchanged(config, _opened(config))


def make_room(config: ExtractConfig) -> None:
    """Do what `replace` asks for before many workers begin: remove a store of another key.

    Raises:
        UserError: As `extract`.
    """
    encoder = loaded(config)
    layers = encoder.resolve_layers(config.layers)
    for job in jobs_of(config, open_dataset(config.dataset), encoder.modality):
        _pending(config, job.root, _header(config, job, encoder, layers), layers)


def _opened(config: ExtractConfig) -> RawDataset:
    """Return the data set, if `out` is a store, what a killed run left of one, or free for one."""
    dataset, out = open_dataset(config.dataset), open_storage(config.out)
    if out.absent() or own_files(out) or HEADER in (out / CLASSES).list():
        return dataset
    others = sorted(path.name for path in out.here.iterdir() if not path.name.startswith("."))
    if others:
        raise UserError(
            expected="a feature store, or a folder that is empty or not there yet",
            found=f"{', '.join(others[:3])}{', …' * (len(others) > 3)} and no store",
            where=str(out),
            remedy="name another --out, such as data/1_features/<data set>/<encoder>",
        )
    return dataset


# ---- nothing to do ---------------------------------------------------------------------------------------------------


def _unchanged(config: ExtractConfig, dataset: RawDataset) -> ExtractResult | None:
    """Return the result of a finished extraction that would give the same again; None if there may be work."""
    out = open_storage(config.out)
    receipt = read_receipt(out.here, config) or read_receipt((out / CLASSES).here, config)
    if receipt is None:
        return None
    results = []
    for job in jobs_of(config, dataset, receipt["modality"]):
        own = same_receipt(job.root.here, receipt)
        result = _found(config, job, own) if own else None
        if result is None:
            return None
        results.append(result)
    return _joined(results)


def _found(config: ExtractConfig, job: Job, receipt: Mapping[str, Any]) -> ExtractResult | None:
    """Return the result of a finished store, if the receipt is of its key and it holds all layers asked for."""
    try:
        layers = select_layers(config.layers, receipt["layer_names"])
        store = FeatureStore.open(job.root)
    except PipelineError:
        return None
    widths = {layer.name: layer.width for layer in store.layers}
    fits = store.key.digest() == receipt["key"] and store.key.dataset_digest == job.items.digest
    if not fits or not set(layers) <= set(widths):
        return None
    manifest = store.manifest
    if config.dry_run:
        cost = _cost(job, [(name, widths[name]) for name in layers], (), config.storage)
        return _result(job, layers, manifest, cost=cost)
    if samples_digest(job.items.samples) != manifest.samples:
        manifest = StoreWriter(job.root, manifest.header).refresh_samples(job.items.samples)
    return _result(job, layers, manifest, max_rejected=config.max_rejected)


def _joined(results: Sequence[ExtractResult]) -> ExtractResult:
    return replace(results[0], classes=results[1]) if len(results) > 1 else results[0]


# ---- something to do -------------------------------------------------------------------------------------------------


def loaded(config: ExtractConfig) -> Encoder:
    """Return the encoder that is asked for.

    Raises:
        UserError: There is none, or it cannot be had in this form.
    """
    from pipeline.encoders.load import load_encoder

    return load_encoder(
        config.encoder,
        modality=config.modality,
        pool=config.pool,
        device=config.device,
        dtype=config.dtype,  # type: ignore[arg-type]  # checked by ExtractConfig
        max_length=config.max_length,
        prompt=config.prompt,
    )


def _with_encoder(
    config: ExtractConfig, dataset: RawDataset, progress: Progress, preparing: Preparing | None
) -> ExtractResult:
    keep_freed_memory()
    prepared = prepare_receipt(config)
    encoder = loaded(config)
    layers = encoder.resolve_layers(config.layers)
    results = []
    for job in jobs_of(config, dataset, encoder.modality):
        header = _header(config, job, encoder, layers)
        results.append(_Making(config, job, encoder, layers, header, progress).run(preparing))
        if not config.dry_run:
            names = [layer.name for layer in encoder.layers]
            write_receipt(job.root.here, prepared, header.key, encoder.modality, names)
    return _joined(results)


@dataclass(frozen=True)
class _Making:
    """One store in the making."""

    config: ExtractConfig
    job: Job
    encoder: Encoder
    layers: tuple[str, ...]
    header: Header
    progress: Progress

    def run(self, preparing: Preparing | None) -> ExtractResult:
        """Compute what is missing and finish the store; of a dry run only the cost."""
        config, root, encoder = self.config, self.job.root, self.encoder
        pending = _pending(config, root, self.header, self.layers)
        cost = _cost(self.job, [(name, encoder.width(name)) for name in self.layers], pending, config.storage)
        if config.dry_run:
            cost = replace(cost, seconds=self._seconds_a_row(pending) * cost.missing_rows)
        if pending or config.dry_run:
            self._tell(f"{root}: {cost.sentence()}")
        if config.dry_run:
            return _result(self.job, self.layers, None, cost=cost)
        if pending and HEADER not in root.list():
            self._try_twice()
        holder = this_process()
        writer = StoreWriter(root, self.header, Leases(root, config.lease_seconds, holder=holder))
        with EventLog(root, holder) as events:
            if pending:
                events.start(
                    index=config.worker_index,
                    of=config.num_workers,
                    shards=len(pending),
                    rows=cost.missing_rows,
                    layers=self.layers,
                    lease_seconds=config.lease_seconds,
                    kernel=holder.kernel,
                )
            computed = self._compute(writer, cost, events, preparing or Preparing(config.threads))
            provenance = {
                "spec": config.encoder,
                "modality": encoder.modality,
                "dataset": str(config.dataset),
                "device": config.device,
                "batch_size": config.rows_a_pass(encoder.modality),
                "versions": versions(),
            }
            manifest = writer.finish(self.job.items.samples, provenance)
            events.write("finished", rows=manifest.rows, content_digest=manifest.content_digest)
        return _result(self.job, self.layers, manifest, max_rejected=config.max_rejected, computed=computed, cost=cost)

    def _try_twice(self) -> None:
        from pipeline.extract.compute import require_same_twice

        require_same_twice(self.encoder, self.job.items, self.layers, self.config)

    def _tell(self, message: str) -> None:
        self.progress(Update(what=self.job.items.what, message=message))

    def _seconds_a_row(self, pending: Sequence[PendingShard]) -> float:
        """Measure one small batch from loading to features, after one that warms up; 0 where nothing is pending."""
        if not pending:
            return 0.0
        layers, first, items = max((shard.layers for shard in pending), key=len), pending[0].start, self.job.items
        most = min(self.config.rows_a_pass(self.encoder.modality), 8)
        positions = range(first, min(len(items), first + most))
        took = 0.0
        for _ in range(2):
            start = time.perf_counter()
            prepared = [prepare(self.encoder, items.at(position)) for position in positions]
            tensors = [item.tensor for item in prepared if item.tensor is not None]
            if tensors:
                self.encoder.encode(tensors, layers)
            took = time.perf_counter() - start
        return took / max(len(positions), 1)

    def _compute(self, writer: StoreWriter, cost: Cost, events: EventLog, preparing: Preparing) -> int:
        """Compute the missing shards; return of how many this process computed something."""
        from pipeline.extract.compute import Computation, Forward

        config, items = self.config, self.job.items
        work = Computation(
            writer=writer,
            items=items,
            forward=Forward(self.encoder, self.layers, config.storage, config.rows_a_pass(self.encoder.modality)),
            preparing=preparing,
            config=config,
            meter=Meter(self.progress, items.what, cost.rows, cost.rows - cost.missing_rows),
            events=events,
        )
        work.run()
        for note in work.forward.notes:
            self._tell(note)
        return len(work.shards)


def _header(config: ExtractConfig, job: Job, encoder: Encoder, layers: Sequence[str]) -> Header:
    """Return the header of a new store; modules that are asked for by name count as layers before the output."""
    known = [layer.name for layer in encoder.layers]
    modules = [name for name in layers if name not in known]
    widths = [encoder.width(name) for name in layers]
    rows = len(job.items)
    return Header(
        key=feature_key(with_its_rule(config, job), job.items, encoder),
        items=rows,
        shard_rows=config.shard_rows or default_shard_rows(rows, widths, config.storage, encoder.modality),
        file_format=config.format,
        layer_names=(*known[:-1], *modules, known[-1]),
    )


def _pending(config: ExtractConfig, root: Storage, header: Header, layers: tuple[str, ...]) -> list[PendingShard]:
    """Return what is missing, before anything is written.

    A store that does not fit is removed with `replace`, and where a failed run left it without a row.
    """
    if HEADER in root.list():
        try:
            existing = read_header(root)
            require_key(config, header.key, existing.key, str(root))
            return pending_shards(root, existing, layers)
        except UserError:  # another key, a damaged header, another version of the format
            if not (config.replace or holds_no_row(root)):
                raise
            if not config.dry_run:
                (root.here / RECEIPT).unlink(missing_ok=True)
                replace_store(root)
    return [PendingShard(index, *header.span(index), layers) for index in range(header.shards)]


def _cost(job: Job, layers: Sequence[tuple[str, int]], pending: Sequence[PendingShard], storage: str) -> Cost:
    """Count rows and bytes of layers (name, D); what is pending and does not fit on the disk is a PipelineError."""
    itemsize, width = storage_dtype(storage).itemsize, dict(layers)
    missing = sum((shard.stop - shard.start) * sum(width[name] for name in shard.layers) for shard in pending)
    cost = Cost(
        what=job.items.what,
        rows=len(job.items),
        layers=tuple(layers),
        bytes=len(job.items) * sum(width.values()) * itemsize,
        missing_rows=sum(shard.stop - shard.start for shard in pending),
        missing_bytes=missing * itemsize,
        free_bytes=free_disk(job.root.here),
    )
    if cost.missing_bytes * 1.02 > cost.free_bytes:
        raise PipelineError(
            expected=f"{size(cost.missing_bytes)} of free disk",
            found=f"{size(cost.free_bytes)}",
            where=str(job.root),
            remedy="take fewer layers (--layers), --storage-dtype fp16, or another --out",
        )
    return cost


def _result(
    job: Job,
    layers: tuple[str, ...],
    manifest: Manifest | None,
    *,
    max_rejected: float = 1.0,
    computed: int = 0,
    cost: Cost | None = None,
) -> ExtractResult:
    """Return what a store holds now; nothing is known of a store that a dry run has not made."""
    counts = {layer.name: layer.nonfinite for layer in manifest.layers} if manifest else {}
    nonfinite = {name: counts[name] for name in layers if counts.get(name)}
    by_shard = {file.index: file.rejected for file in manifest.shards} if manifest else {}
    rejected = [pair for index in sorted(by_shard) for pair in by_shard[index]]
    job.items.require_sound(rejected, max_rejected, str(job.root / REJECTED))
    return ExtractResult(
        path=job.root,
        what=job.items.what,
        rows=manifest.rows if manifest else 0,
        layers=layers,
        computed_shards=computed,
        skipped_shards=manifest.header.shards - computed if manifest else 0,
        rejected=len(rejected),
        nonfinite=sum(nonfinite.values()),
        nonfinite_layers=nonfinite,
        seconds=0.0,
        content_digest=manifest.content_digest if manifest else "",
        cost=cost,
    )
