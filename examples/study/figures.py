"""The study's figures as small SVG files that stand by themselves: dark ink on their own light paper.

Drawn in the style of the report (`pipeline.evaluate.figures.canvas`), with more colours: more rows are compared here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from pipeline.evaluate.figures import (
    CLOSED,
    GRID,
    INK,
    LEAD,
    MUTED,
    OTHER,
    PAPER,
    RIVAL,
    VARIABLES,
    WIDTH,
    draw,
    plain,
    styled,
    to_svg,
)

Floats = NDArray[np.float64]
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8f6b00", "#4aa3df", "#7a5195", "#111111")
"""Okabe and Ito's colours, some darker, so that each can be told from its neighbours and from the paper."""
OTHERS = "#b8bcc4"
LIGHT = {
    INK: "#1b1f24", MUTED: "#57606a", GRID: "#dfe3e8", PAPER: "#ffffff",
    LEAD: COLOURS[0], RIVAL: COLOURS[1], CLOSED: COLOURS[2], OTHER: OTHERS,
}  # fmt: skip
FONT = "<style>text{font-family:system-ui,sans-serif}</style>"


@dataclass(frozen=True, kw_only=True)
class Line:
    """A named line with its spread; lines without a colour are drawn thin and grey, and share one legend entry."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = field(default_factory=tuple)
    colour: str = ""


def percent_line(name: str, values: Mapping[float, Floats], colours: Mapping[str, str]) -> Line:
    """Return a row's line: x → fractions over seeds, drawn as percent, mean and standard deviation."""
    y = [100 * float(each.mean()) for each in values.values()]
    spread = [100 * float(each.std()) for each in values.values()]
    return Line(name=name, x=list(map(float, values)), y=y, spread=spread, colour=colours.get(name, ""))


def colours_of(rows: Sequence[str], front: Sequence[str]) -> dict[str, str]:
    """Return a colour for each of the rows in front, the same in every figure; nothing for the others."""
    named = [row for row in front if row in rows]
    return {row: COLOURS[place % len(COLOURS)] for place, row in enumerate(named)}


@styled
def curves(panels: Mapping[str, Sequence[Line]], x_label: str, y_label: str, *, logarithmic: bool = False) -> str:
    """Draw a panel of lines for each title, side by side, with one scale of y and one legend."""
    figure, axes = draw(height=3.4, columns=len(panels), width=WIDTH * (0.5 + 0.62 * len(panels)))
    low = min((y for lines in panels.values() for line in lines for y in line.y), default=0.0)
    high = max((y for lines in panels.values() for line in lines for y in line.y), default=1.0)
    room = 0.06 * (high - low or 1)
    for ax, (title, lines) in zip(axes, panels.items(), strict=True):
        _lines(ax, lines, logarithmic)
        ax.set_title(plain(title, 60), fontsize=9.5, color=INK)
        ax.set_xlabel(x_label)
        ax.set_ylim(low - room, high + room)
    axes[0].set_ylabel(y_label)
    handles, labels = axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(list(unique.values()), list(unique), loc="outside right center", frameon=False, fontsize=8.5)
    return standalone(to_svg(figure, f"{y_label} over {x_label}: {', '.join(panels)}"))


def _lines(ax: Axes, lines: Sequence[Line], logarithmic: bool) -> None:
    ticks = sorted({x for line in lines for x in line.x})
    for line in sorted(lines, key=lambda line: bool(line.colour)):
        colour, width = (line.colour, 1.8) if line.colour else (OTHERS, 1.0)
        marker = "o" if len(line.x) < 12 and line.colour else ""
        label = plain(line.name, 30) if line.colour else "other methods"
        ax.plot(line.x, line.y, color=colour, linewidth=width, marker=marker, markersize=3.5, label=label)
        if line.colour and len(line.spread):
            middle, reach = np.array(line.y), np.array(line.spread)
            ax.fill_between(line.x, middle - reach, middle + reach, color=colour, alpha=0.13, linewidth=0)
    if logarithmic and len(ticks) > 1 and min(ticks) > 0:
        ax.set_xscale("log")
    if logarithmic or len(ticks) < 9:
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


@dataclass(frozen=True)
class Cloud:
    """Images and captions in the plane, row i of both belongs together."""

    image: Floats
    text: Floats


@styled
def clouds(panels: Mapping[str, Cloud]) -> str:
    """Draw images and captions as points, each pair joined by a line; the axes mean nothing."""
    figure, axes = draw(height=3.3, columns=len(panels), width=3.0 * len(panels))
    for ax, (title, cloud) in zip(axes, panels.items(), strict=True):
        gap = np.full(len(cloud.image), np.nan)
        joined = [np.stack([cloud.image[:, axis], cloud.text[:, axis], gap], axis=1).ravel() for axis in (0, 1)]
        ax.plot(*joined, color=OTHERS, linewidth=0.4, zorder=1)
        for points, colour, name in ((cloud.image, COLOURS[0], "image"), (cloud.text, COLOURS[1], "caption")):
            ax.plot(points[:, 0], points[:, 1], "o", color=colour, markersize=2.6, markeredgewidth=0, label=name)
        ax.set_title(plain(title, 40), fontsize=9.5, color=INK)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.grid(visible=False)
        ax.spines["bottom"].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return standalone(to_svg(figure, f"Images and captions in the plane: {', '.join(panels)}"))


def standalone(svg: str) -> str:
    """Return an inline figure of the report as a file's content: colours filled in, paper below, shorter numbers."""
    for marker, colour in LIGHT.items():
        svg = svg.replace(f"var({VARIABLES[marker]})", colour)
    svg = re.sub(r"(\d+\.\d{2})\d+", r"\1", svg)
    opening = svg.index(">", svg.index("<svg")) + 1
    paper = f'<rect width="100%" height="100%" rx="6" fill="{LIGHT[PAPER]}"/>'
    return f"{svg[:opening]}{FONT}{paper}{svg[opening:].rstrip()}\n"
