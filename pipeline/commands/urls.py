"""URLs on the command line: a parameter that is named here takes `s3://…` in place of a folder, any other refuses it.

    @takes_urls("dataset", "out")
    def extract(dataset: Path, out: Path, params: Path) -> None: ...

The command gets a storage in place of the path.
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
            return function(**{name: _local(name, value, name in names) for name, value in values.items()})

        return command

    return decorate


def _local(name: str, value: Any, allowed: bool) -> Any:
    if isinstance(value, list | tuple):
        return [_local(name, each, allowed) for each in value]
    match = _URL.fullmatch(str(value)) if isinstance(value, Path) else None
    if match is None:
        return value
    url = f"{match[1]}://{match[2]}"
    if not allowed:
        remedy = "work in a folder, and copy from or to there"
        raise UserError(expected="a local path", found=url, where=name.replace("_", "-"), remedy=remedy)
    return open_storage(url)
