"""`pipeline store`: look into feature stores, check them, measure them, clean them, bring them in and out."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.options import Json, renamed, takes_urls
from pipeline.commands.output import emit_json, emit_table, say
from pipeline.words import count, duration, size

if TYPE_CHECKING:
    from pipeline.store.events import Summary, WorkerStatus

app = typer.Typer(no_args_is_help=True, help="Look into feature stores, check them, bring them in and out.")

Store = Annotated[Path, typer.Argument(help="Feature store, data/1_features/<data set>/<encoder>.")]


@app.command()
@takes_urls("store")
def ls(store: Store, json: Json = False) -> None:
    """Show what a store holds: rows, layers, key, digests.

    Example: pipeline store ls data/1_features/openmoji/efficientnet-lite0
    """
    from pipeline.store.inspect import ls as look

    found = look(store)
    if json:
        emit_json(found)
        return
    sizes = (count(found["rows"], "row"), count(found["shards"], "shard"), size(found["bytes"]), found["format"])
    say(f"{store}: {', '.join(sizes)}")
    say(f"key {found['key_digest']}\ncontent {found['content_digest']}")
    say("splits " + ", ".join(f"{name or '(none)'} {rows}" for name, rows in found["splits"].items()))
    if found["rejected"]:
        say(f"{count(found['rejected'], 'item')} left out, see {store / 'rejected.csv'}")
    typer.echo()
    emit_table(found["layers"], ("name", "width", "dtype", "nonfinite"))
    if found["classes"]:
        say(f"\nclass prompts: {store / 'classes'}, {count(found['classes']['rows'], 'row')}")


@app.command()
@takes_urls("store")
def verify(
    store: Store,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte, not only names, sizes and records.")] = False,
    json: Json = False,
) -> None:
    """Check a store; exit code 1 and the damaged file's name if something is not as it was committed.

    Example: pipeline store verify --deep data/1_features/openmoji/efficientnet-lite0
    """
    from pipeline.store.inspect import verify as check

    problems = check(store, deep=deep)
    if json:
        emit_json([asdict(problem) for problem in problems])
    for problem in problems:
        typer.echo(problem.sentence, err=True)
    if problems:
        raise typer.Exit(1)
    if not json:
        say(f"{store}: as it was committed ({'every byte read' if deep else 'names, sizes and records'})")


@app.command()
@takes_urls("first", "second")
def diff(first: Store, second: Store, json: Json = False) -> None:
    """Explain how two stores differ; exit code 1 if they do.

    Example: pipeline store diff data/1_features/openmoji/efficientnet-lite0 data/1_features/openmoji/efficientnet-lite2
    """
    from pipeline.store.inspect import diff as compare

    sentences = compare(first, second)
    if json:
        emit_json(sentences)
    else:
        say("\n".join(sentences) or "The same ids, the same values, the same key.")
    if sentences:
        raise typer.Exit(1)


@app.command()
@takes_urls("store")
def du(store: Store, json: Json = False) -> None:
    """Show what takes up space.

    Example: pipeline store du data/1_features/openmoji/efficientnet-lite0
    """
    from pipeline.store.inspect import du as measure

    sizes = measure(store)
    if json:
        emit_json(sizes)
    else:
        emit_table(({"what": name, "size": size(count)} for name, count in sizes.items()), ("what", "size"))


@app.command()
@takes_urls("store")
def gc(
    store: Store,
    delete: Annotated[bool, typer.Option("--delete", help="Remove them; without it they are only named.")] = False,
    json: Json = False,
) -> None:
    """Name (or remove) what no manifest needs: files of killed writers and superseded shards.

    Example: pipeline store gc data/1_features/openmoji/efficientnet-lite0 --delete
    """
    from pipeline.store.cleaning import gc as collect

    files = collect(store, delete=delete)
    if json:
        emit_json([asdict(file) for file in files])
    else:
        verb = "removed" if delete else "could be removed (--delete does it)"
        lines = [f"{store / file.name}: {file.reason}, {size(file.bytes)}, {verb}" for file in files]
        say("\n".join(lines) or "Nothing to clean.")


@app.command()
@takes_urls("store")
def status(
    store: Store,
    json: Annotated[bool, typer.Option("--json", help="Print JSON: a list of the shards.")] = False,
    whole: Annotated[
        bool, typer.Option("--summary", help="With --json: one object with counts, rate, workers, failures.")
    ] = False,
    watch: Annotated[
        float | None, typer.Option(help="Print it again every so many seconds until the store is finished.", min=0.1)
    ] = None,
) -> None:
    """Show how far an extraction has got: shards done, leased, missing; rate, time left, workers, failures.

    Example: pipeline store status data/1_features/openmoji/efficientnet-lite0

    Example: pipeline store status data/1_features/openmoji/efficientnet-lite0 --watch 10
    """
    import time

    from pipeline.store.events import status as look
    from pipeline.store.events import summary

    while True:
        found = summary(store)
        if not json:
            say("\n".join(status_lines(store, found)))
        else:
            emit_json(asdict(found) if whole else [asdict(shard) for shard in look(store)])
        if watch is None or found.finished:
            return
        time.sleep(watch)


@app.command()
@takes_urls("store")
def events(store: Store) -> None:
    """Print what happened while a store was made: one log of all workers, a JSON object a line, sorted by time.

    Example: pipeline store events data/1_features/openmoji/efficientnet-lite0
    """
    import json

    from pipeline.store.events import read_events

    for event in read_events(store):
        typer.echo(json.dumps(event))


@app.command()
@takes_urls("store", "text")
def convert(
    store: Store,
    out: Annotated[Path, typer.Option("--out", help="Folder to write into.")],
    layout: Annotated[
        str | None, typer.Option("--format", help="npy, safetensors, parquet or clip-retrieval. [default: npy]")
    ] = None,
    to: Annotated[str | None, typer.Option("--to", hidden=True)] = None,
    layers: Annotated[str, typer.Option(help="Layers: all, last, 0,5,-1, names.")] = "all",
    text: Annotated[
        Path | None, typer.Option(help="clip-retrieval: a text store whose captions go beside the images.")
    ] = None,
) -> None:
    """Write features in a layout that other programs read.

    Example: pipeline store convert data/1_features/openmoji/efficientnet-lite0 --format npy --layers last --out export
    """
    from pipeline.layers import select_layers
    from pipeline.store.interop import convert as write
    from pipeline.store.reader import FeatureStore

    form = renamed("--to", "--format", to, layout) or "npy"
    names = [layer.name for layer in FeatureStore.open(store).layers]
    chosen = select_layers("last" if form == "clip-retrieval" and layers == "all" else layers, names)
    for path in write(store, out, form, layers=chosen, text=text):
        say(path)


@app.command()
@takes_urls("out")
def ingest(
    vectors: Annotated[Path, typer.Argument(help="Features computed elsewhere: .npy [N, D] or .parquet.")],
    out: Annotated[Path, typer.Option("--out", help="Feature store to make.")],
    modality: Annotated[str, typer.Option(help="image or text.")],
    ids: Annotated[
        Path | None,
        typer.Option(help="For .npy: .txt, .json, or .csv with sample_id and any of image_id, split, label, content."),
    ] = None,
    column: Annotated[str, typer.Option(help="Parquet: column of the vectors.")] = "",
    layer: Annotated[str, typer.Option(help="Name of the layer.")] = "output",
    file_format: Annotated[str, typer.Option("--format", help="hdf5 or parquet.")] = "hdf5",
    replace: Annotated[bool, typer.Option("--replace", help="Replace a store of something else at --out.")] = False,
    json: Json = False,
) -> None:
    """Make a feature store of vectors that were computed elsewhere.

    Example: pipeline store ingest clip.npy --ids rows.csv --modality image --out data/1_features/mine/clip
    """
    from pipeline.store.inspect import ls
    from pipeline.store.interop import ingest as take

    take(vectors, out, modality, ids=ids, column=column, layer=layer, file_format=file_format, replace=replace)
    found = ls(out)
    if json:
        emit_json(found)
    else:
        say(f"{out}: {count(found['rows'], 'row')}, layer {layer}, content {found['content_digest']}")


def status_lines(store: Path, found: "Summary") -> Iterator[str]:
    """Yield the first line for any store, and more where somebody is at work or something went wrong."""
    yield (
        f"{store}: {count(found.shards, 'shard')}: {found.done} done, {found.leased} leased, {found.missing} missing"
    )
    if found.rate is not None and found.eta is not None and not found.finished:
        yield f"{found.done_items} of {found.items} items, {found.rate:.1f} a second, {duration(found.eta)} to go"
    if found.workers and not found.finished:
        counts = Counter(worker.state for worker in found.workers)
        yield "workers: " + ", ".join(f"{count} {state}" for state, count in counts.items())
        yield from (_worker(worker) for worker in found.workers if worker.state in ("alive", "silent"))
    if not found.finished:
        yield from _reasons("failed", found.failures)
    yield from _reasons("left out", found.rejected)


def _worker(worker: "WorkerStatus") -> str:
    at = f", at {', '.join(f'{index:05d}' for index in worker.at)}" if worker.at else ""
    return f"  {worker.worker} ({worker.index} of {worker.of}): {worker.state}, {count(worker.shards, 'shard')}{at}"


def _reasons(what: str, counts: Mapping[str, int]) -> Iterator[str]:
    yield from (f"{what}: {count} × {reason}" for reason, count in counts.items())
