"""Settings: from untyped data (params.yaml, JSON, flags) to frozen dataclasses, every mistake told at once.

Each stage keeps its own config class beside itself; this module only knows how to fill one and how to find params.yaml.
"""

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import UserError
from pipeline.settings import declared, faults, has_settings, in_words

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Fill a dataclass from a mapping and check names and types of all fields before complaining.

    Nested dataclasses take nested mappings; a list is accepted for a tuple, an int for a float, a string for a `Path`.

    Args:
        cls: A (frozen) dataclass.
        values: Field name → value.
        where: Where the values came from, such as "params.yaml: align".

    Raises:
        UserError: Lists every unknown field, missing field and wrong type, each with its path; or what the class itself
            refuses.
    """
    problems: list[str] = []
    try:
        result = _build(cls, values, "", problems)
    except UserError as error:
        place = where if error.where in ("", where) else f"{where}: {error.where}"
        raise UserError(expected=error.expected, found=error.found, where=place, remedy=error.remedy) from error
    if problems:
        raise UserError(expected="valid settings", found="; ".join(problems), where=where)
    return typing.cast(T, result)


def _build(cls: type, values: Mapping[str, Any], path: str, problems: list[str]) -> object | None:
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    before = len(problems)
    problems += [_unknown(path, name, fields) for name in values if name not in fields]
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        if name in values:
            known = len(problems)
            value = _convert(hints[name], _parsed(cls, name, values[name], problems), f"{path}{name}", problems)
            arguments |= {name: value} if len(problems) == known else {}
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{path}{name} is missing")
    if len(problems) > before:
        problems += [in_words(fault) for fault in faults(cls, arguments)] if has_settings(cls) else []
        return None
    try:
        return typing.cast(object, cls(**arguments))
    except UserError as error:
        if not path:
            raise
        problems.append(f"{path.rstrip('.')}: {error.sentence()}")
        return None


def _unknown(path: str, name: str, fields: Iterable[str]) -> str:
    """Return what is wrong with a name that no field has, and the nearest that one has."""
    close = get_close_matches(str(name), list(fields), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{path}{name} is unknown (known: {', '.join(fields)}){hint}"


def _parsed(cls: type, name: str, value: Any, problems: list[str]) -> Any:
    """Return what a setting's own parser makes of text; any other value, and one that it refuses, as it is."""
    parse = declared(cls)[name].parse if has_settings(cls) else None
    several = isinstance(value, list) and all(isinstance(each, str) for each in value)
    if parse is None or not (several or isinstance(value, str)):
        return value
    try:
        return parse(value)
    except UserError as error:
        problems.append(error.sentence())
        return value


def _convert(hint: Any, value: Any, path: str, problems: list[str]) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(hint, options, value, path, problems)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return _build(hint, value, f"{path}.", problems)
    elif origin is typing.Literal:
        if value in options:
            return value
        problems.append(f"{path} should be one of {', '.join(map(str, options))}, not {value!r}")
        return None
    elif origin in (tuple, list) and isinstance(value, (list, tuple)):
        items = [_convert(options[0], item, f"{path}[{i}]", problems) for i, item in enumerate(value)]
        if origin is list or options[-1] is Ellipsis or len(items) == len(options):
            return items if origin is list else tuple(items)
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        return {str(key): _convert(options[1], item, f"{path}.{key}", problems) for key, item in value.items()}
    elif hint is Any:
        return value
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        with suppress(OverflowError):  # a whole number of hundreds of digits is no float
            return float(value)
    elif hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    name = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    problems.append(f"{path} should be {name}, not {value!r}")
    return None


def _convert_union(hint: Any, options: tuple[Any, ...], value: Any, path: str, problems: list[str]) -> Any:
    if value is None and type(None) in options:
        return None
    attempts: list[list[str]] = []
    for option in options:
        if option is type(None):
            continue
        found: list[str] = []
        result = _convert(option, value, path, found)
        if not found:
            return result
        attempts.append(found)
    problems += attempts[0] if len(attempts) == 1 else [f"{path} should be {hint}, not {value!r}"]
    return None


def load_params(path: Path) -> dict[str, Any]:
    """Read params.yaml as plain data (safe loader).

    Raises:
        UserError: The file is missing, is not YAML, or is not a mapping.
    """
    import yaml

    if not path.is_file():
        raise UserError(
            expected=f"a file {path}",
            found="none",
            remedy="run the command in a checkout, or say what it needs by flags (see --help)",
        )
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also numbers of thousands of digits, any depth
        raise UserError(expected="YAML", found=" ".join(str(error).split()), where=str(path)) from error
    if not isinstance(data, dict):
        raise UserError(expected="a mapping of sections", found=type(data).__name__, where=str(path))
    return data


def section(params: Mapping[str, Any], name: str, where: str = "params.yaml") -> dict[str, Any]:
    """Return a copy of one section of params.yaml; `where` is the file that it came from.

    Raises:
        UserError: The section is missing or is not a mapping.
    """
    value = params.get(name)
    if not isinstance(value, Mapping):
        found = "none" if value is None else type(value).__name__
        raise UserError(expected=f"a section {name!r} with settings", found=found, where=where)
    return dict(value)


def name(params: Mapping[str, Any], key: str, *, default: str | None = None, where: str = "params.yaml") -> str:
    """Return a name that a key of params.yaml holds: a text that can be a folder's name.

    Raises:
        UserError: It is missing (and there is no default), empty or no text.
    """
    value = params.get(key, default)
    if not isinstance(value, str) or not value:
        found = "none" if value is None else repr(value)
        raise UserError(expected=f"{key} with a name", found=found, where=where)
    return value


def names(params: Mapping[str, Any], key: str, *, where: str = "params.yaml") -> list[str]:
    """Return the list of names that a key of params.yaml holds; empty where it is missing.

    Raises:
        UserError: It is no list of texts.
    """
    value = params.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise UserError(expected=f"{key} as a list of names, such as [a, b]", found=repr(value), where=where)
    return value


def assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Return `a.b=1`, as `--set` takes it, as {"a": {"b": 1}}; values are read as YAML.

    Raises:
        UserError: One of them is no assignment, or sets what another has set.
    """
    import yaml

    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(expected="name=value", found=repr(text), where="--set")
        *parents, last = name.split(".")
        inner = found
        for parent in parents:
            below = inner.setdefault(parent, {})
            if not isinstance(below, dict):
                raise UserError(expected=f"{parent} set once, whole or by its parts", found="both", where="--set")
            inner = below
        try:
            inner[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(expected="a value as YAML writes it", found=repr(text), where="--set") from error
    return found
