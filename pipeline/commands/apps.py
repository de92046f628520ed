"""What a trained run is used for: `pipeline index`, `search`, `serve` and `export`."""

import os
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.apps.config import RUN, SEED, IndexConfig, SearchConfig, ServeConfig
from pipeline.commands.options import Json, renamed, takes_settings, takes_urls
from pipeline.commands.output import at_least_one, emit_json, emit_table, writable_file, writable_folder
from pipeline.config import build
from pipeline.errors import MissingExtraError, UserError
from pipeline.runtime import Share, share_of
from pipeline.storage.local import open_storage
from pipeline.words import count, on_stderr, size

if TYPE_CHECKING:
    from pipeline.apps.searcher import SearchResult

SERVER = ("fastapi", "uvicorn", "python_multipart")
"""Packages that `pipeline serve` needs."""


@takes_settings(IndexConfig, params=False)
def index(
    *,
    given: dict[str, Any],
    memory: Annotated[float, typer.Option(help="Gigabytes that vectors and codes may take.")] = 8.0,
    worker_index: Annotated[
        int | None, typer.Option(help="Which of several workers on the parts this is, counted from 0.")
    ] = None,
    num_workers: Annotated[
        int | None, typer.Option(help="How many workers there are; srun, torchrun and SLURM arrays say so themselves.")
    ] = None,
    json: Json = False,
) -> None:
    """Build a search index over a run's images.

    `pipeline search --index` takes it. Below a million images exact search needs none: auto then stores an exact one.
    Far above, several workers make its parts and a last call without a worker's number merges them.

    Example: pipeline index data/2_projectors/combined --out data/index

    Example: pipeline index data/2_projectors/combined --kind hnsw --recall 0.99 --out data/index

    Example: pipeline index data/2_projectors/combined --parts 64 --worker-index 3 --num-workers 16 --out data/index
    """
    config = build(IndexConfig, {**given, "memory": int(memory * 2**30)}, where="pipeline index")
    writable_folder(config.out, "--out")
    if config.parts is None and (worker_index, num_workers) != (None, None):
        expected = "--parts with --worker-index and --num-workers"
        raise UserError(expected=expected, found="no --parts", where="pipeline index")
    from pipeline.apps.indexing import build as make
    from pipeline.apps.indexing import make_parts

    share = Share() if config.parts is None else share_of(worker_index, num_workers, os.environ)
    if share.count == 1 and worker_index is None:
        _say(make(config), config.out, json=json)
        return
    done = make_parts(config, share)
    if json:
        emit_json(asdict(done))
        return
    typer.echo(f"{len(done.made)} of {count(done.parts, 'part')} made here, {len(done.missing)} missing: {done.folder}")
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
    typer.echo(f"{made['kind']} of {count(made['rows'], 'image')}, {size(total)}{effort}: {out}")
    typer.echo(f"recall@{found['k']} {found['recall']:.4f} on {found['queries']} {found['of']} (against exact search)")


@takes_settings(SearchConfig, params=False)
def search(
    *,
    given: dict[str, Any],
    query: Annotated[str | None, typer.Argument(help="What to look for.")] = None,
    picture: Annotated[Path | None, typer.Option(help="A picture to look for, in place of a sentence.")] = None,
    image: Annotated[Path | None, typer.Option("--image", hidden=True)] = None,
    top: Annotated[int, typer.Option(help="How many to show.")] = 10,
    captions: Annotated[bool, typer.Option("--captions", help="List captions in place of images.")] = False,
    show: Annotated[Path | None, typer.Option(help="Write the found images as one PNG to this file.")] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON: a list of images (or captions), best first.")
    ] = False,
) -> None:
    """Find the images that fit a sentence or a picture best.

    Example: pipeline search data/2_projectors/combined "a red heart"

    Example: pipeline search data/2_projectors/combined --picture photo.jpg --top 5 --captions
    """
    picture = renamed("--image", "--picture", image, picture)
    if (query is None) == (picture is None):
        raise UserError(
            expected='a sentence or --picture FILE, such as pipeline search RUN "a red heart"',
            found="neither" if query is None else "both",
            where="pipeline search",
        )
    at_least_one(top, "--top")
    if show:
        writable_file(show, "--show")
    from pipeline.apps.search import open_searcher
    from pipeline.apps.searcher import contact_sheet

    searcher = open_searcher(build(SearchConfig, given, where="pipeline search"))
    if captions:
        searcher.require_captions()
    found = searcher.by_image(picture, top) if picture else searcher.by_text(query or "", top, captions=captions)
    if show:
        contact_sheet(found, show)
    if json:
        emit_json([asdict(hit) for hit in (found.captions if captions else found.images)])
        return
    if not captions:
        _show_images(found)
    if found.captions:
        typer.echo(nl=not captions)
        _show_captions(found)


def _show_images(found: "SearchResult") -> None:
    emit_table(
        (
            {"score": f"{hit.score:.3f}", "image": hit.image_id, "file": hit.file, "captions": "; ".join(hit.captions)}
            for hit in found.images
        ),
        ("score", "image", "file", "captions"),
        cut="captions",
    )
    if found.data:
        typer.echo(f"Files are relative to {found.data}")


def _show_captions(found: "SearchResult") -> None:
    emit_table(
        ({"score": f"{hit.score:.3f}", "image": hit.image_id, "caption": hit.caption} for hit in found.captions),
        ("score", "image", "caption"),
        cut="caption",
    )


@takes_settings(ServeConfig, params=False)
def serve(*, given: dict[str, Any]) -> None:
    """Search runs in the browser and over a JSON API.

    It serves until Ctrl-C.

    Example: pipeline serve data/2_projectors/fewpairs

    Example: pipeline serve data/2_projectors/fewpairs data/2_projectors/cca --port 8080
    """
    config = build(ServeConfig, given, where="pipeline serve")
    if config.data is not None and open_storage(config.data).absent():
        raise UserError(expected="a folder of pictures", found="no such folder", where=f"--data {config.data}")
    for name in SERVER:
        if find_spec(name) is None:
            raise MissingExtraError(name, "pip install 'fewpairs[serve]'", "pipeline serve")
    from pipeline.apps.serve.server import serve as run_server

    run_server(config)


@takes_urls("run")
def export(
    run: Annotated[Path, typer.Argument(help=RUN)],
    out: Annotated[Path | None, typer.Option(help="Folder to write: new, empty, or an older export.")] = None,
    to: Annotated[Path | None, typer.Option("--to", hidden=True)] = None,
    form: Annotated[str, typer.Option("--format", help="folder, onnx or sentence-transformers.")] = "folder",
    seed: Annotated[int | None, typer.Option(help=SEED)] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder of `pipeline evaluate`, whose numbers go into the model card.")
    ] = None,
    json: Json = False,
) -> None:
    """Export a run as one model folder.

    It names both encoders, holds the projectors, and loads with three lines of Python.

    Example: pipeline export data/2_projectors/combined --out model

    Example: pipeline export data/2_projectors/combined --out text-model --format sentence-transformers
    """
    folder = renamed("--to", "--out", to, out)
    if folder is None:
        raise UserError(expected="--out FOLDER", found="none", where="pipeline export")
    writable_folder(folder, "--out")
    from pipeline.apps.export.run import export as write

    done = write(run, folder, form=form, seed=seed, report=report)
    if json:
        emit_json(asdict(done))
        return
    emit_table(({"file": name, "size": size(number)} for name, number in done.files.items()), ("file", "size"))
    typer.echo(
        f"\n{done.format} of seed {done.seed}, {done.dim} dimensions: {done.folder}; README.md says how to use it"
    )
