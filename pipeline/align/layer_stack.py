"""Which layers to concatenate: grown one by one.

Used by `pipeline.align.layer_choice` for `--layers grow`. A layer is kept if ridge CCA on training images
then finds more of the validation images. A stack of layers is a mean of their Gram matrices, so a trial costs one small
eigendecomposition, however wide the layers are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pipeline.align.layer_spread import WIDEST, one_row_an_image
from pipeline.align.pairs import PairSet
from pipeline.errors import UserError
from pipeline.metrics.arrays import is_constant
from pipeline.projectors.base import unit_rows
from pipeline.store.side import LayerRef, Side

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
    search = _Search(sides)
    base = search.score(start)
    others = [
        (side, layer)
        for side in (0, 1)
        if growing[side]
        for layer in range(len(sides[side]))
        if layer not in start[side]
    ]
    gains = {other: search.score(_with(start, *other)) - base for other in others}
    stack, best = start, base
    for side, layer in sorted(gains, key=lambda other: (-gains[other], other)):
        trial = _with(stack, side, layer)
        if gains[side, layer] < gain or len(trial[side]) > most or _width(sides[side], trial[side]) > widest:
            continue
        score = search.score(trial)
        if score >= best + gain:
            stack, best = trial, score
    return Growth(stack=stack, score=best, base=base, trials=dict(search.scores))


def _width(layers: Sequence[LayerGram], chosen: tuple[int, ...]) -> int:
    return sum(layers[position].width for position in chosen)


def _with(stack: Stack, side: int, layer: int) -> Stack:
    grown = tuple(sorted((*stack[side], layer)))
    return (grown, stack[1]) if side == 0 else (stack[0], grown)


class _Search:
    """Scores stacks; the axes of a side's stack are computed once."""

    def __init__(self, sides: tuple[Sequence[LayerGram], Sequence[LayerGram]]) -> None:
        self.sides = sides
        self.known: dict[tuple[int, tuple[int, ...]], _Axes] = {}
        self.scores: dict[Stack, float] = {}

    def score(self, stack: Stack) -> float:
        """Return the mean recall of a stack."""
        if stack not in self.scores:
            image, text = self._axes(0, stack[0]), self._axes(1, stack[1])
            self.scores[stack] = _mean_recall(image, text)
        return self.scores[stack]

    def _axes(self, side: int, layers: tuple[int, ...]) -> _Axes:
        if (side, layers) not in self.known:
            self.known[side, layers] = _whitened([self.sides[side][layer] for layer in layers], RIDGES[side])
        return self.known[side, layers]


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


@dataclass(frozen=True, kw_only=True)
class GrownLayers:
    """The layers of both sides, and a sentence about them."""

    image: tuple[LayerRef, ...]
    """Image layers, in the order of the stores and of depth."""
    text: tuple[LayerRef, ...]
    """Text layers."""
    sentence: str
    """What was found."""


def grow_layers(
    sides: tuple[Side, Side],
    start: tuple[tuple[LayerRef, ...], tuple[LayerRef, ...]],
    growing: tuple[bool, bool],
    train: PairSet,
    validation: PairSet,
) -> GrownLayers:
    """Grow the stacks of stores on a sample of the training images, judged by validation images.

    A caption row is the mean of an image's captions. Layers whose rows are all the same are passed over.

    Args:
        sides: Image and text side.
        start: The layers that each side starts from.
        growing: Which sides may get more layers.
        train: Training pairs.
        validation: Validation pairs.

    Raises:
        UserError: Fewer than three training or two validation images, or a layer that is not finite.
    """
    if len(train) < 3 or len(validation) < 2:
        found = f"{len(train)} and {len(validation)}"
        raise UserError(expected="3 training and 2 validation images to grow a stack of layers", found=found)
    some = np.sort(np.random.default_rng(0).permutation(len(train))[:ROWS])
    parts = train.take(some), validation.take(np.arange(min(VALIDATION, len(validation))))
    layers: list[list[LayerRef]] = []
    grams: list[list[LayerGram]] = []
    for side, first, may_grow in zip(sides, start, growing, strict=True):
        refs, found_grams = _grams(side, first, may_grow, parts)
        layers.append(refs)
        grams.append(found_grams)
    first_image, first_text = (
        tuple(refs.index(layer) for layer in chosen) for refs, chosen in zip(layers, start, strict=True)
    )
    found_stack = grow((grams[0], grams[1]), (first_image, first_text), growing)
    image, text = (
        tuple(refs[position] for position in chosen) for refs, chosen in zip(layers, found_stack.stack, strict=True)
    )
    names = [
        " + ".join(side.label(layer) for layer in chosen) for side, chosen in zip(sides, (image, text), strict=True)
    ]
    sentence = (
        f"Stacked {names[0]} with {names[1]}: CCA on {len(parts[0])} training images reaches a mean recall of "
        f"{found_stack.score:.3f} on validation, {found_stack.base:.3f} before "
        f"({len(found_stack.trials)} stacks tried)."
    )
    return GrownLayers(image=image, text=text, sentence=sentence)


def _grams(
    side: Side, start: tuple[LayerRef, ...], growing: bool, parts: tuple[PairSet, PairSet]
) -> tuple[list[LayerRef], list[LayerGram]]:
    refs: list[LayerRef] = []
    grams: list[LayerGram] = []
    for layer in side.layers() if growing else start:
        train, validation = (one_row_an_image(side, layer, part) for part in parts)
        if layer in start or not is_constant(unit_rows(train)):
            refs.append(layer)
            grams.append(LayerGram.of(train, validation))
    return refs, grams
