"""How sizes, durations and counts are written for people, and where sentences for the person who waits go."""

import html
import re
import sys
from collections.abc import Iterable, Sequence


def size(count: float) -> str:
    """Return a number of bytes for people (1 kB = 1000 B): 812 B, 3.1 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Return seconds for people: 45 s, 12 min, 1.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def count(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: 1 seed, 1,000 images."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listing(names: Sequence[str]) -> str:
    """Return names as a sentence says them: a, b and c."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def shortened(names: Sequence[str]) -> str:
    """Return names with commas between them, the first of them where they are many."""
    text = ", ".join(names[:20])
    return f"{text[:400]}..., {len(names)} in all" if len(names) > 20 or len(text) > 400 else text


def inert(row: Iterable[object]) -> list[object]:
    """Return the cells of a table that people open, so that a spreadsheet shows texts and calculates nothing.

    A text that begins as a formula does gets an apostrophe before it; numbers, also such as are written as text, stay.
    Not for tables that are read back.
    """
    return [f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell for cell in row]


_FORMULA = re.compile(r"[=+\-@\t\r](?!\d+(\.\d*)?(e[+-]?\d+)?$)")


def html_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table for a notebook, every value escaped."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    lines = ["".join(f"<td>{html.escape(str(value))}</td>" for value in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    caption = f"<caption>{html.escape(title)}</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def on_stderr(sentence: object) -> None:
    """Print one sentence on standard error at once: standard output stays for results.

    It is a `Progress` for work that only says sentences.
    """
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()
