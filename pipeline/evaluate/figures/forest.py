"""One value a method with its interval, best on top: the figure of the first screen."""

from collections.abc import Sequence

from pipeline.evaluate.figures.canvas import GRID, INK, MUTED, draw, plain, styled, to_svg
from pipeline.evaluate.figures.series import COLOURS, Interval


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
        colour = COLOURS[row.part]
        ax.plot([100 * row.low, 100 * row.high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
        ax.plot([100 * row.value], [place], "o", color=colour, markersize=7)
        weight = "bold" if row.part == "lead" else "normal"
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
    highest = 100 * max(row.high for row in rows)
    ax.set_xlim(0, highest * 1.12 or 1)
    ax.set_xlabel(f"{plain(label)}, %")
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x", color=GRID)
    return to_svg(figure, f"{label} of {len(rows)} methods with intervals")
