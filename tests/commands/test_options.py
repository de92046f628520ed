"""Options made of settings: a command gets what was given, typed and parsed, and nothing else."""

from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from pipeline.commands.options import Json, takes_settings, together
from pipeline.errors import UserError
from pipeline.settings import setting, settings

RUNNER = CliRunner()


def pairs(texts: list[str]) -> dict[str, str]:
    return dict(text.split("=") for text in texts)


@settings
class Settings:
    """One field of each kind that an option is made of."""

    runs: tuple[Path, ...] = setting(argument=True, help="Runs.")
    count: int | None = setting(default=None, help="How many. [default: all]")
    rate: float = setting(default=0.5, help="How fast.")
    side: Literal["left", "right"] | None = setting(default=None, help="left or right.")
    seeds: tuple[int, ...] = setting(default=(1, 42), flag="--seed", help="Seeds.")
    changes: dict[str, str] = setting(default_factory=dict, flag="--set", parse=pairs, help="NAME=VALUE.")
    replace: bool = setting(default=False, flag="--replace", help="Replace it.")
    probes: bool = setting(default=True, flag="--probes/--no-probes", help="Probes.")
    hidden: int = setting(default=3, flag=None, help="No option.")


def program(seen: list[Any]) -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    @takes_settings(Settings)
    def command(given: dict[str, Any], *, json: Json = False) -> None:
        """Do it."""
        seen.append((given, json))

    return app


def run(*words: str) -> Any:
    seen: list[Any] = []
    result = RUNNER.invoke(program(seen), words)
    assert result.exit_code == 0, result.output
    (only,) = seen
    return only


def test_nothing_given_is_nothing() -> None:
    assert run() == ({}, False)


def test_everything_given_is_typed() -> None:
    words = "a b --count 0 --rate 2 --side left --seed 3 --seed 4 --set x=1 --set y=2 --replace --no-probes --json"
    given = {
        "runs": [Path("a"), Path("b")],
        "count": 0,
        "rate": 2.0,
        "side": "left",
        "seeds": [3, 4],
        "changes": {"x": "1", "y": "2"},
        "replace": True,
        "probes": False,
    }
    assert run(*words.split()) == (given, True)


def test_the_help_shows_defaults_where_there_are_some() -> None:
    shown = " ".join(RUNNER.invoke(program([]), ["--help"]).output.split())
    assert "How fast. [default: 0.5]" in shown
    assert "Seeds. [default: 1, 42]" in shown
    assert "Probes. [default: on]" in shown
    assert "How many. [default: all]" in shown
    assert "--hidden" not in shown
    assert "--no-replace" not in shown
    assert "Do it." in shown


@pytest.mark.parametrize("words", [["--hidden", "1"], ["--count", "many"], ["--no-replace"]])
def test_what_is_no_option_is_refused(words: list[str]) -> None:
    assert RUNNER.invoke(program([]), words).exit_code == 2


def test_options_that_go_together() -> None:
    assert together({"image": 1, "text": 2, "out": 3}, ("image", "text", "out"), where="pipeline align")
    assert not together({"layers": 1}, ("image", "text", "out"), where="pipeline align")
    with pytest.raises(
        UserError, match=r"expected --image, --text and --out together, or none .*only --image and --out"
    ):
        together({"image": 1, "out": 3}, ("image", "text", "out"), where="pipeline align")
