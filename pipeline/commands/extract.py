"""`pipeline extract`: run frozen encoders once and keep the features of every layer."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands import engine as engines
from pipeline.commands.data import make_missing
from pipeline.commands.output import emit_json, say
from pipeline.commands.urls import takes_urls
from pipeline.errors import UserError
from pipeline.words import on_stderr

if TYPE_CHECKING:
    from pipeline.extract.config import ExtractConfig


@takes_urls("dataset", "out")
def extract(
    dataset: Annotated[Path | None, typer.Option(help="Data set folder, data/0_raw/<name>.")] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="timm:NAME, open_clip:NAME/PRETRAINED, hf:ORG/NAME@REV, st:ORG/NAME (each also with a local path), "
            "package:NAME, or module:Class."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Feature store, data/1_features/<data set>/<encoder>.")] = None,
    layers: Annotated[str | None, typer.Option(help="all, last, 0,5,-1, 4:12, or module names.")] = None,
    pool: Annotated[
        str | None, typer.Option(help="auto, cls, mean, eos, patch_mean or cls+patch_mean.", show_default=False)
    ] = None,
    modality: Annotated[str | None, typer.Option(help="image or text: which tower of a model with two.")] = None,
    texts: Annotated[str | None, typer.Option(help="captions, classes (prompts), or all.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Put before every text.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest text in tokens.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Arithmetic: fp32, fp16 or bf16.")] = None,
    storage_dtype: Annotated[
        str | None, typer.Option(help="Format on the disk; the same as --dtype if unsaid.")
    ] = None,
    jpeg: Annotated[str | None, typer.Option(help="exact, or reduced: large JPEGs 2 to 6 times as fast.")] = None,
    exif: Annotated[str | None, typer.Option(help="reject, or apply: turn photographs upright as EXIF says.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:1.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows in a forward pass.")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads that decode and tokenise.")] = None,
    decode_cpus: Annotated[
        int | None,
        typer.Option(
            help="CPUs of a cluster that only decode images; if unsaid, where encoders have GPUs, those of the nodes "
            "without one.",
            show_default=False,
        ),
    ] = None,
    shard_rows: Annotated[int | None, typer.Option(help="Items in a shard.")] = None,
    file_format: Annotated[str | None, typer.Option("--format", help="hdf5 or parquet.")] = None,
    worker_index: Annotated[
        int | None, typer.Option(help="Which of several workers on one store this is, from 0.", show_default=False)
    ] = None,
    num_workers: Annotated[
        int | None, typer.Option(help="How many there are; by itself from srun, torchrun and SLURM arrays.")
    ] = None,
    lease_seconds: Annotated[
        float | None, typer.Option(help="Silence after which what a worker of another machine held is taken over.")
    ] = None,
    max_rejected: Annotated[float | None, typer.Option(help="Share of broken items at which the run stops.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Throw away a store of another key at --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost and stop.")] = False,
    engine: engines.Name = "local",
    address: engines.Address = None,
    params: Annotated[Path, typer.Option(help="Where what is not said comes from.")] = Path("params.yaml"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Run frozen encoders once and keep the features of every layer.

    Without --dataset, --encoder and --out: every (data set, encoder) that params.yaml names; a data set that is not
    there yet is made first. A second run does nothing; more layers later compute only those; what is committed
    survives a kill.

    Example: pipeline extract --layers all

    Example: pipeline extract --dataset data/0_raw/mine --encoder st:ORG/NAME --out data/1_features/mine/name

    Example: pipeline extract --layers all --engine ray --address auto
    """
    flags: dict[str, Any] = {
        "layers": layers,
        "pool": pool,
        "modality": modality,
        "texts": texts,
        "prompt": prompt,
        "max_length": max_length,
        "dtype": dtype,
        "storage_dtype": storage_dtype,
        "jpeg": jpeg,
        "exif": exif,
        "device": device,
        "batch_size": batch_size,
        "workers": workers,
        "decode_cpus": _with_a_cluster(decode_cpus, engine),
        "shard_rows": shard_rows,
        "format": file_format,
        "lease_seconds": lease_seconds,
        "max_rejected": max_rejected,
        "replace": replace or None,
        "dry_run": dry_run or None,
        **_share(worker_index, num_workers, engine, quiet=quiet),
    }
    from pipeline.engines.table import open_engine
    from pipeline.progress import progress_bar

    results = []
    with open_engine(engine, address) as chosen:
        for config in _configs(dataset, encoder, out, params, flags, quiet=quiet):
            with progress_bar(quiet=quiet) as progress:
                result = chosen.extract(config, progress)
            results.append(result)
            if not json:
                say(result.sentence())
    if json:
        plain = [result.to_json() for result in results]
        emit_json(plain[0] if dataset else plain)


def _with_a_cluster(decode_cpus: int | None, engine: str) -> int | None:
    if decode_cpus is not None and engine == "local":
        remedy = "without a cluster --workers says how many threads decode"
        raise UserError(expected="--engine ray beside it", found="none", where="--decode-cpus", remedy=remedy)
    return decode_cpus


def _share(worker_index: int | None, num_workers: int | None, engine: str, *, quiet: bool) -> dict[str, int]:
    """Return which worker this is, as fields of the settings; empty where nothing says that there are several."""
    from pipeline.extract.shares import share_of

    if engine != "local":
        if worker_index is not None or num_workers is not None:
            found = "--worker-index or --num-workers"
            raise UserError(
                expected="an engine that shares the work out, or workers by hand",
                found=f"{found} too",
                where=f"--engine {engine}",
            )
        return {}
    share = share_of(worker_index, num_workers, os.environ)
    if share.source and not quiet:
        on_stderr(
            f"worker {share.index} of {share.count}, as {share.source} in the environment says: "
            "it decides what is done first, not what is done (--num-workers 1 to ignore it)"
        )
    said = num_workers is not None or share.count > 1
    return {"worker_index": share.index, "num_workers": share.count} if said else {}


def _configs(
    dataset: Path | None,
    encoder: str | None,
    out: Path | None,
    params: Path,
    flags: dict[str, Any],
    *,
    quiet: bool,
) -> "list[ExtractConfig]":
    from pipeline.config import build, load_params
    from pipeline.extract.config import ExtractConfig
    from pipeline.extract.params import extract_config, named_stores

    said = {"--dataset": dataset, "--encoder": encoder, "--out": out}
    given = [name for name, value in said.items() if value is not None]
    if len(given) == len(said):
        values = {name: value for name, value in flags.items() if value is not None}
        return [
            build(
                ExtractConfig, {**values, "dataset": dataset, "encoder": encoder, "out": out}, where="pipeline extract"
            )
        ]
    if given:
        raise UserError(
            expected="--dataset, --encoder and --out together, or none of them (then params.yaml says)",
            found=f"only {' and '.join(given)}",
            where="pipeline extract",
        )
    settings = load_params(params)
    stores = named_stores(settings, str(params))
    if not stores:
        raise UserError(expected="datasets, image_encoder and text_encoder in it", found="none", where=str(params))
    make_missing(settings, quiet=quiet)
    return [extract_config(settings, dataset, encoder, where=str(params), **flags) for dataset, encoder in stores]
