"""One declaration a setting: a field of a stage's settings carries its help, its checks and what depends on it.

    @settings
    class ExtractConfig:
        dtype: str = setting(default="fp32", check=one_of(DTYPES), changes_bytes=True, help="Arithmetic: fp32, …")

All else reads this one place: the command's options (`pipeline.commands.options`), the checks when settings are made,
the request of a receipt, the conversion of params.yaml (`pipeline.config`).
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast, dataclass_transform

from pipeline.errors import UnknownNameError, UserError

T = TypeVar("T")
Check = Callable[[Any, str], UserError | None]
"""Takes a value and the name of its setting; returns what is wrong with it, or None."""

_KEY = "setting"
"""Where the metadata of a dataclass field keep its `Setting`."""


# ---- declaring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a field declares beside its name, type and default."""

    help: str
    """A sentence or two for the command's help; a default that can be printed is added there."""
    checks: tuple[Check, ...]
    """What a value is checked by; in a tuple each element is."""
    changes_bytes: bool | None
    """Whether another value gives other results, so that what is cached for this one does not count; None where
    nothing is cached."""
    formerly: str
    """The option's older name, which still works and says so; empty where it has none."""
    flag: str | None
    """The option's name; empty: made of the field's name; None: the command has no option for it."""
    argument: bool
    """Whether the command takes it by its position, without a flag."""
    parse: Callable[[Any], Any] | None
    """Makes the value of the text as typed, or of the list of texts where the field holds several."""

    def option(self, name: str) -> str:
        """Return the name on the command line of the field called `name`; that name itself where it has none there."""
        if self.flag is None or self.argument:
            return name
        return self.flag.split("/")[0] or f"--{name.replace('_', '-')}"


def setting(
    *,
    default: T = cast(Any, dataclasses.MISSING),  # noqa: B008  # a constant
    default_factory: Callable[[], T] = cast(Any, dataclasses.MISSING),  # noqa: B008
    help: str,  # noqa: A002  # what every library of command lines calls it
    check: Check | tuple[Check, ...] = (),
    changes_bytes: bool | None = None,
    flag: str | None = "",
    formerly: str = "",
    argument: bool = False,
    parse: Callable[[Any], Any] | None = None,
) -> T:
    """Declare a field of a class under `@settings`; the arguments are the fields of `Setting`."""
    about = Setting(
        help=help,
        checks=check if isinstance(check, tuple) else (check,),
        changes_bytes=changes_bytes,
        formerly=formerly,
        flag=flag,
        argument=argument,
        parse=parse,
    )
    stated: dict[str, Any] = {"default": default, "default_factory": default_factory, "metadata": {_KEY: about}}
    return cast(T, dataclasses.field(**stated))


def shared(cls: type, name: str, **changes: Any) -> Any:
    """Declare a field as another class of settings declares its own of that name, but for changes of its `Setting`."""
    (field,) = (each for each in dataclasses.fields(cls) if each.name == name)
    about = {_KEY: dataclasses.replace(field.metadata[_KEY], **changes)}
    stated: dict[str, Any] = {"default": field.default, "default_factory": field.default_factory, "metadata": about}
    return dataclasses.field(**stated)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(setting,))
def settings(cls: type[T]) -> type[T]:
    """Make a frozen keyword-only dataclass whose values are checked, all of them before the first complaint.

    A field that holds several values takes one alone as well, and a list: `image="path"` is `image=("path",)`.

    The class may have a method `problems` that yields a `UserError` for each fault that lies between several fields;
    it is asked only where every field is sound by itself.

    Raises:
        TypeError: A field is not declared by `setting`, or the class has a `__post_init__` of its own.
    """
    if "__post_init__" in vars(cls):
        raise TypeError(f"{cls.__name__}: checks between fields belong into the method `problems`")
    cls.__post_init__ = _check  # type: ignore[attr-defined]
    made = dataclass(frozen=True, kw_only=True)(cls)
    declared(made)
    return made


def declared(cls: type) -> dict[str, Setting]:
    """Return field → its declaration.

    Raises:
        TypeError: A field has none.
    """
    fields = dataclasses.fields(cls)
    bare = [field.name for field in fields if _KEY not in field.metadata]
    if bare:
        raise TypeError(f"{cls.__name__}: not declared by setting(): {', '.join(bare)}")
    return {field.name: field.metadata[_KEY] for field in fields}


def has_settings(cls: type) -> bool:
    """Tell whether a class was made by `@settings`."""
    return dataclasses.is_dataclass(cls) and all(_KEY in field.metadata for field in dataclasses.fields(cls))


def bytes_settings(config: object) -> dict[str, Any]:
    """Return the values of those settings that change the bytes of the results, by their names.

    Raises:
        TypeError: A field does not say whether it does.
    """
    fields = declared(type(config))
    silent = [name for name, about in fields.items() if about.changes_bytes is None]
    if silent:
        raise TypeError(f"{type(config).__name__}: changes_bytes is not declared: {', '.join(silent)}")
    return {name: getattr(config, name) for name, about in fields.items() if about.changes_bytes}


# ---- checking --------------------------------------------------------------------------------------------------------


def one_of(names: Collection[str], kind: str) -> Check:
    """Refuse any text but these names of a `kind`."""
    return lambda value, where: None if value in names else UnknownNameError(kind, str(value), names, where)


def at_least(minimum: float, *, below: float = math.inf) -> Check:
    """Refuse numbers below the minimum, and those that reach the bound."""
    expected = f"{minimum} or more" if below == math.inf else f"{minimum} or more, less than {below}"
    return _number(lambda value: minimum <= value < below, expected)


def more_than(bound: float) -> Check:
    """Refuse numbers that are not larger than a bound, and infinity."""
    return _number(lambda value: bound < value < math.inf, f"more than {bound}")


def between(minimum: float, maximum: float) -> Check:
    """Refuse numbers outside of minimum to maximum, both of them allowed."""
    return _number(lambda value: minimum <= value <= maximum, f"{minimum} to {maximum}")


def _number(holds: Callable[[float], bool], expected: str) -> Check:
    return lambda value, where: None if holds(value) else UserError(expected=expected, found=str(value), where=where)


def not_empty(value: Any, where: str) -> UserError | None:
    """Refuse an empty text or tuple."""
    return None if value else UserError(expected="a value, or several", found="none", where=where)


def distinct(value: Any, where: str) -> UserError | None:
    """Refuse a tuple that holds a value twice."""
    twice = sorted({str(each) for each in value if value.count(each) > 1})
    return UserError(expected="each value once", found=f"{', '.join(twice)} twice", where=where) if twice else None


_WHOLE = (not_empty, distinct)
"""Checks of a tuple as a whole."""


def faults(cls: type, values: Mapping[str, Any]) -> list[UserError]:
    """Return what is wrong with the values of some fields, each looked at by itself; None is never wrong."""
    found: list[UserError] = []
    for name, about in declared(cls).items():
        for check in about.checks:
            found += _faults(check, values.get(name), about.option(name))
    return found


def _faults(check: Check, value: Any, where: str) -> Iterable[UserError]:
    if value is None:
        return
    for each in value if isinstance(value, tuple) and check not in _WHOLE else (value,):
        fault = check(each, where)
        if fault is not None:
            yield fault


def _check(self: Any) -> None:
    for field in dataclasses.fields(self):
        value = getattr(self, field.name)
        if typing.get_origin(field.type) is tuple and not isinstance(value, tuple):
            several = tuple(value) if isinstance(value, list) else (value,)
            object.__setattr__(self, field.name, several)
    found = faults(type(self), vars(self))
    more: Callable[[], Iterator[UserError]] | None = getattr(self, "problems", None)
    if not found and more:
        found = list(more())
    if len(found) == 1:
        raise found[0]
    if found:
        raise UserError(expected="valid settings", found="; ".join(map(in_words, found)))


def in_words(fault: UserError) -> str:
    """Return a fault as a part of a longer sentence."""
    remedy = f" ({fault.remedy})" if fault.remedy else ""
    return f"{fault.where or 'it'} should be {fault.expected}, not {fault.found}{remedy}"
