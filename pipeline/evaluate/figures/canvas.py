"""From a matplotlib figure to an inline SVG whose colours and fonts are the page's own.

Figures are drawn in marker colours; `to_svg` replaces each by a CSS variable, so one drawing serves the light and the
dark page. They are about as wide as a phone and stand side by side on a desk.
"""

import re
import warnings
from collections.abc import Callable
from functools import wraps
from html import escape
from io import StringIO
from typing import Any, ParamSpec

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#010203", "#010204", "#010205", "#010206"
LEAD, RIVAL, CLOSED, OTHER = "#010207", "#010208", "#010209", "#01020a"
LARGEST = 1.5  # how far a figure is blown up on a wide page
VARIABLES = {
    INK: "--ink", MUTED: "--muted", GRID: "--line", PAPER: "--paper",
    LEAD: "--lead", RIVAL: "--rival", CLOSED: "--closed", OTHER: "--other",
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
Drawing = ParamSpec("Drawing")


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
