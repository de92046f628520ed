"""Extract: `extract(ExtractConfig(dataset=..., encoder=..., out=...))`, run by `pipeline extract`, stages/extract.py.

An image encoder reads images.csv into the store at `out`; a text encoder reads captions.csv into it and the class
prompts into `<out>/classes`. Only what is missing is computed; where nothing is, the encoder is not even loaded.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.encoders.base import Encoder
from pipeline.errors import PipelineError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.datasets.layout import RawDataset, open_dataset
from pipeline.extract.items import Here, Preparing
from pipeline.extract.plan import (
    Cost,
    Job,
    batch_size_of,
    estimate,
    header_of,
    jobs_of,
    pending_of,
    require_free,
    seconds_a_row,
    workers_of,
)
from pipeline.extract.receipt import prepare_receipt, read_receipt, same_receipt, versions, write_receipt
from pipeline.layers import select_layers
from pipeline.progress import Meter, Progress, Update, silent
from pipeline.runtime import Share, keep_freed_memory
from pipeline.storage.contract import Storage
from pipeline.storage.leases import this_process
from pipeline.storage.open import open_storage
from pipeline.store.commit import PendingShard
from pipeline.store.events import EventLog
from pipeline.store.manifest import CLASSES, REJECTED, Header, Manifest
from pipeline.store.reader import FeatureStore
from pipeline.store.samples import samples_digest
from pipeline.store.writer import StoreWriter
from pipeline.words import count


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
            parts.append(f"{count(self.rejected, 'item')} left out, see {self.path / 'rejected.csv'}")
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
    dataset = open_dataset(config.dataset)
    require_free(open_storage(config.out))
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
    require_free(open_storage(config.out))
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
    out = open_storage(config.out)
    receipt = read_receipt(out.here, config) or read_receipt((out / CLASSES).here, config)
    if receipt is None:
        return None
    results = []
    for job in jobs_of(config, dataset, receipt["modality"]):
        own = same_receipt(job.root.here, receipt)
        result = _finished(config, job, own) if own else None
        if result is None:
            return None
        results.append(result)
    return results


def _finished(config: ExtractConfig, job: Job, receipt: Mapping[str, Any]) -> ExtractResult | None:
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
        cost = estimate(job.root, job.items, [(name, widths[name]) for name in layers], (), config.storage)
        return _result(job, layers, manifest, cost=cost)
    if samples_digest(job.items.samples) != manifest.samples:
        manifest = StoreWriter(job.root, manifest.header).refresh_samples(job.items.samples)
    _require_sound(config, job, manifest)
    return _result(job, layers, manifest)


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
    keep_freed_memory()
    prepared = prepare_receipt(config)
    encoder = loaded(config)
    layers = encoder.resolve_layers(config.layers)
    results = []
    for job in jobs_of(config, dataset, encoder.modality):
        making = _Making(config, job, encoder, layers, header_of(config, job.items, encoder, layers), progress)
        results.append(making.run(preparing))
        if not config.dry_run:
            names = [layer.name for layer in encoder.layers]
            write_receipt(job.root.here, prepared, making.header.key, encoder.modality, names)
    return results


@dataclass(frozen=True)
class _Making:
    """One store in the making."""

    config: ExtractConfig
    job: Job
    encoder: Encoder
    layers: tuple[str, ...]
    header: Header
    progress: Progress

    def run(self, preparing: Preparing) -> ExtractResult:
        """Compute what is missing and finish the store; of a dry run only the cost."""
        config, root, items = self.config, self.job.root, self.job.items
        pending = pending_of(config, root, self.header, self.layers)
        widths = [(name, self.encoder.width(name)) for name in self.layers]
        cost = estimate(root, items, widths, pending, config.storage)
        if config.dry_run:
            cost = self._timed(cost, pending)
        if pending or config.dry_run:
            self._tell(f"{root}: {cost.sentence()}")
        if config.dry_run:
            return _result(self.job, self.layers, None, cost=cost)
        holder = this_process()
        writer = StoreWriter(root, self.header, root.leases(config.lease_seconds, holder))
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
            computed = self._compute(writer, cost, events, preparing)
            manifest = writer.finish(items.samples, self._provenance())
            events.write("finished", rows=manifest.rows, content_digest=manifest.content_digest)
        _require_sound(config, self.job, manifest)
        return _result(self.job, self.layers, manifest, computed=computed, cost=cost)

    def _tell(self, message: str) -> None:
        self.progress(Update(what=self.job.items.what, message=message))

    def _timed(self, cost: Cost, pending: Sequence[PendingShard]) -> Cost:
        if not pending:
            return replace(cost, seconds=0.0)
        layers = max((shard.layers for shard in pending), key=len)
        batch_size = batch_size_of(self.config, self.encoder.modality)
        seconds = seconds_a_row(self.encoder, self.job.items, layers, batch_size, pending[0].start)
        return replace(cost, seconds=seconds * cost.missing_rows)

    def _compute(self, writer: StoreWriter, cost: Cost, events: EventLog, preparing: Preparing) -> int:
        """Compute the missing shards; return of how many this process computed something."""
        from pipeline.extract.compute import Computation
        from pipeline.extract.forward import Forward

        items, batch_size = self.job.items, batch_size_of(self.config, self.encoder.modality)
        work = Computation(
            writer=writer,
            items=items,
            forward=Forward(self.encoder, self.layers, self.config.storage, batch_size),
            preparing=preparing,
            max_rejected=self.config.max_rejected,
            meter=Meter(self.progress, items.what, cost.rows, cost.rows - cost.missing_rows),
            batch_size=batch_size,
            events=events,
            share=Share(index=self.config.worker_index, count=self.config.num_workers),
        )
        work.run()
        for note in work.forward.notes:
            self._tell(note)
        return len(work.shards)

    def _provenance(self) -> dict[str, Any]:
        return {
            "spec": self.config.encoder,
            "modality": self.encoder.modality,
            "dataset": str(self.config.dataset),
            "device": self.config.device,
            "batch_size": batch_size_of(self.config, self.encoder.modality),
            "versions": versions(),
        }


def _require_sound(config: ExtractConfig, job: Job, manifest: Manifest) -> None:
    job.items.require_sound(_rejected(manifest), config.max_rejected, str(job.root / REJECTED))


def _rejected(manifest: Manifest) -> list[tuple[str, str]]:
    by_shard = {file.index: file.rejected for file in manifest.shards}
    return [pair for index in sorted(by_shard) for pair in by_shard[index]]


def _result(
    job: Job, layers: tuple[str, ...], manifest: Manifest | None, *, computed: int = 0, cost: Cost | None = None
) -> ExtractResult:
    counts = {layer.name: layer.nonfinite for layer in manifest.layers} if manifest else {}
    nonfinite = {name: counts[name] for name in layers if counts.get(name)}
    return ExtractResult(
        path=job.root,
        what=job.items.what,
        rows=manifest.rows if manifest else 0,
        layers=layers,
        computed_shards=computed,
        skipped_shards=manifest.header.shards - computed if manifest else 0,
        rejected=len(_rejected(manifest)) if manifest else 0,
        nonfinite=sum(nonfinite.values()),
        nonfinite_layers=nonfinite,
        seconds=0.0,
        content_digest=manifest.content_digest if manifest else "",
        cost=cost,
    )
