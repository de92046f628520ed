"""`pipeline index`: a search index over a run's images, tuned to a recall, stored as one folder."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.checks import at_least_one, writable_folder
from pipeline.commands.output import emit_json
from pipeline.commands.urls import takes_urls
from pipeline.errors import UserError
from pipeline.words import on_stderr, size


@takes_urls("run", "store", "text_store")
def index(
    run: Annotated[Path, typer.Argument(help="Folder of a run, data/2_projectors/<name>.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write: new, empty, or an older index.")],
    store: Annotated[list[Path] | None, typer.Option(help="Image store; the one of the training if unsaid.")] = None,
    text_store: Annotated[
        list[Path] | None, typer.Option(help="Text store, whose captions ask; the one of the training if unsaid.")
    ] = None,
    kind: Annotated[str, typer.Option(help="auto (by size), flat, ivf, hnsw, sq8 or ivfpq.")] = "auto",
    recall: Annotated[float, typer.Option(help="Wanted recall@k against exact search.")] = 0.95,
    k: Annotated[int, typer.Option(help="Neighbours that are compared.")] = 10,
    memory: Annotated[float, typer.Option(help="Gigabytes that vectors and codes may take.")] = 8.0,
    parts: Annotated[
        int | None, typer.Option(help="Build in so many parts that survive a kill, lists on the disk.")
    ] = None,
    worker_index: Annotated[
        int | None, typer.Option(help="Which of several workers on the parts this is, from 0.", show_default=False)
    ] = None,
    num_workers: Annotated[
        int | None, typer.Option(help="How many there are; by itself from srun, torchrun and SLURM arrays.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Only images of this split.")] = None,
    seed: Annotated[int | None, typer.Option(help="Which of the run's seeds; the first if unsaid.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what index.json says.")] = False,
) -> None:
    """Build a search index over a run's images, for `pipeline search --index`.

    Below a million images exact search needs none: auto then stores an exact one. Far above, several workers make its
    parts and a last call without a worker's number merges them.

    Example: pipeline index data/2_projectors/combined --out data/index

    Example: pipeline index data/2_projectors/combined --kind hnsw --recall 0.99 --out data/index

    Example: pipeline index data/2_projectors/combined --parts 64 --worker-index 3 --num-workers 16 --out data/index
    """
    at_least_one(k, "--k")
    writable_folder(out, "--out")
    if parts is None and (worker_index, num_workers) != (None, None):
        expected = "--parts with --worker-index and --num-workers"
        raise UserError(expected=expected, found="no --parts", where="pipeline index")
    from pipeline.apps.indexing import IndexConfig, build, make_parts
    from pipeline.runtime import Share, share_of

    config = IndexConfig(
        run=run,
        out=out,
        image=store or (),
        text=text_store or (),
        seed=seed,
        split=split,
        kind=kind,
        recall=recall,
        k=k,
        memory=int(memory * 2**30),
        parts=parts,
    )
    share = Share() if parts is None else share_of(worker_index, num_workers, os.environ)
    if share.count == 1 and worker_index is None:
        _say(build(config), out, json=json)
        return
    done = make_parts(config, share)
    if json:
        emit_json(asdict(done))
        return
    typer.echo(f"{len(done.made)} of {done.parts} parts made here, {len(done.missing)} missing: {done.folder}")
    if not done.missing:
        typer.echo("The same command without a worker's number merges them.")


def _say(made: dict[str, Any], out: Path, *, json: bool) -> None:
    found = made["recall"]
    if not found["reached"]:
        on_stderr(
            f"Recall {found['wanted']} was not reached with all effort: {made['kind']} finds {found['recall']:.3f}; "
            "take --kind sq8, ivf or hnsw, or ask for less"
        )
    if json:
        emit_json(made)
        return
    total = sum((out / name).stat().st_size for name in made["files"])
    effort = "".join(f", {name} {value}" for name, value in made["effort"].items())
    typer.echo(f"{made['kind']} of {made['rows']} images, {size(total)}{effort}: {out}")
    typer.echo(f"recall@{found['k']} {found['recall']:.4f} on {found['queries']} {found['of']} (against exact search)")
