"""`pipeline study`: a whole study from one YAML file: features, every cell, one page of tables and figures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands import engine as engines
from pipeline.commands.checks import at_least_one, writable_file, writable_folder
from pipeline.commands.data import make_missing
from pipeline.commands.urls import takes_urls
from pipeline.progress import silent
from pipeline.words import on_stderr

if TYPE_CHECKING:
    from pipeline.study.plan import StudyConfig


@takes_urls()
def study(
    file: Annotated[Path, typer.Argument(help="The study's YAML, such as examples/study.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("data/4_study"),
    data: Annotated[Path, typer.Option(help="Folder that holds 0_raw and 1_features.")] = Path("data"),
    page: Annotated[
        Path | None, typer.Option(help="Markdown page to write, figures beside it; none if unsaid.")
    ] = None,
    grid: Annotated[list[str] | None, typer.Option(help="Do this grid alone; repeat for several.")] = None,
    jobs: engines.Jobs = None,
    engine: engines.Name = "local",
    address: engines.Address = None,
    only_page: Annotated[bool, typer.Option("--only-page", help="Make the page of what is finished.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is to do and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Do a study: extract what is missing, align and measure every cell of every grid, write the page.

    What is finished is not done again; killed anywhere, it goes on.

    Example: pipeline study examples/study.yaml --jobs 2 --page docs/study.md
    """
    from pipeline.engines.table import open_engine
    from pipeline.study.plan import load_study, only_grids
    from pipeline.study.run import cost_sentences, run_study

    if jobs is not None:
        at_least_one(jobs, "--jobs")
    whole = load_study(file)
    config = only_grids(whole, grid) if grid else whole
    writable_folder(out, "--out")
    if page is not None:
        writable_file(page, "--page")
    progress = silent if quiet else on_stderr
    with open_engine(engine, address) as chosen:
        if dry_run:
            for sentence in cost_sentences(config, data, out, chosen.jobs(jobs)):
                typer.echo(sentence)
            return
        if not only_page:
            make_missing({"datasets": [config.dataset, *config.zero_shot], "data": config.data}, data=data, quiet=quiet)
            at_once = chosen.jobs(jobs)
            run_study(
                config,
                data=data,
                out=out,
                jobs=at_once,
                progress=progress,
                quiet=quiet,
                extraction=chosen.extract,
                side_by_side=chosen.side_by_side,
            )
            typer.echo(str(out / "results.csv"))
    if page is not None:
        _write_page(config, data, out, page, _command(file, out, data, page, jobs, engine))


def _write_page(config: "StudyConfig", data: Path, out: Path, page: Path, command: str) -> None:
    from pipeline.study.page import write_page

    write_page(config, data=data, out=out, page=page, command=command, progress=on_stderr)
    typer.echo(str(page))


def _command(file: Path, out: Path, data: Path, page: Path, jobs: int | None, engine: str) -> str:
    """Return the command as the page says it: no place of this machine in it."""
    said = f"pipeline study {file}"
    usual = ((out, Path("data/4_study"), "--out"), (data, Path("data"), "--data"))
    said += "".join(
        f" {option} {path}" for path, default, option in usual if path != default and not path.is_absolute()
    )
    said += f" --page {page.name if page.is_absolute() else page}"
    said += f" --jobs {jobs}" if jobs and jobs > 1 else ""
    return said + (f" --engine {engine}" if engine != "local" else "")
