"""What the commands print: JSON for programs, tables and sentences for people; and checks that come before the work."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from pipeline.errors import UserError, naming


def emit_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    say(json.dumps(value, indent=2, ensure_ascii=plain, default=str))


WIDTH = 100
"""Columns of a terminal that a table with words in it is cut to."""


def emit_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], cut: str = "") -> None:
    """Print rows as a table with aligned columns; the column `cut` is shortened until the table fits `WIDTH`."""
    cells = [[str(row.get(column, "")) for column in columns] for row in rows]
    widths = [max([len(column), *(len(row[i]) for row in cells)]) for i, column in enumerate(columns)]
    if cut:
        place = list(columns).index(cut)
        widths[place] = max(12, min(widths[place], WIDTH - sum(widths) + widths[place] - 2 * (len(columns) - 1)))
        for row in cells:
            if len(row[place]) > widths[place]:
                row[place] = f"{row[place][: widths[place] - 1].rstrip()}…"
    for line in [list(columns), ["─" * width for width in widths], *cells]:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def say(text: object) -> None:
    """Print a line on standard output."""
    with naming("standard output"):
        typer.echo(str(text))


# ---- checks that come before the work ----------------------------------------------------------------------


def at_least_one(value: int, option: str) -> int:
    """Return a number that counts something.

    Raises:
        UserError: It is less than 1.
    """
    if value < 1:
        raise UserError(expected="1 or more", found=str(value), where=option)
    return value


def writable_folder(path: Path, option: str) -> Path:
    """Return a folder that is there or can be made, and that can be written into; nothing is made yet.

    Raises:
        UserError: It is a file, lies below one, or may not be written.
    """
    present = next(folder for folder in (path, *path.parents, Path()) if folder.exists() or folder.is_symlink())
    if not present.is_dir():
        found, remedy = f"the file {present}", f"choose another {option}"
    elif not os.access(present, os.W_OK | os.X_OK):
        found, remedy = f"that {present} may not be written", f"allow writing there, or choose another {option}"
    else:
        return path
    raise UserError(expected="a folder to write into", found=found, where=f"{option} {path}", remedy=remedy)


def writable_file(path: Path, option: str) -> Path:
    """Return a file that can be written.

    Raises:
        UserError: It is a folder, or its folder cannot be written into.
    """
    if path.is_dir():
        raise UserError(expected="a file to write", found="a folder", where=f"{option} {path}")
    writable_folder(path.parent, option)
    return path
