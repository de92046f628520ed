"""Declared settings: values are checked when they are made, all faults at once; what is declared can be asked for."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from pipeline.align.config import AlignConfig
from pipeline.commands.options import takes_settings
from pipeline.config import build
from pipeline.errors import UnknownNameError, UserError
from pipeline.extract.config import ExtractConfig
from pipeline.settings import (
    at_least,
    between,
    bytes_settings,
    declared,
    distinct,
    more_than,
    not_empty,
    one_of,
    setting,
    settings,
)


def halves(text: str) -> tuple[str, ...]:
    if "+" not in text:
        raise UserError(expected="A+B", found=repr(text), where="--pair")
    return tuple(text.split("+"))


@settings
class Baking:
    """Settings with one of each kind of check."""

    out: Path = setting(help="Folder.", changes_bytes=False)
    flour: str = setting(
        default="rye", check=one_of(("rye", "wheat"), "flour"), changes_bytes=True, help="rye or wheat."
    )
    eggs: int | None = setting(default=None, check=at_least(1), changes_bytes=True, help="Eggs.")
    share: float = setting(default=0.5, check=between(0, 1), changes_bytes=True, help="Share.")
    minutes: float = setting(default=30.0, check=more_than(0), changes_bytes=True, help="Minutes.")
    seeds: tuple[int, ...] = setting(
        default=(1, 2), flag="--seed", check=(not_empty, distinct, at_least(0)), changes_bytes=True, help="Seeds."
    )
    pair: tuple[str, ...] = setting(default=(), parse=halves, changes_bytes=False, help="A+B.")
    quiet: bool = setting(default=False, flag=None, changes_bytes=False, help="No noise.")

    def problems(self) -> Iterator[UserError]:
        """Yield what does not fit together."""
        if self.eggs is not None and self.eggs > self.minutes:
            yield UserError(expected="a minute an egg", found=str(self.minutes), where="--minutes")


def make(**values: Any) -> Baking:
    return Baking(out=Path("x"), **values)


def test_settings_are_frozen_and_can_be_replaced() -> None:
    made = make(eggs=3)
    assert dataclasses.replace(made, eggs=4) == make(eggs=4)
    with pytest.raises(dataclasses.FrozenInstanceError, match="eggs"):
        made.eggs = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flour": "ry"}, r"^--flour: expected a known flour \(rye, wheat\), found 'ry'; did you mean 'rye'\?$"),
        ({"eggs": 0}, "^--eggs: expected 1 or more, found 0$"),
        ({"share": 1.5}, "^--share: expected 0 to 1, found 1.5$"),
        ({"share": float("nan")}, "^--share: expected 0 to 1, found nan$"),
        ({"minutes": 0.0}, "^--minutes: expected more than 0, found 0.0$"),
        ({"minutes": float("inf")}, "^--minutes: expected more than 0, found inf$"),
        ({"seeds": ()}, "^--seed: expected a value, or several, found none$"),
        ({"seeds": (3, 4, 3)}, "^--seed: expected each value once, found 3 twice$"),
        ({"seeds": (3, -1)}, "^--seed: expected 0 or more, found -1$"),
        ({"eggs": 40}, "^--minutes: expected a minute an egg, found 30.0$"),
    ],
)
def test_a_fault_is_told_by_its_option(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**values)


def test_an_unknown_name_keeps_its_own_error() -> None:
    with pytest.raises(UnknownNameError, match="flour") as caught:
        make(flour="oat")
    assert caught.value.known == ("rye", "wheat")


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(UserError, match="expected valid settings") as caught:
        make(flour="oat", eggs=0, seeds=(1, 1))
    assert caught.value.found == (
        "--flour should be a known flour (rye, wheat), not 'oat' (choose one of them); "
        "--eggs should be 1 or more, not 0; --seed should be each value once, not 1 twice"
    )


def test_wrong_types_and_wrong_values_are_told_together() -> None:
    with pytest.raises(UserError, match=r"^here: expected valid settings") as caught:
        build(Baking, {"out": "x", "eggs": "two", "share": 7.0}, where="here")
    assert caught.value.found == "eggs should be int, not 'two'; --share should be 0 to 1, not 7.0"


def test_text_is_read_by_a_parser_of_its_own() -> None:
    assert build(Baking, {"out": "x", "pair": "a+b"}, where="here").pair == ("a", "b")
    assert build(Baking, {"out": "x", "pair": ("a", "b")}, where="here").pair == ("a", "b")
    with pytest.raises(UserError, match=r"^here: expected valid settings, found --pair: expected A\+B, found 'ab'"):
        build(Baking, {"out": "x", "pair": "ab"}, where="here")


def test_what_is_declared_can_be_asked_for() -> None:
    about = declared(Baking)
    assert [about[name].option(name) for name in ("out", "seeds", "quiet")] == ["--out", "--seed", "quiet"]
    assert list(bytes_settings(make())) == ["flour", "eggs", "share", "minutes", "seeds"]


def test_nothing_is_left_undeclared() -> None:
    with pytest.raises(TypeError, match=r"Bare: not declared by setting\(\): other"):

        @settings
        class Bare:
            one: int = setting(help="One.")
            other: int = 3

    with pytest.raises(TypeError, match="belong into the method `problems`"):

        @settings
        class Own:
            one: int = setting(help="One.")

            def __post_init__(self) -> None:
                raise NotImplementedError

    @settings
    class Silent:
        one: int = setting(default=1, help="One.")

    with pytest.raises(TypeError, match="Silent: changes_bytes is not declared: one"):
        bytes_settings(Silent())


@settings
class Larger(ExtractConfig):
    """The settings of extract with one more: all that there is to do for a new one."""

    sharpen: int = setting(default=0, check=at_least(0), changes_bytes=True, help="Radius of a sharpening filter.")


def test_a_new_setting_is_one_declaration() -> None:
    """CONTRIBUTING, "A setting": option, check, params.yaml and receipt follow from the field."""
    seen: list[dict[str, Any]] = []
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    @takes_settings(Larger)
    def command(given: dict[str, Any]) -> None:
        seen.append(given)

    runner = CliRunner()
    assert "Radius of a sharpening filter. [default: 0]" in " ".join(runner.invoke(app, ["--help"]).output.split())
    assert runner.invoke(app, ["--sharpen", "2"]).exit_code == 0
    assert seen == [{"sharpen": 2}]
    stated = {"dataset": "d", "encoder": "e", "out": "o"}
    made = build(Larger, stated | seen[0], where="pipeline extract")
    assert bytes_settings(made) == bytes_settings(build(Larger, stated, where="here")) | {"sharpen": 2}
    with pytest.raises(UserError, match=r"^params\.yaml: extract: --sharpen: expected 0 or more, found -1"):
        build(Larger, stated | {"sharpen": -1}, where="params.yaml: extract")


def test_one_value_counts_as_several() -> None:
    """Where a field holds several values, `image="path"` is `image=("path",)`; a list does too."""
    assert Baking(out=Path("x"), seeds=3).seeds == (3,)  # type: ignore[arg-type]
    assert Baking(out=Path("x"), seeds=[3, 4]).seeds == (3, 4)  # type: ignore[arg-type]
    config = AlignConfig(image="image", text=Path("text"), out="run")  # type: ignore[arg-type]
    assert (config.image, config.text) == (("image",), (Path("text"),))
    with pytest.raises(UserError, match="--seed"):
        Baking(out=Path("x"), seeds=[])  # type: ignore[arg-type]
