"""Options made of settings: a command takes one option for each field of a class under `@settings`.

    @takes_settings(ExtractConfig)
    def extract(given: dict[str, Any], *, params: Params = PARAMS, json: Json = False) -> None: ...

The command gets in `given` the values of those options that were on the command line, by their fields' names; what
was not given comes from params.yaml or from the class's defaults. In the help the options stand where `given` stands.

A path takes a URL (`s3://…`) in place of a folder where the field is a `Place`, or where `@takes_urls("name")` above a
command names it; any other refuses it. The command gets a storage in place of the path. All paths are read as text, and
become paths here: a `Path` made of a URL has lost a slash.
"""

import copy
import dataclasses
import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.models import OptionInfo

from pipeline.errors import UserError
from pipeline.settings import Setting, declared
from pipeline.storage.contract import Place
from pipeline.storage.local import is_url, open_storage
from pipeline.words import on_stderr

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Params = Annotated[Path, typer.Option(help="File with the settings that no option gives.")]
Engine = Annotated[str, typer.Option("--engine", help="Where to work: local, or ray (a Ray cluster).")]
Address = Annotated[
    str | None,
    typer.Option(
        help="The Ray cluster: HOST:PORT, or auto for the one that this machine belongs to. [default: RAY_ADDRESS, or "
        "a Ray on this machine alone]"
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        help="Cells at once, each in a process with one thread. [default: 1, or one per CPU with --engine ray]"
    ),
]

PARAMS = Path("params.yaml")
T = TypeVar("T")


def renamed(old: str, new: str, before: T | None, now: T | None) -> T | None:
    """Return the value of an option that was given by its older name, with a note, or by its name.

    Raises:
        UserError: It was given by both.
    """
    if before is None:
        return now
    if now is not None:
        raise UserError(expected=f"{new}, which is what {old} is called now", found="both", where=old)
    on_stderr(f"{old} is now called {new}: the older name works in this release and not in the next")
    return before


def takes_settings(cls: type, *, params: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return what puts the options of a class of settings in place of a command's parameter `given`.

    Args:
        cls: A class under `@settings`.
        params: Whether what is not given may come from params.yaml; if not, options have the defaults of the class.
    """
    about = {name: each for name, each in declared(cls).items() if each.flag is not None}
    fields = [field for field in dataclasses.fields(cls) if field.name in about]
    options = {field.name: _option(field, about[field.name], params) for field in fields}
    older = {name: _older(options[name], about[name]) for name in options if about[name].formerly}
    places = {field.name for field in fields if _element(field.type) == Place}

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            typed = {name: values.pop(name) for name in options}
            for name, each in older.items():
                stated, default = typed[name], options[name].default
                now = None if stated == default else stated
                before, setting = values.pop(each.name), about[name]
                typed[name] = renamed(setting.formerly, setting.option(name), before, now) or stated
            given = {name: value for name, value in typed.items() if value not in (options[name].default, [])}
            function(given={name: _parsed(about[name], value) for name, value in given.items()}, **values)

        parameters: list[inspect.Parameter] = []
        for own in inspect.signature(function).parameters.values():
            parameters += [*options.values(), *older.values()] if own.name == "given" else [own]
        return _reading_paths(command, function, parameters, places)

    return decorate


def _parsed(about: Setting, value: Any) -> Any:
    return about.parse(value) if about.parse else value


def _option(field: "dataclasses.Field[Any]", about: Setting, params: bool) -> inspect.Parameter:
    """Return the parameter that typer makes an option of; where params.yaml may have a value, without a default."""
    switch = field.type is bool and "/" not in (about.flag or "")
    plain = isinstance(field.default, str | int | float) and (switch or not params)
    kind = str if about.parse else _typed(field.type)
    several = typing.get_origin(_without_none(field.type)) in (tuple, dict)
    help_text = about.help + _default(field)
    if about.argument:
        how: Any = typer.Argument(help=help_text, show_default=False)
    else:
        how = typer.Option(about.flag or about.option(field.name), help=help_text, show_default=False)
    typed: Any = list[kind] if several else kind  # type: ignore[valid-type]
    needed = not params and dataclasses.MISSING is field.default is field.default_factory
    annotation = Annotated[typed if needed else typed | None, how]  # type: ignore[valid-type]
    default = inspect.Parameter.empty if needed else field.default if plain else None
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _older(option: inspect.Parameter, about: Setting) -> inspect.Parameter:
    """Return a hidden option that takes the same by its older name."""
    how = typer.Option(about.formerly, hidden=True)
    hint = typing.get_args(option.annotation)[0]
    return option.replace(name=f"{option.name}_formerly", default=None, annotation=Annotated[hint | None, how])


def _typed(hint: Any) -> Any:
    """Return the type that typer reads a value of a field as; the elements' type for a tuple, text for a dict."""
    hint = _element(hint)
    return str if typing.get_origin(hint) in (dict, typing.Literal) else Path if hint == Place else hint


def _element(hint: Any) -> Any:
    """Return the type without None; the elements' of a tuple or list."""
    hint = _without_none(hint)
    return _without_none(typing.get_args(hint)[0]) if typing.get_origin(hint) in (tuple, list) else hint


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    return functools.reduce(operator.or_, (each for each in typing.get_args(hint) if each is not type(None)))


def _default(field: "dataclasses.Field[Any]") -> str:
    value = field.default
    if value is dataclasses.MISSING or value is False or value in (None, "", (), (None,)):
        return ""
    shown = "on" if value is True else ", ".join(map(str, value)) if isinstance(value, tuple) else value
    return f" [default: {shown}]"


def together(given: Mapping[str, Any], names: Collection[str], *, where: str) -> bool:
    """Tell whether options that only make sense together were all given, or none of them.

    Raises:
        UserError: Some were and some were not.
    """
    options = {name: f"--{name.replace('_', '-')}" for name in names}
    found = [option for name, option in options.items() if name in given]
    if found and len(found) < len(options):
        *first, last = options.values()
        raise UserError(
            expected=f"{', '.join(first)} and {last} together, or none of them (then params.yaml says)",
            found=f"only {' and '.join(found)}",
            where=where,
        )
    return bool(found)


# ---- paths and URLs --------------------------------------------------------------------------------------------------


def takes_urls(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return what lets a command take URLs for these parameters and refuse them for its other paths."""
    return lambda function: _reading_paths(function, function, inspect.signature(function).parameters.values(), names)


def _reading_paths(
    command: Callable[..., Any],
    function: Callable[..., Any],
    parameters: Iterable[inspect.Parameter],
    places: Collection[str],
) -> Callable[..., Any]:
    """Return a command with the name and help of `function` that gets paths, and storages for URLs, of text."""
    hints = typing.get_type_hints(function, include_extras=True)
    whole = [each.replace(annotation=hints.get(each.name, each.annotation)) for each in parameters]
    paths = {each.name for each in whole if _element(typing.get_args(each.annotation)[0]) in (Path, Place)}

    @functools.wraps(function)
    def reading(**values: Any) -> Any:
        return command(**values | {name: _opened(name, values[name], url=name in places) for name in paths})

    shown = [_as_text(each) if each.name in paths else each for each in whole]
    made: Any = reading
    made.__signature__ = inspect.Signature([each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in shown])
    made.__annotations__ = {each.name: each.annotation for each in shown}
    del made.__wrapped__  # typer would look for types there
    return reading


def _as_text(parameter: inspect.Parameter) -> inspect.Parameter:
    hint, how = typing.get_args(parameter.annotation)
    how = copy.copy(how)
    how.metavar = how.metavar or ("PATH" if isinstance(how, OptionInfo) else None)
    typed: Any = list[str] if typing.get_origin(_without_none(hint)) is list else str
    default = str(parameter.default) if isinstance(parameter.default, Path) else parameter.default
    annotation = Annotated[typed | None if default is None else typed, how]  # type: ignore[valid-type]
    return parameter.replace(default=default, annotation=annotation)


def _opened(name: str, value: Any, *, url: bool) -> Any:
    """Return a path, or a storage where the text is a URL; a list of them for a list.

    Raises:
        UserError: It is a URL, and `url` is not set.
    """
    if isinstance(value, list):
        return [_opened(name, each, url=url) for each in value]
    if value is None:
        return None
    if not is_url(value):
        return Path(value)
    if not url:
        remedy = "work in a folder, and copy from or to there"
        raise UserError(expected="a local path", found=value, where=name.replace("_", "-"), remedy=remedy)
    return open_storage(value)
