"""The command `pipeline`: mounts the commands; typed errors end as one sentence and an exit code.

    pipeline data openmoji --out data/0_raw/openmoji
    pipeline extract --layers all
    pipeline align && pipeline evaluate
    pipeline search data/2_projectors/combined "a red heart"

Exit codes: 0 done, 2 the input is at fault, 1 anything else; 130 when it was interrupted.
"""

import io
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline import __version__
from pipeline.errors import exit_with_sentence

COMMANDS = {
    "doctor": "doctor.doctor",
    "data": "data.app",
    "extract": "extract.extract",
    "layers": "align.layers",
    "align": "align.align",
    "evaluate": "evaluate.evaluate",
    "compare": "evaluate.compare",
    "search": "apps.search",
    "serve": "apps.serve",
    "export": "apps.export",
    "index": "apps.index",
    "store": "store.app",
    "sweep": "sweep.sweep",
    "study": "sweep.study",
}
"""Command → where it is, in the order of the work, as the help has it; its module is loaded when it is asked for."""
ANY_WORDS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
HIDDEN: dict[str, Any] = {"study": {"hidden": True, "context_settings": ANY_WORDS}}
"""Command → how it is mounted, where it differs from the others: this one only tells where the study is now."""
PLAIN: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}


class OnDemand(Mapping[str, Any]):
    """Command → what typer makes of it, made when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        module, _, attribute = COMMANDS[name].partition(".")
        found = getattr(import_module(f"pipeline.commands.{module}"), attribute)
        alone = typer.Typer(**PLAIN)
        if isinstance(found, typer.Typer):
            alone.add_typer(found, name=name)
        else:
            alone.command(name, **HIDDEN.get(name, {}))(found)
        made: Any = typer.main.get_command(alone)
        return made.commands[name] if isinstance(found, typer.Typer) else made

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class Commands(TyperGroup):
    """The commands; what they raise becomes one sentence before typer sees it (it would call Ctrl-C exit code 1)."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: Any = OnDemand()

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands' names without loading any."""
        return list(COMMANDS)

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
    help="Align frozen image and text encoders from a few thousand pairs, in this order.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    **PLAIN,
)


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
    with exit_with_sentence():  # of what comes before a command too
        app(prog_name="pipeline")


if __name__ == "__main__":
    main()
