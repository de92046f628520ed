"""`pipeline export`: a trained run as one folder to hand over."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.checks import writable_folder
from pipeline.commands.output import emit_json, emit_table
from pipeline.commands.urls import takes_urls
from pipeline.words import size


@takes_urls("run")
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run, data/2_projectors/<name>.")],
    to: Annotated[Path, typer.Option("--to", help="Folder to write: new, empty, or an older export.")],
    form: Annotated[str, typer.Option("--format", help="folder, onnx or sentence-transformers.")] = "folder",
    seed: Annotated[int | None, typer.Option(help="Which of the run's seeds; the first if unsaid.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Folder of `pipeline evaluate`, whose numbers go into the model card.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Export both encoders (by name) and the projectors as one model that loads with three lines of Python.

    Example: pipeline export data/2_projectors/combined --to model

    Example: pipeline export data/2_projectors/combined --to text-model --format sentence-transformers
    """
    writable_folder(to, "--to")
    from pipeline.apps.export.run import export as write

    done = write(run, to, form=form, seed=seed, report=report)
    if json:
        emit_json(asdict(done))
        return
    emit_table(({"file": name, "size": size(count)} for name, count in done.files.items()), ("file", "size"))
    typer.echo(
        f"\n{done.format} of seed {done.seed}, {done.dim} dimensions: {done.folder}; README.md says how to use it"
    )
