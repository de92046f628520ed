"""Extract: `extract(ExtractConfig(dataset=..., encoder=..., out=...))`, run by `pipeline extract`, stages/extract.py.

An image encoder reads images.csv into the store at `out`; a text encoder reads captions.csv into it and the class
prompts into `<out>/classes`. Only what is missing is computed; where nothing is, the encoder is not even loaded.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipeline.encoders.base import Encoder
from pipeline.errors import PipelineError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.cost import Cost, estimate, seconds_a_row
from pipeline.extract.datasets.layout import RawDataset, open_dataset
from pipeline.extract.items import Items
from pipeline.extract.plan import Job, batch_size_of, header_of, jobs_of, pending_of, require_free, workers_of
from pipeline.extract.prepare import Here, Preparing
from pipeline.extract.receipt import prepare_receipt, read_receipt, same_receipt, versions, write_receipt
from pipeline.extract.rejected import check_share
from pipeline.extract.result import ExtractResult
from pipeline.extract.shares import Share
from pipeline.layers import select_layers
from pipeline.progress import Meter, Progress, Update, silent
from pipeline.remote.binding import address
from pipeline.store.distant import leases_of, pull_tables
from pipeline.store.events import EventLog
from pipeline.store.holder import this_process
from pipeline.store.key import FeatureKey
from pipeline.store.layout import CLASSES, REJECTED
from pipeline.store.manifest import Manifest
from pipeline.store.reader import FeatureStore
from pipeline.store.records import PendingShard
from pipeline.store.samples import samples_digest
from pipeline.store.writer import StoreWriter


def extract(config: ExtractConfig, progress: Progress = silent, preparing: Preparing | None = None) -> ExtractResult:
    """Bring the features of one data set through one encoder up to date.

    Args:
        config: What to extract.
        progress: Is told of the cost and the progress.
        preparing: What decodes and tokenises; nothing means threads of this process.

    Raises:
        UserError: The data set, the encoder or an option is at fault, or too many items are broken.
        KeyMismatchError: `out` holds features of another key and `replace` is not set.
        PipelineError: The disk or the device does not do.
    """
    start = time.perf_counter()
    dataset = open_dataset(config.dataset)
    pull_tables(config.out)
    require_free(config.out)
    found = _unchanged(config, dataset)
    if found is None:
        found = _with_encoder(config, dataset, progress, preparing or Here(workers_of(config)))
    return replace(_joined(found), seconds=time.perf_counter() - start)


def finished(config: ExtractConfig) -> ExtractResult | None:
    """Return what `extract` would return without loading the encoder; None if it would load it.

    Raises:
        UserError: The data set cannot be used, or `out` holds something else.
    """
    dataset = open_dataset(config.dataset)
    require_free(config.out)
    found = _unchanged(config, dataset)
    return None if found is None else _joined(found)


def make_room(config: ExtractConfig) -> None:
    """Do what `replace` asks for before many workers begin: remove a store of another key.

    Raises:
        UserError: As `extract`.
    """
    encoder = loaded(config)
    layers = encoder.resolve_layers(config.layers)
    for job in jobs_of(config, open_dataset(config.dataset), encoder.modality):
        pending_of(config, job.root, header_of(config, job.items, encoder, layers), layers)


def _joined(results: Sequence[ExtractResult]) -> ExtractResult:
    return replace(results[0], classes=results[1]) if len(results) > 1 else results[0]


# ---- nothing to do ---------------------------------------------------------------------------------------------------


def _unchanged(config: ExtractConfig, dataset: RawDataset) -> list[ExtractResult] | None:
    """Return the results of a finished extraction that would give the same again; None if there may be work."""
    receipt = read_receipt(config.out, config) or read_receipt(config.out / CLASSES, config)
    if receipt is None:
        return None
    results = []
    for job in jobs_of(config, dataset, receipt["modality"]):
        own = same_receipt(job.root, receipt)
        result = _finished(config, job, own) if own else None
        if result is None:
            return None
        results.append(result)
    return results


def _finished(config: ExtractConfig, job: Job, receipt: Any) -> ExtractResult | None:
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
    if not config.dry_run and samples_digest(job.items.samples) != manifest.samples:
        manifest = StoreWriter(job.root, manifest.header).refresh_samples(job.items.samples)
    asked = [(name, widths[name]) for name in layers]
    cost = estimate(job.root, job.items, asked, (), config.storage) if config.dry_run else None
    return _result(config, job, manifest, layers, (), cost)


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
    config: ExtractConfig, dataset: RawDataset, progress: Progress, preparing: Preparing
) -> list[ExtractResult]:
    from pipeline.runtime import keep_freed_memory

    keep_freed_memory()
    prepared = prepare_receipt(config)
    encoder = loaded(config)
    layers = encoder.resolve_layers(config.layers)
    results = []
    for job in jobs_of(config, dataset, encoder.modality):
        result, key = _one_store(config, job, encoder, layers, progress, preparing)
        if not config.dry_run:
            write_receipt(job.root, prepared, key, encoder.modality, [layer.name for layer in encoder.layers])
        results.append(result)
    return results


def _one_store(
    config: ExtractConfig,
    job: Job,
    encoder: Encoder,
    layers: tuple[str, ...],
    progress: Progress,
    preparing: Preparing,
) -> tuple[ExtractResult, FeatureKey]:
    header = header_of(config, job.items, encoder, layers)
    pending = pending_of(config, job.root, header, layers)
    widths = [(name, encoder.width(name)) for name in layers]
    cost = estimate(job.root, job.items, widths, pending, config.storage)
    if config.dry_run:
        cost = _timed(cost, encoder, job.items, pending, batch_size_of(config, encoder.modality))
    if pending or config.dry_run:
        progress(Update(what=job.items.what, message=f"{address(job.root)}: {cost.sentence()}"))
    if config.dry_run:
        return _result(config, job, None, layers, (), cost), header.key
    holder = this_process()
    writer = StoreWriter(job.root, header, leases_of(job.root, config.lease_seconds, holder))
    with EventLog(job.root, holder) as events:
        if pending:
            events.start(
                index=config.worker_index,
                of=config.num_workers,
                shards=len(pending),
                rows=cost.missing_rows,
                layers=layers,
                lease_seconds=config.lease_seconds,
                kernel=holder.kernel,
            )
        computed = _compute(config, job, encoder, layers, writer, cost, progress, events, preparing)
        manifest = writer.finish(job.items.samples, _provenance(config, encoder))
        events.write("finished", rows=manifest.rows, content_digest=manifest.content_digest)
    return _result(config, job, manifest, layers, computed, cost), header.key


def _timed(cost: Cost, encoder: Encoder, items: Items, pending: Sequence[PendingShard], batch_size: int) -> Cost:
    if not pending:
        return replace(cost, seconds=0.0)
    layers = max((shard.layers for shard in pending), key=len)
    seconds = seconds_a_row(encoder, items, layers, batch_size, pending[0].start)
    return replace(cost, seconds=seconds * cost.missing_rows)


def _compute(
    config: ExtractConfig,
    job: Job,
    encoder: Encoder,
    layers: tuple[str, ...],
    writer: StoreWriter,
    cost: Cost,
    progress: Progress,
    events: EventLog,
    preparing: Preparing,
) -> tuple[int, ...]:
    from pipeline.extract.compute import Computation
    from pipeline.extract.forward import Forward

    batch_size = batch_size_of(config, encoder.modality)
    work = Computation(
        writer=writer,
        items=job.items,
        forward=Forward(encoder, layers, config.storage, batch_size),
        preparing=preparing,
        max_rejected=config.max_rejected,
        meter=Meter(progress, job.items.what, cost.rows, cost.rows - cost.missing_rows),
        batch_size=batch_size,
        events=events,
        share=Share(index=config.worker_index, count=config.num_workers),
    )
    work.run()
    for note in work.forward.notes:
        progress(Update(what=job.items.what, message=note))
    return tuple(work.shards)


def _provenance(config: ExtractConfig, encoder: Encoder) -> dict[str, Any]:
    return {
        "spec": config.encoder,
        "modality": encoder.modality,
        "dataset": address(config.dataset),
        "device": config.device,
        "batch_size": batch_size_of(config, encoder.modality),
        "versions": versions(),
    }


def _result(
    config: ExtractConfig,
    job: Job,
    manifest: Manifest | None,
    layers: tuple[str, ...],
    computed: Sequence[int],
    cost: Cost | None,
) -> ExtractResult:
    rejected = _rejected(manifest) if manifest else []
    if manifest and not config.dry_run:
        table = job.root / REJECTED
        check_share(rejected, len(job.items), config.max_rejected, what=job.items.what, table=table)
    counts = {layer.name: layer.nonfinite for layer in manifest.layers} if manifest else {}
    nonfinite = {name: counts[name] for name in layers if counts.get(name)}
    return ExtractResult(
        path=job.root,
        what=job.items.what,
        rows=manifest.rows if manifest else 0,
        layers=layers,
        computed_shards=len(computed),
        skipped_shards=manifest.header.shards - len(computed) if manifest else 0,
        rejected=len(rejected),
        nonfinite=sum(nonfinite.values()),
        nonfinite_layers=nonfinite,
        seconds=0.0,
        content_digest=manifest.content_digest if manifest else "",
        cost=cost,
    )


def _rejected(manifest: Manifest) -> list[tuple[str, str]]:
    by_shard = {file.index: file.rejected for file in manifest.shards}
    return [pair for index in sorted(by_shard) for pair in by_shard[index]]
