"""URLs on the command line: a parameter that is named here takes `s3://…` in place of a folder, any other refuses it.

    @takes_urls("dataset", "out")
    def extract(dataset: Path, out: Path, params: Path) -> None: ...

The command gets a storage in place of the path. Options made of settings take URLs where the field is a `Place`.
"""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.storage.open import open_storage

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/(.*)", re.DOTALL)
"""A URL that has become a path: of its two slashes one is left."""


def takes_urls(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return what lets a command take URLs for these parameters and refuse them for its other paths."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(**values: Any) -> Any:
            return function(**{name: opened(name, value, url=name in names) for name, value in values.items()})

        return command

    return decorate


def opened(name: str, value: Any, *, url: bool) -> Any:
    """Return a parameter's value with a storage in place of a path that is a URL.

    Raises:
        UserError: It is a URL, and `url` is not set.
    """
    if isinstance(value, list | tuple):
        return [opened(name, each, url=url) for each in value]
    match = _URL.fullmatch(str(value)) if isinstance(value, Path) else None
    if match is None:
        return value
    text = f"{match[1]}://{match[2]}"
    if not url:
        remedy = "work in a folder, and copy from or to there"
        raise UserError(expected="a local path", found=text, where=name.replace("_", "-"), remedy=remedy)
    return open_storage(text)
