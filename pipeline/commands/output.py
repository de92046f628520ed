"""What the commands print: JSON for programs, tables and sentences for people, progress on standard error."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer

from pipeline.remote.binding import addressed


def emit_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    plain = not (sys.stdout.encoding or "").lower().startswith("utf")
    say(json.dumps(value, indent=2, ensure_ascii=plain, default=str))


def emit_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print rows as a table with aligned columns."""
    cells = [[str(row.get(column, "")) for column in columns] for row in rows]
    widths = [max([len(column), *(len(row[i]) for row in cells)]) for i, column in enumerate(columns)]
    for line in [list(columns), ["─" * width for width in widths], *cells]:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def say(text: object) -> None:
    """Print a line on standard output; a place at a URL is said by its URL."""
    typer.echo(addressed(str(text)))
