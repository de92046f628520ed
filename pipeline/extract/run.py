"""Extract: `extract(ExtractConfig(dataset=..., encoder=..., out=...))`, run by `pipeline extract`, stages/extract.py.

An image encoder reads images.csv into the store at `out`; a text encoder reads captions.csv into it and the class
prompts into `<out>/classes`. Only what is missing is computed; where nothing is, the encoder is not even loaded.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.encoders.base import Encoder
from pipeline.errors import KeyMismatchError, PipelineError, UserError
from pipeline.extract.config import STORAGE, ExtractConfig
from pipeline.extract.cost import Cost, default_shard_rows, estimate, seconds_a_row
from pipeline.extract.datasets.layout import RawDataset, open_dataset
from pipeline.extract.items import Items, caption_items, image_items, prompt_items
from pipeline.extract.progress import Meter, Report, Update, silent
from pipeline.extract.receipt import RECEIPT, read_receipt, versions, write_receipt
from pipeline.extract.rejected import check_share
from pipeline.extract.result import ExtractResult
from pipeline.layers import select_layers
from pipeline.store.key import FeatureKey
from pipeline.store.layout import CLASSES, HEADER, REJECTED, own_files
from pipeline.store.manifest import Header, Manifest, read_header
from pipeline.store.reader import FeatureStore
from pipeline.store.records import PendingShard, pending_shards
from pipeline.store.writer import StoreWriter

_REMEDY = "extract to another --out, or start over with --replace"


def extract(config: ExtractConfig, report: Report = silent) -> ExtractResult:
    """Bring the features of one data set through one encoder up to date.

    Args:
        config: What to extract.
        report: Is told of the cost and the progress.

    Raises:
        UserError: The data set, the encoder or an option is at fault, or too many items are broken.
        KeyMismatchError: `out` holds features of another key and `replace` is not set.
        PipelineError: The disk or the device does not do.
    """
    start = time.perf_counter()
    dataset = open_dataset(config.dataset)
    found = _unchanged(config, dataset)
    if found is None:
        found = _with_encoder(config, dataset, report)
    return replace(_joined(found), seconds=time.perf_counter() - start)


@dataclass(frozen=True)
class _Job:
    """One store to make."""

    root: Path
    items: Items


def _jobs(config: ExtractConfig, dataset: RawDataset, modality: str) -> Iterator[_Job]:
    if modality == "image":
        if not dataset.images:
            raise UserError(expected="images", found="none in images.csv", where=str(dataset.root))
        yield _Job(config.out, image_items(dataset, _workers(config)))
        return
    captions = bool(dataset.captions) and config.texts != "classes"
    classes = dataset.classes if config.texts != "captions" else None
    if not captions and not classes:
        wanted = {"all": "captions or classes", "captions": "captions", "classes": "classes.json"}[config.texts]
        raise UserError(expected=wanted, found="none", where=str(dataset.root), remedy="a text encoder needs texts")
    if captions:
        yield _Job(config.out, caption_items(dataset))
    if classes:
        yield _Job(config.out / CLASSES, prompt_items(dataset, classes))


def _joined(results: Sequence[ExtractResult]) -> ExtractResult:
    return replace(results[0], classes=results[1]) if len(results) > 1 else results[0]


def _workers(config: ExtractConfig) -> int:
    return config.workers or min(32, len(os.sched_getaffinity(0)))


# ---- nothing to do ---------------------------------------------------------------------------------------------------


def _unchanged(config: ExtractConfig, dataset: RawDataset) -> list[ExtractResult] | None:
    """Return the results of a finished extraction that would give the same again; None if there may be work."""
    receipt = read_receipt(config.out, config) or read_receipt(config.out / CLASSES, config)
    if receipt is None:
        return None
    results = []
    for job in _jobs(config, dataset, receipt["modality"]):
        result = _finished(config, job, receipt) if read_receipt(job.root, config) else None
        if result is None:
            return None
        results.append(result)
    return results


def _finished(config: ExtractConfig, job: _Job, receipt: Any) -> ExtractResult | None:
    try:
        layers = select_layers(config.layers, receipt["layer_names"])
        store = FeatureStore.open(job.root)
    except PipelineError:
        return None
    widths = {layer.name: layer.width for layer in store.layers}
    if store.key.dataset_digest != job.items.digest or not set(layers) <= set(widths):
        return None
    manifest = StoreWriter(job.root, store.manifest.header).refresh_samples(job.items.samples)
    asked = [(name, widths[name]) for name in layers]
    cost = estimate(job.root, job.items, asked, (), config.storage) if config.dry_run else None
    return _result(config, job, manifest, layers, (), cost)


# ---- something to do -------------------------------------------------------------------------------------------------


def _with_encoder(config: ExtractConfig, dataset: RawDataset, report: Report) -> list[ExtractResult]:
    from pipeline.encoders.load import load_encoder

    encoder = load_encoder(
        config.encoder,
        modality=config.modality,
        pool=config.pool,
        device=config.device,
        dtype=config.dtype,  # type: ignore[arg-type]  # checked by ExtractConfig
        max_length=config.max_length,
        prompt=config.prompt,
    )
    layers = encoder.resolve_layers(config.layers)
    return [_one_store(config, job, encoder, layers, report) for job in _jobs(config, dataset, encoder.modality)]


def _one_store(
    config: ExtractConfig, job: _Job, encoder: Encoder, layers: tuple[str, ...], report: Report
) -> ExtractResult:
    header = _header(config, job.items, encoder, layers)
    pending = _pending(config, job.root, header, layers)
    widths = [(name, encoder.width(name)) for name in layers]
    cost = estimate(job.root, job.items, widths, pending, config.storage)
    if config.dry_run:
        cost = _timed(cost, encoder, job.items, pending, _batch_size(config))
    if pending or config.dry_run:
        report(Update(what=job.items.what, message=f"{job.root}: {cost.sentence()}"))
    if config.dry_run:
        return _result(config, job, None, layers, (), cost)
    writer = StoreWriter(job.root, header)
    computed = _compute(config, job, encoder, layers, writer, cost, report)
    manifest = writer.finish(job.items.samples, _provenance(config, encoder))
    write_receipt(job.root, config, encoder.modality, [layer.name for layer in encoder.layers])
    return _result(config, job, manifest, layers, computed, cost)


def _header(config: ExtractConfig, items: Items, encoder: Encoder, layers: Sequence[str]) -> Header:
    known = [layer.name for layer in encoder.layers]
    modules = [name for name in layers if name not in known]
    widths = [encoder.width(name) for name in layers]
    return Header(
        key=feature_key(config, items, encoder),
        items=len(items),
        shard_rows=config.shard_rows or default_shard_rows(len(items), widths, config.storage),
        file_format=config.format,
        layer_names=(*known[:-1], *modules, known[-1]),
    )


def feature_key(config: ExtractConfig, items: Items, encoder: Encoder) -> FeatureKey:
    """Return the key of the features: everything that changes their bytes."""
    made = encoder.key()
    preprocessing = dict(made.preprocessing)
    if encoder.modality == "image":
        from pipeline.extract.decode import DECODE_VERSION

        preprocessing["decode"] = {"version": DECODE_VERSION, "library": "pillow", "transparency": "white"}
    return FeatureKey(
        modality=encoder.modality,
        dataset_digest=items.digest,
        encoder=made.encoder,
        preprocessing=preprocessing,
        pooling=made.pooling,
        compute_dtype=STORAGE[config.dtype],
        storage_dtype=config.storage,
    )


def _pending(config: ExtractConfig, root: Path, header: Header, layers: tuple[str, ...]) -> list[PendingShard]:
    """Return what is missing, before anything is written; with `replace`, a store of another key is removed."""
    if (root / HEADER).exists():
        try:
            existing = read_header(root)
            header.key.require(existing.key, str(root), _REMEDY)
            return pending_shards(root, existing, layers)
        except KeyMismatchError:
            if not config.replace:
                raise
            if not config.dry_run:
                _remove(root)
    return [PendingShard(index, *header.span(index), layers) for index in range(header.shards)]


def _remove(root: Path) -> None:
    for path in sorted(own_files(root), key=lambda path: path.name == HEADER):  # the header last: it says what this is
        path.unlink(missing_ok=True)
    (root / RECEIPT).unlink(missing_ok=True)


def _timed(cost: Cost, encoder: Encoder, items: Items, pending: Sequence[PendingShard], batch_size: int) -> Cost:
    if not pending:
        return replace(cost, seconds=0.0)
    layers = max((shard.layers for shard in pending), key=len)
    seconds = seconds_a_row(encoder, items, layers, batch_size, pending[0].start)
    return replace(cost, seconds=seconds * cost.missing_rows)


def _batch_size(config: ExtractConfig) -> int:
    if config.batch_size:
        return config.batch_size
    import torch

    on_gpu = config.device.startswith("cuda") or (config.device == "auto" and torch.cuda.is_available())
    return 256 if on_gpu else 32


def _compute(
    config: ExtractConfig,
    job: _Job,
    encoder: Encoder,
    layers: tuple[str, ...],
    writer: StoreWriter,
    cost: Cost,
    report: Report,
) -> tuple[int, ...]:
    from pipeline.extract.compute import Computation
    from pipeline.extract.forward import Forward

    batch_size = _batch_size(config)
    work = Computation(
        writer=writer,
        items=job.items,
        forward=Forward(encoder, layers, config.storage, batch_size),
        workers=_workers(config),
        max_rejected=config.max_rejected,
        meter=Meter(report, job.items.what, cost.rows, cost.rows - cost.missing_rows),
        batch_size=batch_size,
    )
    work.run()
    for note in work.forward.notes:
        report(Update(what=job.items.what, message=note))
    return tuple(work.shards)


def _provenance(config: ExtractConfig, encoder: Encoder) -> dict[str, Any]:
    return {
        "spec": config.encoder,
        "modality": encoder.modality,
        "dataset": str(config.dataset),
        "device": config.device,
        "batch_size": _batch_size(config),
        "versions": versions(),
    }


def _result(
    config: ExtractConfig,
    job: _Job,
    manifest: Manifest | None,
    layers: tuple[str, ...],
    computed: Sequence[int],
    cost: Cost | None,
) -> ExtractResult:
    rejected = _rejected(manifest) if manifest else []
    if manifest and not config.dry_run:
        table = job.root / REJECTED
        check_share(rejected, len(job.items), config.max_rejected, what=job.items.what, table=table)
    return ExtractResult(
        path=job.root,
        what=job.items.what,
        rows=manifest.rows if manifest else 0,
        layers=layers,
        computed_shards=len(computed),
        skipped_shards=manifest.header.shards - len(computed) if manifest else 0,
        rejected=len(rejected),
        nonfinite=sum(layer.nonfinite for layer in manifest.layers if layer.name in layers) if manifest else 0,
        seconds=0.0,
        content_digest=manifest.content_digest if manifest else "",
        cost=cost,
    )


def _rejected(manifest: Manifest) -> list[tuple[str, str]]:
    by_shard = {file.index: file.rejected for file in manifest.shards}
    return [pair for index in sorted(by_shard) for pair in by_shard[index]]
