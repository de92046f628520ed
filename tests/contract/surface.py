"""What the command line takes, read off the application itself: words, options, defaults; no prose."""

import enum
import typing
from typing import Any

import typer

from pipeline.cli import app

NUMBERS = {"integer": "integer", "integer range": "integer", "float": "number", "float range": "number"}
NUMBERS |= {"int": "integer"}


def surface() -> dict[str, dict[str, Any]]:
    """Return command → its arguments in order and its options by their long name."""
    found: dict[str, dict[str, Any]] = {}

    def walk(command: Any, words: tuple[str, ...]) -> None:
        found[" ".join(words)] = {
            "arguments": [_argument(each) for each in command.params if each.param_type_name == "argument"],
            "options": {
                max(each.opts, key=len): _option(each) for each in command.params if each.param_type_name == "option"
            },
        }
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, (*words, name))

    walk(typer.main.get_command(app), ("pipeline",))
    return found


def _argument(each: Any) -> dict[str, Any]:
    return {"required": each.required, "several": each.nargs == -1 or each.multiple, "value": _value(each)}


def _option(each: Any) -> dict[str, Any]:
    """Describe an option; a flag takes no value, `off` is how it is switched off."""
    default = each.default() if callable(each.default) else each.default
    return {
        "short": sorted(name for name in each.opts if not name.startswith("--")),
        "value": "none" if getattr(each, "is_flag", False) else _value(each),
        "several": bool(each.multiple),
        "required": bool(each.required),
        **({"off": sorted(each.secondary_opts)} if each.secondary_opts else {}),
        "default": default if isinstance(default, bool | int | float) or default is None else str(default),
    }


def _value(each: Any) -> str | list[str]:
    """Return the kind of value, or its choices: paths, URLs and names are all text to whoever types them."""
    kind = each.type_descriptor.annotation if hasattr(each, "type_descriptor") else each.type
    while typing.get_origin(kind) in (list, tuple):
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is typing.Literal:
        return sorted(map(str, typing.get_args(kind)))
    if isinstance(kind, enum.EnumType):
        return sorted(str(getattr(kind, name).value) for name in kind.__members__)
    if hasattr(kind, "choices"):
        return sorted(map(str, kind.choices))
    return NUMBERS.get(getattr(kind, "name", getattr(kind, "__name__", "")), "text")
