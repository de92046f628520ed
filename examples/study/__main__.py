"""The study: features, every cell of every grid, one page of tables and figures, from one YAML file.

    python -m examples.study --dry-run
    python -m examples.study --page docs/study.md --jobs 2

Run in the checkout. What is finished is not done again; killed anywhere, the next call goes on.
"""

from pathlib import Path
from typing import Annotated

import typer

from examples.study.config import load_study, only_grids
from examples.study.page import write_page
from examples.study.run import cost_sentences, run_study
from pipeline.commands.data import make_missing
from pipeline.commands.options import Address, Engine, Jobs, takes_urls
from pipeline.commands.output import at_least_one, writable_file, writable_folder
from pipeline.engines import open_engine
from pipeline.errors import exit_with_sentence
from pipeline.progress import progress_bar
from pipeline.words import on_stderr

FILE, OUT, DATA = Path("examples/study/study.yaml"), Path("data/4_study"), Path("data")


@takes_urls()
def study(
    file: Annotated[Path, typer.Argument(help="The study's YAML.")] = FILE,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = OUT,
    data: Annotated[Path, typer.Option(help="Folder that holds 0_raw and 1_features.")] = DATA,
    page: Annotated[
        Path | None, typer.Option(help="Markdown page to write, figures beside it (default: none).")
    ] = None,
    grid: Annotated[list[str] | None, typer.Option(help="Do this grid alone; repeat for several.")] = None,
    jobs: Jobs = None,
    engine: Engine = "local",
    address: Address = None,
    only_page: Annotated[bool, typer.Option("--only-page", help="Make the page of what is finished.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is to do and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Do a study: extract what is missing, align and measure every cell of every grid, write the page."""
    if jobs is not None:
        at_least_one(jobs, "--jobs")
    config = load_study(file)
    if grid:
        config = only_grids(config, grid)
    writable_folder(out, "--out")
    if page is not None:
        writable_file(page, "--page")
    with open_engine(engine, address) as chosen, progress_bar(quiet=quiet) as progress:
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
                extraction=chosen.extract,
                side_by_side=chosen.side_by_side,
            )
            typer.echo(str(out / "results.csv"))
    if page is not None:
        command = command_line(file, out, data, page, jobs, engine)
        typer.echo(str(write_page(config, data=data, out=out, page=page, command=command, progress=on_stderr)))


def command_line(file: Path, out: Path, data: Path, page: Path, jobs: int | None, engine: str) -> str:
    """Return the command as the page says it; no place of this machine stands in it."""
    said = "python -m examples.study" + (f" {file.name if file.is_absolute() else file}" if file != FILE else "")
    for option, path, default in (("--out", out, OUT), ("--data", data, DATA)):
        said += f" {option} {path}" if path != default and not path.is_absolute() else ""
    said += f" --page {page.name if page.is_absolute() else page}"
    said += f" --jobs {jobs}" if jobs and jobs > 1 else ""
    return said + (f" --engine {engine}" if engine != "local" else "")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command()(study)


def main() -> None:
    """Run the command line."""
    with exit_with_sentence():
        app()


if __name__ == "__main__":
    main()
