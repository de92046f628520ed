"""Which layers to align: every image layer against every text layer, on training pairs alone.

Run by `pipeline layers IMAGE_STORE TEXT_STORE` (`layers`) and by `pipeline.align.run` for `--layers`
(`layer_spread` and `layer_stack` have what needs no scores of pairs).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.align.config import AlignConfig
from pipeline.align.layer_spread import one_row_an_image, spread_layers
from pipeline.align.layer_stack import grow_layers
from pipeline.align.pairs import PairSet, split_pairs
from pipeline.errors import UnknownNameError, UserError
from pipeline.layers import select_layers
from pipeline.metrics.arrays import is_constant
from pipeline.metrics.layer_pairs import LayerPairs, compare_layers, compare_layers_by_cka, nearest_neighbours
from pipeline.progress import Progress, say, silent
from pipeline.store.side import LayerRef, Side

SIGNIFICANT = 0.05
COMMON = " of neighbours in common"


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
    """A score in words."""


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
    """P-value of the best pair, with the choice among all pairs paid for."""
    left_out: list[str] = field(default_factory=list)
    """Layers whose rows are all the same: nobody has neighbours there."""
    advice: str = ""
    """What the scores say, in a sentence."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data."""
        return {**asdict(self), "chosen": list(self.chosen)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "LayerScores":
        """Rebuild a record; fields that this version does not know are passed over."""
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        return cls(**{**known, "chosen": tuple(known["chosen"])})


def layers(
    image_store: Path,
    text_store: Path,
    *,
    split: str = "train",
    validation_split: str = "val",
    seed: int = 1,
    metric: str = "mutual_knn",
) -> LayerScores:
    """Score every pair of layers of two stores on up to 5000 training images, the ones that `align` would choose by.

    Args:
        image_store: Image store.
        text_store: Text store of the same data set.
        split: The training split.
        validation_split: The validation split; where there is none, the images that `align` carves out are left out.
        seed: Draws the images where there are more.
        metric: mutual_knn, or cka (on up to 1000 images).

    Raises:
        UserError: A store cannot be used, or there are too few pairs.
        UnknownNameError: No such metric.
    """
    config = AlignConfig(
        image=(image_store,),
        text=(text_store,),
        out=Path(),
        train_split=split,
        validation_split=validation_split,
        layer_metric=metric,
    )
    image, text = Side.open("image", config.image), Side.open("text", config.text)
    pairs = split_pairs(image, text, config, silent).train
    return score_layers(image, text, pairs, seed=seed, metric=metric)


def score_layers(
    image: Side, text: Side, pairs: PairSet, *, seed: int = 0, permutations: int = 200, metric: str = "mutual_knn"
) -> LayerScores:
    """Score every pair of layers on training pairs. A caption row is the mean of an image's captions.

    Args:
        image: The image side.
        text: The text side.
        pairs: Training pairs; never validation or test pairs.
        seed: Draws `MAX_ROWS` images where there are more, and the shuffles of the null.
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
    return _record(metric, found, image_layers, text_layers, left_out + more_left_out)


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


def _record(
    metric: str, found: LayerPairs, image_layers: list[str], text_layers: list[str], left_out: list[str]
) -> LayerScores:
    best = found.best
    names = (image_layers[best[0]], text_layers[best[1]])
    return LayerScores(
        metric=metric,
        k=found.k,
        rows=found.rows,
        image_layers=image_layers,
        text_layers=text_layers,
        score=found.score.tolist(),
        calibrated=found.calibrated.tolist(),
        p_value=found.p_value.tolist(),
        chosen=best,
        chosen_p_value=found.best_p_value,
        left_out=left_out,
        advice=_advice(names, found, METRICS[metric].says),
    )


def _advice(names: tuple[str, str], found: LayerPairs, says: str) -> str:
    score, last = says.format(float(found.score[found.best])), says.format(float(found.score[-1, -1]))
    pair = f"image layer {names[0]} and text layer {names[1]}"
    if found.best_p_value > SIGNIFICANT:
        return (
            f"No pair of layers stands out from shuffled pairs (p = {found.best_p_value:.2f}): {found.rows} images are "
            f"too few to choose by, or images and captions do not match; {pair} is the best guess."
        )
    if found.best == (found.score.shape[0] - 1, found.score.shape[1] - 1):
        return f"The last layers are the best pair: {pair}, {score} (p = {found.best_p_value:.3f})."
    return (
        f"Use {pair}: {score} against {last.removesuffix(COMMON)} for the last layers (p = {found.best_p_value:.3f})."
    )


@dataclass(frozen=True)
class ChosenLayers:
    """The layers that a run concatenates, each side, and the scores that chose them (None where they were named)."""

    image: tuple[LayerRef, ...]
    text: tuple[LayerRef, ...]
    scores: LayerScores | None


def choose_layers(
    image: Side,
    text: Side,
    pairs: PairSet,
    config: AlignConfig,
    progress: Progress,
    known: LayerScores | None = None,
    validation: PairSet | None = None,
) -> ChosenLayers:
    """Return the layers that `config.layer_expression` means.

    Args:
        image: The image side.
        text: The text side.
        pairs: Training pairs.
        config: `layers`, `layer_metric` and `stack`.
        progress: Gets the advice.
        known: Scores of the same stores and pairs from an earlier run.
        validation: Validation pairs; `grow` alone needs them.

    Raises:
        UserError: The expression means nothing, or the scores cannot be computed.
        UnknownNameError: No such layer.
    """
    expression = config.layer_expression
    if expression in ("pair", "stack"):
        scores = known or score_layers(image, text, pairs, seed=config.seeds[0], metric=config.layer_metric)
        say(progress, scores.advice)
        table = np.array(scores.calibrated) + 1e-6 * np.array(scores.score)
        count = 1 if expression == "pair" else config.stack
        return ChosenLayers(
            _best(image, scores.image_layers, table.max(axis=1), count),
            _best(text, scores.text_layers, table.max(axis=0), count),
            scores,
        )
    parts = [expression] * 2 if expression in ("last", "grow", "spread") else expression.split(",")
    if len(parts) != 2:
        raise UserError(
            expected="auto, pair, stack, last, grow, spread, or an image layer and a text layer such as 11,last",
            found=repr(expression),
            where="--layers",
        )
    images, texts = _named(image, parts[0], pairs), _named(text, parts[1], pairs)
    growing = (parts[0].strip() == "grow", parts[1].strip() == "grow")
    if any(growing) and validation is not None:
        grown = grow_layers((image, text), (images, texts), growing, pairs, validation)
        say(progress, grown.sentence)
        images, texts = grown.image, grown.text
    return ChosenLayers(images, texts, None)


def _named(side: Side, expression: str, pairs: PairSet) -> tuple[LayerRef, ...]:
    """Return the layers of each store that an expression means; `grow` starts from the last that is not constant."""
    if expression.strip() == "spread":
        return spread_layers(side, pairs)
    if expression.strip() == "grow":
        return spread_layers(side, pairs, 1)
    return tuple(
        LayerRef(index, name)
        for index, store in enumerate(side.stores)
        for name in select_layers(expression, [layer.name for layer in store.layers])
    )


def _best(side: Side, names: Sequence[str], scores: Any, count: int) -> tuple[LayerRef, ...]:
    """Return the `count` best layers of each store, in order of depth."""
    score_of = dict(zip(names, scores, strict=True))
    chosen: list[LayerRef] = []
    for index in range(len(side.stores)):
        own = [layer for layer in side.layers() if layer.store == index and side.label(layer) in score_of]
        best = sorted(own, key=lambda layer: (-score_of[side.label(layer)], -own.index(layer)))[:count]
        chosen += sorted(best, key=own.index)
    return tuple(chosen)
