"""Matrices: the score of every layer pair, and which class was taken for which."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pipeline.evaluate.figures.canvas import INK, WIDTH, draw, plain, styled, to_svg

# One hue from clear to deep: it reads on light and on dark paper, because zero is transparent.
DEPTH = LinearSegmentedColormap.from_list("depth", [(0.16, 0.36, 0.72, 0.04), (0.16, 0.45, 0.80, 1.0)])
LABELLED_CLASSES = 24


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
    ax.set_ylabel("image layer")
    ax.set_xlabel("text layer")
    ax.grid(visible=False)
    return to_svg(figure, f"Score of {len(image_layers)} image layers against {len(text_layers)} text layers")


@styled
def confusion_map(matrix: NDArray[np.int64], classes: Sequence[str]) -> str:
    """Draw counts [C, C] of true class (row) against predicted class, each row as shares of its class."""
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    labelled = len(classes) <= LABELLED_CLASSES
    figure, (ax,) = draw(height=WIDTH * 0.9)
    ax.imshow(shares, cmap=DEPTH, vmin=0, vmax=1, interpolation="nearest")
    if labelled:
        names = [plain(name, 20) for name in classes]
        ax.set_yticks(range(len(names)), names)
        ax.set_xticks(range(len(names)), names, rotation=45, ha="right")
    else:
        ax.set_yticks([])
        ax.set_xticks([])
    if len(classes) <= 12:
        for row, column in zip(*np.nonzero(shares >= 0.005), strict=True):
            value = f"{100 * shares[row, column]:.0f}"
            colour = "white" if shares[row, column] > 0.5 else INK
            ax.text(column, row, value, ha="center", va="center", fontsize=8, color=colour)
    ax.set_ylabel("true class" if labelled else f"true class ({len(classes)} in order)")
    ax.set_xlabel("predicted class")
    ax.grid(visible=False)
    return to_svg(figure, f"Confusion matrix of {len(classes)} classes")
