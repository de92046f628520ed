"""Does the score of a layer pair say how well that pair can be aligned? `pipeline layers … --check` measures it.

Scores and training see training rows alone, recall is counted on validation rows; the test split is never read.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from pipeline.align.config import AlignConfig
from pipeline.align.layer_choice import LayerScores
from pipeline.align.pairs import split_pairs, subset
from pipeline.align.recipe import Recipe, make_recipe
from pipeline.align.start import starting_projectors
from pipeline.align.tensors import PairTensors
from pipeline.align.train import train
from pipeline.align.validation import selection_score
from pipeline.errors import UserError
from pipeline.progress import Progress, Update, silent
from pipeline.store.side import LayerRef, Side

IMAGES = 2000
"""Training images of a check; of more a sample is drawn."""
LEAST_PAIRS = 4
RESAMPLES = 2000
LEVEL = 0.95

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CheckedPair:
    """A pair of layers that a projector was trained on."""

    image_layer: str
    text_layer: str
    score: float
    """Calibrated score on training rows."""
    recall: float
    """Mean validation recall, both directions, at 1, 5 and 10."""


@dataclass(frozen=True, kw_only=True)
class LayerCheck:
    """How far score and recall agree."""

    rank_correlation: float
    """Spearman's ρ over the checked pairs; 1: the score ranks as recall does."""
    low: float
    """Lower end of the bootstrap interval over pairs."""
    high: float
    """Upper end."""
    level: float
    """Share of resamples inside the interval. Pairs share layers, so it is rather too narrow than too wide."""
    training_images: int
    """Images that each projector was trained on."""
    validation_images: int
    """Images that recall was counted on."""
    pairs: list[CheckedPair]
    """The checked pairs, best score first."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return asdict(self)

    @property
    def sentence(self) -> str:
        """Say what was found."""
        best = max(self.pairs, key=lambda pair: pair.recall)
        verdict = "the score ranks pairs as training does" if self.low > 0 else "the score cannot be relied on here"
        return (
            f"Rank correlation of score and validation recall over {len(self.pairs)} pairs of layers: "
            f"{self.rank_correlation:.2f} [{self.low:.2f}, {self.high:.2f}], a linear projector each on "
            f"{self.training_images} images: {verdict}. The best-scored pair reached a mean recall of "
            f"{self.pairs[0].recall:.3f}, the best of all ({best.image_layer}, {best.text_layer}) {best.recall:.3f}."
        )


def check_layers(
    image_store: Path,
    text_store: Path,
    scores: LayerScores,
    *,
    pairs: int = 20,
    split: str = "train",
    validation_split: str = "val",
    seed: int = 1,
    recipe: Recipe | None = None,
    progress: Progress = silent,
) -> LayerCheck:
    """Train a linear projector on pairs of layers of all scores, and correlate score with validation recall.

    Args:
        image_store: Image store.
        text_store: Text store of the same data set.
        scores: Scores of these stores, as `layer_choice.layers` gives them for the same splits.
        pairs: How many pairs, evenly spread over the ranking, the best, the worst and the last layers among them.
        split: The training split.
        validation_split: The validation split; where there is none, images are carved out of the training split.
        seed: Draws training images where there are more than 2000, and starts the projectors.
        recipe: How to train; plain InfoNCE where nothing is said.
        progress: Is told how many pairs are done.

    Raises:
        UserError: A store cannot be used, or fewer than four pairs are asked for or there.
    """
    chosen = spread(scores, pairs)
    recipe = recipe or make_recipe("info_nce")
    config = AlignConfig(
        image=(image_store,), text=(text_store,), out=Path(), train_split=split, validation_split=validation_split
    )
    sides = Side.open("image", config.image), Side.open("text", config.text)
    splits = split_pairs(*sides, config, silent)
    training = splits.train.take(subset(sides[0], splits.train, min(IMAGES, len(splits.train)), seed))
    checked = []
    for done, (i, j) in enumerate(chosen, start=1):
        names = scores.image_layers[i], scores.text_layers[j]
        layers = (LayerRef(0, names[0]),), (LayerRef(0, names[1]),)
        data, validation = (
            PairTensors.read(sides, layers, part, torch.device("cpu")) for part in (training, splits.validation)
        )
        widths = sides[0].widths(layers[0]), sides[1].widths(layers[1])
        start = starting_projectors(data, validation, recipe, widths, seed)
        recall = selection_score(train(data, validation, recipe, start, seed=seed).validation)
        pair = CheckedPair(image_layer=names[0], text_layer=names[1], score=scores.calibrated[i][j], recall=recall)
        checked.append(pair)
        progress(Update(what="pairs of layers checked", done=done, total=len(chosen)))
    found = np.array([[pair.score, pair.recall] for pair in checked]).T
    low, high = _interval(found[0], found[1], seed)
    return LayerCheck(
        rank_correlation=rank_correlation(found[0], found[1]),
        low=low,
        high=high,
        level=LEVEL,
        training_images=len(training),
        validation_images=len(splits.validation),
        pairs=checked,
    )


def spread(scores: LayerScores, count: int) -> list[tuple[int, int]]:
    """Return positions of `count` pairs (all, where there are fewer) evenly spread over the ranking, best first.

    Raises:
        UserError: Fewer than four pairs are asked for or there.
    """
    table = np.array(scores.calibrated)
    if min(count, table.size) < LEAST_PAIRS:
        raise UserError(
            expected=f"{LEAST_PAIRS} pairs of layers or more, to correlate scores with recall",
            found=str(min(count, table.size)),
            where="--check",
            remedy="extract more layers, or check more pairs",
        )
    order = np.argsort(-table, axis=None, kind="stable")
    places = np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(np.int64))
    last = int(np.flatnonzero(order == table.size - 1)[0])
    if last not in places:  # the last layers, in place of their nearest neighbour inside
        places[1 + int(np.abs(places[1:-1] - last).argmin())] = last
    width = table.shape[1]
    return [(int(order[place]) // width, int(order[place]) % width) for place in np.sort(places)]


def rank_correlation(x: Values, y: Values) -> float:
    """Return Spearman's ρ of two samples [n], ties sharing their mean rank; NaN where one is constant."""
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (x, y)]
    lengths = [float(np.sqrt(rank @ rank)) for rank in ranks]
    return float(ranks[0] @ ranks[1] / (lengths[0] * lengths[1])) if min(lengths) > 0 else float("nan")


def _interval(x: Values, y: Values, seed: int) -> tuple[float, float]:
    drawn = np.random.default_rng(seed).integers(0, len(x), size=(RESAMPLES, len(x)))
    found = np.array([rank_correlation(x[rows], y[rows]) for rows in drawn])
    ends = np.nanquantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(ends[0]), float(ends[1])
