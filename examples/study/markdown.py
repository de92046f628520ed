"""Pieces of a Markdown page: tables, numbers as percent, signed differences with their intervals."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from examples.study.statistics import Effect


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are numbers."""
    lines = [_line(header), "|---" + "|--:" * (len(header) - 1) + "|"]
    return "\n".join([*lines, *(_line(row) for row in rows)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(escape(cell) for cell in cells)} |"


def escape(text: str) -> str:
    """Return text that neither ends a cell nor becomes markup that was not meant."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def percent(values: NDArray[np.float64], decimals: int = 1) -> str:
    """Return fractions over seeds as percent, mean ± sample standard deviation."""
    mean = f"{100 * float(values.mean()):.{decimals}f}"
    return f"{mean} ± {100 * float(values.std(ddof=1)):.{decimals}f}" if len(values) > 1 else mean


def plain(values: NDArray[np.float64], decimals: int = 3) -> str:
    """Return numbers over seeds as they are, mean ± sample standard deviation."""
    mean = f"{float(values.mean()):.{decimals}f}"
    return f"{mean} ± {float(values.std(ddof=1)):.{decimals}f}" if len(values) > 1 else mean


def signed(effect: Effect, scale: float = 100.0, decimals: int = 1) -> str:
    """Return a difference with its interval, in points: `+0.3 [−0.5, +1.1]`, bold where the interval leaves out 0.

    Where rounding would turn a bound of such an interval into 0, more decimals are shown.
    """
    bounds = (scale * effect.low, scale * effect.high)
    while effect.clear and decimals < 4 and any(round(bound, decimals) == 0 for bound in bounds):
        decimals += 1
    value, low, high = (_number(scale * number, decimals) for number in effect[:3])
    text = f"{value} [{low}, {high}]" if effect.high - effect.low < float("inf") else value
    return f"**{text}**" if effect.clear else text


def _number(value: float, decimals: int) -> str:
    text = f"{value:+.{decimals}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def count(value: int | None) -> str:
    """Return a number of pairs or captions; None is all."""
    return "all" if value is None else f"{value:,}"
