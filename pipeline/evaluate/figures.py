"""The report's figures as inline SVG, whose colours and fonts are the page's own.

Matplotlib draws without pyplot's state, in marker colours; `to_svg` replaces each by a CSS variable, so one drawing
serves the light and the dark page. Figures are about as wide as a phone and stand side by side on a desk. Colours
follow the role that a run plays in the story, not the order.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from html import escape
from io import StringIO
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from pipeline.evaluate.leaderboard import Role

INK, MUTED, GRID, PAPER = "#010203", "#010204", "#010205", "#010206"
LEAD, RIVAL, CLOSED, OTHER = "#010207", "#010208", "#010209", "#01020a"
NAMED = ("#01020b", "#01020c", "#01020d", "#01020e")
"""Colours without a role, for lines that have to be told apart in one figure."""
LARGEST = 1.5  # how far a figure is blown up on a wide page
VARIABLES = {
    INK: "--ink", MUTED: "--muted", GRID: "--line", PAPER: "--paper",
    LEAD: "--lead", RIVAL: "--rival", CLOSED: "--closed", OTHER: "--other",
    **{colour: f"--named-{place}" for place, colour in enumerate(NAMED, 1)},
}  # fmt: skip
WIDTH = 5.4  # inches; 72 SVG units each
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
}
# One hue from clear to deep: it reads on light and on dark paper, because zero is transparent.
DEPTH = LinearSegmentedColormap.from_list("depth", [(0.16, 0.36, 0.72, 0.04), (0.16, 0.45, 0.80, 1.0)])
LABELLED_CLASSES = 24
Drawing = ParamSpec("Drawing")
COLOURS: dict[Role, str] = {"lead": LEAD, "rival": RIVAL, "closed": CLOSED, "other": OTHER}
ORDER: dict[Role, int] = {"other": 1, "closed": 2, "rival": 3, "lead": 4}


@dataclass(frozen=True, kw_only=True)
class Series:
    """One method's line, x against y (both of the same length)."""

    name: str
    role: Role
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False
    colour: str = ""
    """One of `NAMED`, in place of the role's."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One method's value with its interval."""

    name: str
    role: Role
    value: float
    low: float
    high: float


def styled(function: Callable[Drawing, str]) -> Callable[Drawing, str]:
    """Run a drawing function under the report's style, with matplotlib's settings as they were afterwards."""

    @wraps(function)
    def inner(*args: Drawing.args, **kwargs: Drawing.kwargs) -> str:
        with mpl.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the page's font has the last word
            return function(*args, **kwargs)

    return inner


def draw(height: float = 3.2, columns: int = 1, width: float = WIDTH) -> tuple[Figure, list[Axes]]:
    """Return an empty figure and its axes, side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    figure.patch.set_visible(False)
    for ax in axes:
        ax.patch.set_visible(False)
    return figure, list(axes)


def plain(text: str, limit: int = 40) -> str:
    """Return a label that matplotlib draws as it stands: one line, no control characters, cut to a length."""
    clean = "".join(character if character.isprintable() else " " for character in text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def to_svg(figure: Figure, label: str) -> str:
    """Return the figure as an `<svg>` element that scales with its column, labelled for screen readers.

    Args:
        figure: What `draw` returned, filled.
        label: One sentence that says what is seen; it is escaped here.
    """
    buffer = StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    for pattern in (r"<metadata>.*?</metadata>", r"<defs>\s*<style.*?</style>\s*</defs>", r" font-family: [^;\"]*;"):
        body = re.sub(pattern, "", body, flags=re.DOTALL)
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    width, height = (72 * size for size in figure.get_size_inches())
    links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    box = f'viewBox="0 0 {width:.1f} {height:.1f}" style="max-width:{LARGEST * width:.0f}px"'
    return f'<svg {links} role="img" aria-label="{escape(plain(label, 200))}" {box}>{body}'


@styled
def forest(rows: Sequence[Interval], chance: float | None, label: str) -> str:
    """Draw intervals as whiskers and values as dots; a dotted line marks chance.

    Args:
        rows: Methods, best first; fractions.
        chance: What random embeddings reach; None leaves the line out.
        label: What is measured, for the axis.
    """
    figure, (ax,) = draw(height=0.62 + 0.3 * len(rows), width=5.0)
    for place, row in enumerate(rows):
        colour = COLOURS[row.role]
        ax.plot([100 * row.low, 100 * row.high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
        ax.plot([100 * row.value], [place], "o", color=colour, markersize=7)
        weight = "bold" if row.role == "lead" else "normal"
        ax.annotate(
            f"{100 * row.value:.1f}", (100 * row.high, place), xytext=(7, 0), textcoords="offset points", va="center",
            color=INK, fontweight=weight,
        )  # fmt: skip
    if chance is not None:
        ax.axvline(100 * chance, color=MUTED, linestyle=":", linewidth=1.2)
        ax.annotate(
            "chance", (100 * chance, -0.45), xytext=(3, 0), textcoords="offset points", color=MUTED,
            fontsize=8.5, va="center",
        )  # fmt: skip
    ax.set_yticks(range(len(rows)), [plain(row.name, 26) for row in rows], color=INK)
    ax.set_ylim(len(rows) - 0.3, -0.6)
    ax.set(xlim=(0, 112 * max(row.high for row in rows) or 1), xlabel=f"{plain(label)}, %")
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x", color=GRID)
    return to_svg(figure, f"{label} of {len(rows)} methods with intervals")


@styled
def recall_curves(series: Sequence[Series], chance: Series | None, label: str) -> str:
    """Draw recall@k over k on a logarithmic axis; y in fractions."""
    figure, (ax,) = draw()
    _lines(ax, series, scale=100)
    if chance is not None:
        ax.plot(chance.x, [100 * value for value in chance.y], color=MUTED, linestyle=":", linewidth=1.2)
        ax.annotate("chance", (chance.x[-1], 100 * chance.y[-1]), ha="right", va="bottom", color=MUTED, fontsize=8.5)
    ax.set_xscale("log")
    largest = max((line.x[-1] for line in series if len(line.x)), default=1)
    ax.xaxis.set_major_locator(FixedLocator([k for k in (1, 2, 5, 10, 20, 50, 100) if k <= largest]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set(ylim=(0, None), xlabel="k", ylabel=f"{plain(label)}, %")
    _legend(ax, series)
    return to_svg(figure, f"{label} over k")


@styled
def step_curves(series: Sequence[Series], label: str, reference: float | None = None) -> str:
    """Draw a logged quantity over training steps, such as the loss or the weight of a direction."""
    figure, (ax,) = draw(height=2.7)
    _lines(ax, series)
    if reference is not None:
        ax.axhline(reference, color=MUTED, linestyle=":", linewidth=1.2)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="step", ylabel=plain(label))
    _legend(ax, series)
    return to_svg(figure, f"{label} over training steps")


@styled
def reliability(series: Sequence[Series], label: str) -> str:
    """Draw accuracy over stated confidence, a bin a point; the diagonal is perfect calibration."""
    figure, (ax,) = draw(height=3.4)
    ax.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1.2)
    _lines(ax, series, marker="o")
    ends = (-0.02, 1.02)
    ax.set(xlim=ends, ylim=ends, xlabel="stated confidence", ylabel="share that was right")
    _legend(ax, series)
    return to_svg(figure, f"Reliability diagram, {label}")


@styled
def layer_map(
    scores: NDArray[np.float64], image_layers: Sequence[str], text_layers: Sequence[str], chosen: tuple[int, int] | None
) -> str:
    """Draw the scores [I, T] of I image layers against T text layers and frame the chosen pair."""
    figure, (ax,) = draw(height=1.2 + 0.24 * len(image_layers))
    low, high = float(np.nanmin(scores)), float(np.nanmax(scores))
    ax.imshow(
        scores, cmap=DEPTH, vmin=low, vmax=high if high > low else low + 1, aspect="auto", interpolation="nearest"
    )
    if scores.size <= 260:
        for row, column in np.ndindex(*scores.shape):
            value = f"{scores[row, column]:.2f}".replace("0.", ".")
            deep = scores[row, column] > (low + high) / 2
            ax.text(column, row, value, ha="center", va="center", fontsize=8, color="white" if deep else INK)
    if chosen is not None:
        corner = (chosen[1] - 0.5, chosen[0] - 0.5)
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=INK, linewidth=2, clip_on=False))
    ax.set_yticks(range(len(image_layers)), [plain(name, 18) for name in image_layers])
    ax.set_xticks(range(len(text_layers)), [plain(name, 14) for name in text_layers], rotation=40, ha="right")
    ax.set(xlabel="text layer", ylabel="image layer")
    ax.grid(visible=False)
    return to_svg(figure, f"Score of {len(image_layers)} image layers against {len(text_layers)} text layers")


@styled
def confusion_map(matrix: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Draw counts [C, C] of true class (row) against predicted class, each row as shares of its class."""
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    labelled = len(classes) <= LABELLED_CLASSES
    figure, (ax,) = draw(height=WIDTH * 0.9)
    ax.imshow(shares, cmap=DEPTH, vmin=0, vmax=1, interpolation="nearest")
    names = [plain(name, 20) for name in classes] if labelled else []
    ax.set_yticks(range(len(names)), names)
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right")
    if len(classes) <= 12:
        for row, column in zip(*np.nonzero(shares >= 0.005), strict=True):
            value = f"{100 * shares[row, column]:.0f}"
            colour = "white" if shares[row, column] > 0.5 else INK
            ax.text(column, row, value, ha="center", va="center", fontsize=8, color=colour)
    ylabel = "true class" if labelled else f"true class ({len(classes)} in order)"
    ax.set(xlabel="predicted class", ylabel=ylabel)
    ax.grid(visible=False)
    return to_svg(figure, f"Confusion matrix of {len(classes)} classes")


def _lines(ax: Axes, series: Sequence[Series], scale: float = 1.0, marker: str = "") -> None:
    for line in series:
        colour = line.colour or COLOURS[line.role]
        ax.plot(
            line.x, [scale * value for value in line.y], color=colour, zorder=ORDER[line.role] + 2,
            linestyle="--" if line.dashed else "-", linewidth=1.1 if line.role == "other" else 2.0, marker=marker,
            markersize=4, label=plain(line.name, 28), alpha=0.7 if line.role == "other" else 1.0,
        )  # fmt: skip


def _legend(ax: Axes, series: Sequence[Series]) -> None:
    handles, labels = ax.get_legend_handles_labels()
    grey = {plain(line.name, 28): line.role == "other" and not line.colour for line in series}
    shown: dict[str, Artist] = {}
    for handle, text in zip(handles, labels, strict=True):
        shown.setdefault(f"{sum(grey.values())} other methods" if grey[text] and len(grey) > 3 else text, handle)
    if len(grey) > 1 or any(line.dashed for line in series):
        box: dict[str, Any] = {"facecolor": PAPER, "edgecolor": "none", "framealpha": 0.8, "fontsize": 8.5}
        ax.legend(list(shown.values()), list(shown), loc="best", **box)
