"""From features to a pair of projectors without training, by name.

`fit_closed_form("cca", image, text, text_image, d=256, ridges=(0.3, 1, 3), score=...)` gives both projectors and says
which ridge was chosen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UnknownNameError, UserError
from pipeline.projectors.asif import AsifProjector
from pipeline.projectors.base import Projector
from pipeline.projectors.closed_form.maps import AffinePair, cca, partial_least_squares, procrustes, ridge_regression
from pipeline.projectors.closed_form.statistics import PairStatistics
from pipeline.projectors.input import unit_rows
from pipeline.projectors.linear import AffineProjector

Score = Callable[[Projector, Projector], float]
CLOSED_FORMS: dict[str, Callable[..., AffinePair]] = {
    "cca": cca,
    "procrustes": procrustes,
    "ridge": ridge_regression,
    "pls": partial_least_squares,
}
WITH_RIDGE = ("cca", "ridge")
NAMES = (*CLOSED_FORMS, "asif")


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """What both projectors do to raw features first (see `InputNormalisation`)."""

    normalise_input: str = "none"
    """`none`, `unit` or `standardise`."""
    image_blocks: Sequence[int] | None = None
    """Widths of the image side's concatenated layers."""
    text_blocks: Sequence[int] | None = None
    """Widths of the text side's concatenated layers."""


@dataclass(frozen=True, kw_only=True)
class ClosedFormFit:
    """A fitted pair of projectors and how it came about."""

    image: Projector
    """Projector of the image side."""
    text: Projector
    """Projector of the text side."""
    ridge: float | None = None
    """The ridge strength that was chosen."""
    scores: dict[float, float] = field(default_factory=dict)
    """Ridge strength → validation score, where a grid was searched."""
    strengths: Tensor | None = None
    """What each dimension carries (canonical correlations for CCA)."""


def fit_closed_form(
    name: str,
    image: Tensor,
    text: Tensor,
    text_image: Tensor | None = None,
    *,
    d: int | None = None,
    ridges: Sequence[float] = (1.0,),
    score: Score | None = None,
    climb: bool = False,
    inputs: InputOptions | None = None,
    options: Mapping[str, Any] | None = None,
) -> ClosedFormFit:
    """Fit a closed form on raw features: image rows [N, D] once each, caption rows [P, E], and whose caption each is.

    Args:
        name: `cca`, `procrustes`, `ridge`, `pls` or `asif`.
        image: N images' features.
        text: P captions' features.
        text_image: Row of the image of each caption; 0..P−1 where not given.
        d: Width of the shared space at most; `asif` has as many dimensions as anchors.
        ridges: Ridge strengths to choose from (`cca` and `ridge`); one decomposition serves them all.
        score: Validation score of a pair of projectors, higher is better; needed where there are several ridges.
        climb: Start in the middle of `ridges` and go on to the better neighbour while the score rises, instead of
            trying all.
        inputs: What is done to raw features first.
        options: Further arguments of the closed form, such as `power`, `whiten`, `direction`, `top_k`, `exponent`.

    Raises:
        UnknownNameError: No such closed form.
        UserError: Features that cannot be fitted, or several ridges without a score.
    """
    inputs, extra = inputs or InputOptions(), dict(options or {})
    if name == "asif":
        return _fit_asif(image, text, text_image, inputs, extra)
    if name not in CLOSED_FORMS:
        raise UnknownNameError("closed form", name, NAMES)
    image_input = _input_only(image, inputs.normalise_input, inputs.image_blocks)
    text_input = _input_only(text, inputs.normalise_input, inputs.text_blocks)
    statistics = PairStatistics.of(image_input.prepare(image), text_input.prepare(text), text_image)
    if name not in WITH_RIDGE:
        pair = _solve(name, statistics, d, extra)
        return _as_fit(pair, statistics, image_input, text_input)

    def candidate(ridge: float) -> ClosedFormFit:
        pair = _solve(name, statistics, d, {**extra, "ridge": ridge})
        return _as_fit(pair, statistics, image_input, text_input, ridge)

    return _choose(candidate, sorted(set(ridges)) if climb else ridges, score, climb)


def _choose(
    candidate: Callable[[float], ClosedFormFit], ridges: Sequence[float], score: Score | None, climb: bool
) -> ClosedFormFit:
    if len(ridges) == 1:
        return candidate(ridges[0])
    if not ridges or score is None:
        raise UserError(expected="one ridge strength, or several and a score", found=f"{list(ridges)} and no score")
    fits: dict[float, ClosedFormFit] = {}
    scores: dict[float, float] = {}

    def tried(ridge: float) -> float:
        if ridge not in scores:
            fits[ridge] = candidate(ridge)
            scores[ridge] = score(fits[ridge].image, fits[ridge].text)
            for worse in [known for known in fits if scores[known] < max(scores.values())]:
                del fits[worse]
        return scores[ridge]

    best = _climb(tried, ridges) if climb else max(ridges, key=tried)
    chosen = fits[best]
    return replace(chosen, ridge=float(best), scores={float(ridge): value for ridge, value in scores.items()})


def _climb(tried: Callable[[float], float], ridges: Sequence[float]) -> float:
    """Return the best ridge on the way up from the middle of an ascending list; the larger one is looked at first."""
    best = len(ridges) // 2
    for step in (1, -1):
        moved = False
        while 0 <= best + step < len(ridges) and tried(ridges[best + step]) > tried(ridges[best]):
            best, moved = best + step, True
        if moved:
            break
    return ridges[best]


def _solve(name: str, statistics: PairStatistics, d: int | None, options: dict[str, Any]) -> AffinePair:
    try:
        return CLOSED_FORMS[name](statistics, d, **options)
    except TypeError as error:
        raise UserError(expected=f"options of the closed form {name}", found=str(error)) from error


def _input_only(features: Tensor, mode: str, blocks: Sequence[int] | None) -> AffineProjector:
    """Return a projector whose input statistics are taken and whose map is not filled yet."""
    if features.ndim != 2 or not torch.isfinite(features).all():
        raise UserError(expected="finite features [N, D]", found=f"shape {list(features.shape)}, or NaN or infinity")
    projector = AffineProjector(features.shape[1], 1, normalise_input=mode, blocks=blocks).to(features.device)
    projector.fit_input(features)
    return projector


def _as_fit(
    pair: AffinePair,
    statistics: PairStatistics,
    image_input: AffineProjector,
    text_input: AffineProjector,
    ridge: float | None = None,
) -> ClosedFormFit:
    return ClosedFormFit(
        image=_filled(image_input, statistics.image.mean, pair.image_matrix, pair.weights),
        text=_filled(text_input, statistics.text.mean, pair.text_matrix, pair.weights),
        ridge=ridge,
        strengths=pair.strengths,
    )


def _filled(template: AffineProjector, mean: Tensor, matrix: Tensor, weights: Tensor) -> AffineProjector:
    settings = {**template.settings(), "d": matrix.shape[1]}
    projector = AffineProjector(**settings).to(matrix.device)
    projector.input.load_state_dict(template.input.state_dict())
    projector.start_from(mean, matrix, weights)
    return projector.eval()


def _fit_asif(
    image: Tensor, text: Tensor, text_image: Tensor | None, inputs: InputOptions, options: dict[str, Any]
) -> ClosedFormFit:
    """Anchors are the images and, for each, the mean of its captions' directions."""
    owner = PairStatistics.owner(image, text, text_image)
    counts = torch.bincount(owner, minlength=len(image))
    described = (counts > 0).nonzero().squeeze(1)
    if len(text) > len(described):
        directions = unit_rows(text)
        summed = directions.new_zeros(len(image), text.shape[1]).index_add_(0, owner, directions)
        text = summed[described] / counts[described, None]
    else:
        text = text[torch.argsort(owner)]
    image = image[described]
    sides = (image, inputs.image_blocks), (text, inputs.text_blocks)
    try:
        made = [
            AsifProjector(x.shape[1], len(x), normalise_input=inputs.normalise_input, blocks=blocks, **options)
            for x, blocks in sides
        ]
    except TypeError as error:
        raise UserError(expected="options of the closed form asif", found=str(error)) from error
    filled = [projector.to(x.device).fill(x).eval() for projector, (x, _) in zip(made, sides, strict=True)]
    return ClosedFormFit(image=filled[0], text=filled[1])
