"""Which layers to align: what `--layers` means.

    chosen = choose_layers((image, text), train_pairs, validation_pairs, config)

`pair` and `stack` follow the scores of all pairs of layers (`pipeline.align.layer_scores`); `spread` takes layers from
an encoder's first to its last; `grow` adds layers one by one and keeps one if ridge CCA on training images then finds
more of the validation images. A stack of layers is a mean of their Gram matrices, so that a trial costs one small
eigendecomposition, however wide the layers are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.align.config import AlignConfig
from pipeline.align.layer_scores import LayerScores, score_layers
from pipeline.align.pairs import Layers, PairSet, one_row_an_image
from pipeline.errors import UserError
from pipeline.layers import LayerRef, select_layers
from pipeline.metrics.retrieval import is_constant
from pipeline.progress import Progress, say, silent
from pipeline.projectors.base import unit_rows
from pipeline.store.views import Side

SPREAD = 3
"""Layers of a store that `spread` takes at most."""
WIDEST = 2048
"""Columns of a stack at most (a single layer may be wider): a closed form's time grows with their cube."""
FEW = 64
"""Training images that tell whether a layer is constant."""
ROWS = 500
"""Training images that take part in the search; what they choose holds for thousands too."""
VALIDATION = 1000
"""Validation images that judge: with 500 the choice still depends on which ones."""
RANK = 300
"""Principal components of a side that take part."""
RIDGES = (10.0, 3.0)
"""Ridge strength of images and of captions; right for hundreds of pairs, which is what the search sees."""
GAIN = 0.002
"""Mean recall that a layer has to add."""
MOST = 4
"""Layers of a side at most, those that it starts from not counted above."""
CUTS = (1, 5, 10)
Stack = tuple[tuple[int, ...], tuple[int, ...]]
"""Positions of image layers, positions of text layers, ascending."""


@dataclass(frozen=True)
class ChosenLayers:
    """The layers that a run concatenates, each side, and the scores that chose them (None where they were named)."""

    image: tuple[LayerRef, ...]
    text: tuple[LayerRef, ...]
    scores: LayerScores | None = None


def choose_layers(
    sides: tuple[Side, Side],
    train: PairSet,
    validation: PairSet,
    config: AlignConfig,
    *,
    known: LayerScores | None = None,
    progress: Progress = silent,
) -> ChosenLayers:
    """Return the layers that `config.layer_expression` means.

    Args:
        sides: Image and text side.
        train: Training pairs.
        validation: Validation pairs; `grow` alone looks at them.
        config: `layers`, `layer_metric` and `stack`.
        known: Scores of the same stores and pairs from an earlier run.
        progress: Gets the advice.

    Raises:
        UserError: The expression means nothing, or the scores cannot be computed.
        UnknownNameError: No such layer.
    """
    expression = config.layer_expression
    if expression in ("pair", "stack"):
        scores = known or score_layers(*sides, train, seed=config.seeds[0], metric=config.layer_metric)
        say(progress, scores.advice)
        table = np.array(scores.calibrated) + 1e-6 * np.array(scores.score)
        count = 1 if expression == "pair" else config.stack
        image = _best(sides[0], scores.image_layers, table.max(axis=1), count)
        return ChosenLayers(image, _best(sides[1], scores.text_layers, table.max(axis=0), count), scores)
    parts = [expression] * 2 if expression in ("last", "grow", "spread") else expression.split(",")
    if len(parts) != 2:
        raise UserError(
            expected="auto, pair, stack, last, grow, spread, or an image layer and a text layer such as 11,last",
            found=repr(expression),
            where="--layers",
        )
    named = _named(sides[0], parts[0], train), _named(sides[1], parts[1], train)
    growing = parts[0].strip() == "grow", parts[1].strip() == "grow"
    return ChosenLayers(*(_grown(sides, named, growing, train, validation, progress) if any(growing) else named))


def label(side: Side, layers: Sequence[LayerRef]) -> str:
    """Return the names of layers that are concatenated, for people."""
    return " + ".join(side.label(layer) for layer in layers)


def _best(side: Side, names: Sequence[str], scores: Any, count: int) -> tuple[LayerRef, ...]:
    """Return the `count` best layers of each store, in order of depth."""
    score_of = dict(zip(names, scores, strict=True))
    chosen: list[LayerRef] = []
    for index in range(len(side.stores)):
        own = [layer for layer in side.layers() if layer.store == index and side.label(layer) in score_of]
        best = sorted(own, key=lambda layer: (-score_of[side.label(layer)], -own.index(layer)))[:count]
        chosen += sorted(best, key=own.index)
    return tuple(chosen)


def _named(side: Side, expression: str, pairs: PairSet) -> tuple[LayerRef, ...]:
    """Return the layers of each store that an expression means; `grow` starts from the last that is not constant."""
    if expression.strip() in ("spread", "grow"):
        return spread_layers(side, pairs, SPREAD if expression.strip() == "spread" else 1)
    return tuple(
        LayerRef(index, name)
        for index, store in enumerate(side.stores)
        for name in select_layers(expression, [layer.name for layer in store.layers])
    )


def spread_layers(side: Side, train: PairSet, count: int = SPREAD, *, widest: int = WIDEST) -> tuple[LayerRef, ...]:
    """Return layers of each store, evenly spread from the first to the last; constant layers do not count.

    Args:
        side: The stores.
        train: Training pairs; a few of them tell constant layers.
        count: Layers of a store at most.
        widest: Columns of a store's layers at most; the last layer is taken however wide it is.

    Raises:
        UserError: A store whose layers are all constant.
    """
    few = train.take(np.arange(min(FEW, len(train))))
    chosen: list[LayerRef] = []
    for index, store in enumerate(side.stores):
        own = [layer for layer in side.layers() if layer.store == index]
        telling = [layer for layer in own if not is_constant(unit_rows(one_row_an_image(side, layer, few)))]
        if not telling:
            raise UserError(
                expected="a layer that tells samples apart", found="the same row everywhere", where=str(store.root)
            )
        fitting = [places for number in range(count, 1, -1) if (places := _spread(telling, number, side, widest))]
        chosen += fitting[0] if fitting else telling[-1:]
    return tuple(chosen)


def _spread(layers: list[LayerRef], count: int, side: Side, widest: int) -> list[LayerRef]:
    """Return `count` layers from the first to the last, none where there are not so many or they are too wide."""
    if count > len(layers):
        return []
    places = np.linspace(0, len(layers) - 1, count).astype(int)
    found = [layers[place] for place in places]
    return found if sum(side.widths(found)) <= widest else []


@dataclass(frozen=True)
class LayerGram:
    """A layer as inner products of its unit rows, centred by the N training rows.

    Args:
        train: [N, N].
        validation: Validation rows against training rows, [M, N].
        width: D.
    """

    train: Tensor
    validation: Tensor
    width: int

    @classmethod
    def of(cls, train: Tensor, validation: Tensor) -> "LayerGram":
        """Take the inner products of training rows [N, D] and of validation rows [M, D] with them."""
        rows = unit_rows(train)
        mean = rows.mean(dim=0)
        rows = rows - mean
        return cls(rows @ rows.T, (unit_rows(validation) - mean) @ rows.T, train.shape[1])


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The stack that was grown and what each trial scored."""

    stack: Stack
    """What was chosen."""
    score: float
    """Mean recall of the chosen stack on validation images."""
    base: float
    """Mean recall of the stack that it started from."""
    trials: dict[Stack, float] = field(default_factory=dict)
    """Every stack that was tried and its mean recall."""


def _grown(
    sides: tuple[Side, Side],
    start: Layers,
    growing: tuple[bool, bool],
    train: PairSet,
    validation: PairSet,
    progress: Progress,
) -> Layers:
    """Grow the stacks of stores on a sample of the training images, judged by validation images.

    Layers whose rows are all the same are passed over.

    Raises:
        UserError: Fewer than three training or two validation images, or a layer that is not finite.
    """
    if len(train) < 3 or len(validation) < 2:
        found = f"{len(train)} and {len(validation)}"
        raise UserError(expected="at least 3 training and 2 validation images to grow a stack of layers", found=found)
    some = np.sort(np.random.default_rng(0).permutation(len(train))[:ROWS])
    parts = train.take(some), validation.take(np.arange(min(VALIDATION, len(validation))))
    image, text = (
        _grams(side, side.layers() if may_grow else first, first, parts)
        for side, first, may_grow in zip(sides, start, growing, strict=True)
    )
    names, grams = (list(image), list(text)), (list(image.values()), list(text.values()))
    base = tuple(map(names[0].index, start[0])), tuple(map(names[1].index, start[1]))
    growth = grow(grams, base, growing)
    images, texts = (
        tuple(own[position] for position in chosen) for own, chosen in zip(names, growth.stack, strict=True)
    )
    say(
        progress,
        f"Stacked {label(sides[0], images)} with {label(sides[1], texts)}: CCA on {len(parts[0])} training images "
        f"reaches a mean recall of {growth.score:.3f} on validation, {growth.base:.3f} before "
        f"({len(growth.trials)} stacks tried).",
    )
    return images, texts


def _grams(
    side: Side, layers: Sequence[LayerRef], kept: Sequence[LayerRef], parts: tuple[PairSet, PairSet]
) -> dict[LayerRef, LayerGram]:
    """Return the layers that tell samples apart, and those that are kept in any case."""
    grams: dict[LayerRef, LayerGram] = {}
    for layer in layers:
        train, validation = (one_row_an_image(side, layer, part) for part in parts)
        if layer in kept or not is_constant(unit_rows(train)):
            grams[layer] = LayerGram.of(train, validation)
    return grams


@dataclass(frozen=True)
class _Axes:
    """One side's stack in its principal axes: variances [R], training and validation coordinates [N, R], [M, R]."""

    train: Tensor
    validation: Tensor


def grow(
    sides: tuple[Sequence[LayerGram], Sequence[LayerGram]],
    start: Stack,
    growing: tuple[bool, bool] = (True, True),
    *,
    most: int = MOST,
    gain: float = GAIN,
    widest: int = WIDEST,
) -> Growth:
    """Add to a stack what helps, the most helpful first.

    Every other layer is tried once on top of the start; in the order of what it added there, it is tried again on top
    of what has been kept so far, and kept if the mean recall rises by `gain`.

    Args:
        sides: Image layers and text layers in order of depth; row i of both sides is the same image.
        start: Layers that are kept in any case, one of each side at least.
        growing: Which sides may get more.
        most: Layers of a growing side at most.
        gain: Mean recall that a layer has to add.
        widest: Columns of a growing side at most.
    """
    axes = cache(lambda side, layers: _whitened([sides[side][layer] for layer in layers], RIDGES[side]))
    trials: dict[Stack, float] = {}

    def score(stack: Stack) -> float:
        if stack not in trials:
            trials[stack] = _mean_recall(axes(0, stack[0]), axes(1, stack[1]))
        return trials[stack]

    best = base = score(start)
    others = [(side, layer) for side in (0, 1) if growing[side] for layer in range(len(sides[side]))]
    others = [(side, layer) for side, layer in others if layer not in start[side]]
    gains = {(side, layer): score(_with(start, side, layer)) - base for side, layer in others}
    stack = start
    for side, layer in sorted(gains, key=lambda other: (-gains[other], other)):
        trial = _with(stack, side, layer)
        width = sum(sides[side][position].width for position in trial[side])
        if gains[side, layer] >= gain and len(trial[side]) <= most and width <= widest and score(trial) >= best + gain:
            stack, best = trial, score(trial)
    return Growth(stack=stack, score=best, base=base, trials=trials)


def _with(stack: Stack, side: int, layer: int) -> Stack:
    grown = tuple(sorted((*stack[side], layer)))
    return (grown, stack[1]) if side == 0 else (stack[0], grown)


def _whitened(layers: Sequence[LayerGram], ridge: float) -> _Axes:
    """Return a stack's coordinates along its first principal axes, each divided by √(variance + ridge)."""
    gram = torch.stack([layer.train for layer in layers]).mean(dim=0)
    cross = torch.stack([layer.validation for layer in layers]).mean(dim=0)
    count = len(gram)
    values, vectors = torch.linalg.eigh(gram / count)
    kept = values > 1e-6 * values[-1].clamp_min(1e-30)
    values, vectors = values[kept][-RANK:], vectors[:, kept][:, -RANK:]
    mean_variance = float(gram.diagonal().sum()) / count / sum(layer.width for layer in layers)
    scale = (values + ridge * mean_variance).rsqrt()
    return _Axes(vectors * ((values * count).sqrt() * scale), cross @ vectors * (scale / (values * count).sqrt()))


def _mean_recall(image: _Axes, text: _Axes) -> float:
    """Return the recall of validation pairs under CCA, averaged over both directions and the cut-offs."""
    left, correlations, right = torch.linalg.svd(image.train.T @ text.train / len(image.train), full_matrices=False)
    weights = correlations.clamp(0.0, 1.0).sqrt()
    images, texts = (unit_rows(a @ b * weights) for a, b in ((image.validation, left), (text.validation, right.T)))
    scores = images @ texts.T
    match = scores.diagonal()
    ranks = torch.cat([(scores >= match[:, None]).sum(dim=1), (scores >= match[None]).sum(dim=0)])
    return sum(float((ranks <= cut).double().mean()) for cut in CUTS) / len(CUTS)
