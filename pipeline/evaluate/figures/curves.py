"""Lines: recall against k, the loss and its weights against steps, stated confidence against what came true."""

from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from pipeline.evaluate.figures.canvas import MUTED, PAPER, draw, plain, styled, to_svg
from pipeline.evaluate.figures.series import COLOURS, ORDER, Series


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
    ax.set_ylim(0, None)
    ax.set_xlabel("k")
    ax.set_ylabel(f"{plain(label)}, %")
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
    ax.set_xlabel("step")
    ax.set_ylabel(plain(label))
    _legend(ax, series)
    return to_svg(figure, f"{label} over training steps")


@styled
def reliability(series: Sequence[Series], label: str) -> str:
    """Draw accuracy over stated confidence, a bin a point; the diagonal is perfect calibration."""
    figure, (ax,) = draw(height=3.4)
    ax.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1.2)
    _lines(ax, series, marker="o")
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("stated confidence")
    ax.set_ylabel("share that was right")
    _legend(ax, series)
    return to_svg(figure, f"Reliability diagram, {label}")


def _lines(ax: Axes, series: Sequence[Series], scale: float = 1.0, marker: str = "") -> None:
    for line in series:
        ax.plot(
            line.x, [scale * value for value in line.y], color=COLOURS[line.part], zorder=ORDER[line.part] + 2,
            linestyle="--" if line.dashed else "-", linewidth=1.1 if line.part == "other" else 2.0, marker=marker,
            markersize=4, label=plain(line.name, 28), alpha=0.7 if line.part == "other" else 1.0,
        )  # fmt: skip


def _legend(ax: Axes, series: Sequence[Series]) -> None:
    handles, labels = ax.get_legend_handles_labels()
    parts = {plain(line.name, 28): line.part for line in series}
    others = sum(part == "other" for part in parts.values())
    shown: dict[str, Artist] = {}
    for handle, text in zip(handles, labels, strict=True):
        shown.setdefault(f"{others} other methods" if parts[text] == "other" and len(parts) > 3 else text, handle)
    if len(parts) > 1 or any(line.dashed for line in series):
        ax.legend(
            list(shown.values()),
            list(shown),
            facecolor=PAPER,
            edgecolor="none",
            framealpha=0.8,
            fontsize=8.5,
            loc="best",
        )
