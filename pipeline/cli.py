"""The command `pipeline`: mounts the commands; typed errors end as one sentence and an exit code.

    pipeline data openmoji --out data/0_raw/openmoji
    pipeline extract --layers all
    pipeline align && pipeline evaluate
    pipeline search data/2_projectors/combined "a red heart"

Exit codes: 0 done, 2 the input is at fault, 1 anything else; 130 when it was interrupted.
"""

import io
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline import __version__
from pipeline.commands import align, apps, data, doctor, evaluate, extract, store, sweep
from pipeline.errors import exit_with_sentence


class Commands(TyperGroup):
    """The commands; what they raise becomes one sentence before typer sees it (it would call Ctrl-C exit code 1)."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is shown escaped
                stream.reconfigure(errors="backslashreplace")
        with exit_with_sentence():
            return super().invoke(ctx)


app = typer.Typer(
    name="pipeline",
    cls=Commands,
    help="Align frozen image and text encoders from a few thousand pairs: extract once, align, evaluate, search.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.app, name="data")
app.command("extract")(extract.extract)
app.add_typer(store.app, name="store")
app.command("layers")(align.layers)
app.command("align")(align.align)
app.command("sweep")(sweep.sweep)
app.command("study", hidden=True, context_settings=sweep.ANY_WORDS)(sweep.study)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(evaluate.compare)
app.command("search")(apps.search)
app.command("serve")(apps.serve)
app.command("index")(apps.index)
app.command("export")(apps.export)
app.command("doctor")(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fewpairs {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Mount options that stand before the command."""


def main() -> None:
    """Run the command line; the entry point of `pipeline`. Its name is that, whatever program runs it."""
    app(prog_name="pipeline")


if __name__ == "__main__":
    main()
