"""How alike every image layer is to every text layer, and whether that says how well the two can be aligned.

Run by `pipeline layers IMAGE_STORE TEXT_STORE` (`layers`; `check_layers` for `--check`) and by
`pipeline.align.layer_choice` for `--layers pair` and `stack`. Scores and the training of a check see training rows
alone, the check counts recall on validation rows; the test split is never read.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from pipeline.align.config import AlignConfig
from pipeline.align.fit import initial_projectors, selection_score
from pipeline.align.pairs import PairFeatures, PairSet, Splits, one_row_an_image, split_pairs, subset
from pipeline.align.recipe import Recipe, make_recipe
from pipeline.align.train import train
from pipeline.errors import UnknownNameError, UserError
from pipeline.layers import LayerRef
from pipeline.metrics.retrieval import is_constant
from pipeline.metrics.similarity import LayerPairs, compare_layers, compare_layers_by_cka, nearest_neighbours
from pipeline.progress import Progress, Update, silent
from pipeline.projectors.run_record import fill
from pipeline.store.views import Side

SIGNIFICANT = 0.05
COMMON = " of neighbours in common"
CHECKED_IMAGES = 2000
"""Training images of a check; of more a sample is drawn."""
LEAST_PAIRS = 4
RESAMPLES = 2000
LEVEL = 0.95

Values = NDArray[np.float64]


class Metric(NamedTuple):
    """How layers are compared."""

    prepare: Callable[[Tensor], Any]
    """What is kept of a layer's features."""
    compare: Callable[..., LayerPairs]
    """Takes what was kept of the image and of the text layers, `permutations` and `seed`."""
    least: int
    """Images that it needs."""
    most: int
    """Images that are looked at; of more a sample is drawn."""
    says: str
    """How a score is written for people."""


METRICS = {
    "mutual_knn": Metric(nearest_neighbours, compare_layers, 3, 5000, "{:.1%}" + COMMON),
    "cka": Metric(lambda features: features, compare_layers_by_cka, 4, 1000, "a CKA of {:.3f}"),
}


@dataclass(frozen=True, kw_only=True)
class LayerScores:
    """All pairs of layers, scored; what layer_pairs.json holds."""

    metric: str = "mutual_knn"
    """mutual_knn: share of common neighbours (arXiv 2506.16895 picks layers by it); cka: unbiased linear CKA."""
    k: int | None
    """Neighbours of a row, ⌈2·n^⅓⌉; None for CKA."""
    rows: int
    """Training images that were looked at."""
    image_layers: list[str]
    """Names of the I image layers that were compared."""
    text_layers: list[str]
    """Names of the T text layers that were compared."""
    score: list[list[float]]
    """Raw score, [I][T]; 1 is the same."""
    calibrated: list[list[float]]
    """Score above what shuffled pairs reach, [I][T] (arXiv 2602.14486)."""
    p_value: list[list[float]]
    """Share of shuffled pairings that score as high, [I][T]."""
    chosen: tuple[int, int]
    """Position of the best pair: highest calibrated score."""
    chosen_p_value: float
    """P-value of the best pair, corrected for the choice among all pairs."""
    left_out: list[str] = field(default_factory=list)
    """Layers whose rows are all the same: there is no nearest neighbour."""
    advice: str = ""
    """What the scores say, in a sentence."""

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str = "") -> "LayerScores":
        """Rebuild a record; fields that this version does not know are passed over.

        Raises:
            UserError: A field is missing or of the wrong kind.
        """
        return fill(cls, data, where)


def layers(
    image_store: Path,
    text_store: Path,
    *,
    split: str = "train",
    seed: int = 1,
    metric: str = "mutual_knn",
) -> LayerScores:
    """Score every pair of layers of two stores on up to 5000 training images, the ones that `align` would choose by.

    Args:
        image_store: Image store.
        text_store: Text store of the same data set.
        split: The training split; without a split `val`, the images that `align` carves out of it are left out.
        seed: Draws the images where there are more.
        metric: mutual_knn, or cka (on up to 1000 images).

    Raises:
        UserError: A store cannot be used, or there are too few pairs.
        UnknownNameError: No such metric.
    """
    (image, text), splits = _open(image_store, text_store, split)
    return score_layers(image, text, splits.train, seed=seed, metric=metric)


def _open(image_store: Path, text_store: Path, split: str) -> tuple[tuple[Side, Side], Splits]:
    config = AlignConfig(image=(image_store,), text=(text_store,), out=Path(), train_split=split)
    sides = Side.open("image", config.image), Side.open("text", config.text)
    return sides, split_pairs(*sides, config)


def score_layers(
    image: Side, text: Side, pairs: PairSet, *, seed: int = 0, permutations: int = 200, metric: str = "mutual_knn"
) -> LayerScores:
    """Score every pair of layers on training pairs. A caption row is the mean of an image's captions.

    Args:
        image: The image side.
        text: The text side.
        pairs: Training pairs; never validation or test pairs.
        seed: Draws images where there are more than the metric looks at, and the shuffles of the null.
        permutations: Shuffled pairings behind the null.
        metric: mutual_knn or cka.

    Raises:
        UserError: Fewer than three images (four for CKA), or a side without a layer that tells samples apart.
    """
    if metric not in METRICS:
        raise UnknownNameError("layer metric", metric, METRICS, "layer_metric")
    chosen_metric = METRICS[metric]
    if len(pairs) < chosen_metric.least:
        expected = f"at least {chosen_metric.least} training images to compare layers"
        raise UserError(expected=expected, found=str(len(pairs)))
    if len(pairs) > chosen_metric.most:
        chosen = np.random.default_rng(seed).permutation(len(pairs))[: chosen_metric.most]
        pairs = pairs.take(np.sort(chosen))
    image_layers, image_tables, left_out = _tables(image, pairs, chosen_metric)
    text_layers, text_tables, more_left_out = _tables(text, pairs, chosen_metric)
    found = chosen_metric.compare(image_tables, text_tables, permutations=permutations, seed=seed)
    return LayerScores(
        metric=metric,
        k=found.k,
        rows=found.rows,
        image_layers=image_layers,
        text_layers=text_layers,
        score=found.score.tolist(),
        calibrated=found.calibrated.tolist(),
        p_value=found.p_value.tolist(),
        chosen=found.best,
        chosen_p_value=found.best_p_value,
        left_out=left_out + more_left_out,
        advice=_advice((image_layers[found.best[0]], text_layers[found.best[1]]), found, chosen_metric.says),
    )


def _tables(side: Side, pairs: PairSet, metric: Metric) -> tuple[list[str], list[Any], list[str]]:
    names: list[str] = []
    tables: list[Any] = []
    left_out: list[str] = []
    for layer in side.layers():
        features = one_row_an_image(side, layer, pairs)
        if is_constant(torch.nn.functional.normalize(features, dim=1)):
            left_out.append(side.label(layer))
        else:
            names.append(side.label(layer))
            tables.append(metric.prepare(features))
    if not tables:
        raise UserError(expected="a layer that tells samples apart", found="the same row everywhere", where=side.where)
    return names, tables, left_out


def _advice(names: tuple[str, str], found: LayerPairs, says: str) -> str:
    score, last = says.format(float(found.score[found.best])), says.format(float(found.score[-1, -1]))
    pair = f"image layer {names[0]} and text layer {names[1]}"
    tested = f"more than shuffled pairings reach (p = {found.best_p_value:.3f}, the choice among all pairs counted in)"
    if found.best_p_value > SIGNIFICANT:
        return (
            f"No pair of layers stands out from shuffled pairs (p = {found.best_p_value:.2f}): {found.rows} images are "
            f"too few to choose by, or images and captions do not match; {pair} is the best guess."
        )
    if found.best == (found.score.shape[0] - 1, found.score.shape[1] - 1):
        return f"The last layers are the best pair: {pair}, {score}, {tested}."
    return (
        f"Use {pair}: {score}, {tested}. The last layers have {last.removesuffix(COMMON)}; whether that is less is not "
        "tested."
    )


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
    seed: int = 1,
    recipe: Recipe | None = None,
    progress: Progress = silent,
) -> LayerCheck:
    """Train a linear projector on pairs of layers of all scores, and correlate score with validation recall.

    Args:
        image_store: Image store.
        text_store: Text store of the same data set.
        scores: Scores of these stores, as `layers` gives them for the same splits.
        pairs: How many pairs, evenly spread over the ranking, the best, the worst and the last layers among them.
        split: The training split; without a split `val`, the images that `align` carves out of it are left out.
        seed: Draws training images where there are more than 2000, and the initial projectors.
        recipe: How to train; plain InfoNCE by default.
        progress: Is told how many pairs are done.

    Raises:
        UserError: A store cannot be used, or fewer than four pairs are asked for or there.
    """
    chosen, recipe = spread(scores, pairs), recipe or make_recipe("info_nce")
    sides, splits = _open(image_store, text_store, split)
    training = splits.train.take(subset(sides[0], splits.train, min(CHECKED_IMAGES, len(splits.train)), seed))
    checked = []
    for i, j in chosen:
        names = scores.image_layers[i], scores.text_layers[j]
        recall = _trained_recall(sides, names, (training, splits.validation), recipe, seed)
        checked.append(
            CheckedPair(image_layer=names[0], text_layer=names[1], score=scores.calibrated[i][j], recall=recall)
        )
        progress(Update(what="pairs of layers checked", done=len(checked), total=len(chosen)))
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


def _trained_recall(
    sides: tuple[Side, Side], names: tuple[str, str], parts: tuple[PairSet, PairSet], recipe: Recipe, seed: int
) -> float:
    """Return the mean validation recall after training on one pair of layers; parts: training, validation."""
    layers = (LayerRef(0, names[0]),), (LayerRef(0, names[1]),)
    data, validation = (PairFeatures.read(sides, layers, part, torch.device("cpu")) for part in parts)
    initial = initial_projectors(data, validation, recipe, seed)
    return selection_score(train(data, validation, recipe, initial, seed=seed).validation)


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
