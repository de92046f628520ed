"""Projectors without training: from the pairs' second moments straight to a pair of projectors, in float64.

`fit_closed_form("cca", image, text, text_image, d=256, ridges=(0.3, 1, 3), score=...)` gives both projectors and says
which ridge was chosen. Each closed form is a pure function of the moments and cheap next to `PairStatistics.of`, so a
grid of ridge strengths costs one small singular value decomposition a point.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.errors import UnknownNameError, UserError
from pipeline.projectors.asif import fit_asif
from pipeline.projectors.base import AffineProjector, Inputs, Projector
from pipeline.projectors.moments import Links, PairStatistics, Spectrum, eigh, gram


@dataclass(frozen=True, kw_only=True)
class AffinePair:
    """x → (x − mean) W · weights on both sides; the similarity is the dot product of the two."""

    image_matrix: Tensor
    """float64 [D, d]."""
    text_matrix: Tensor
    """float64 [E, d]."""
    weights: Tensor
    """float64 [d], the same on both sides."""
    strengths: Tensor
    """What each dimension carries, float64 [d]: canonical correlations, covariances, or ones."""


def cca(
    statistics: PairStatistics,
    d: int | None = None,
    *,
    ridge: float = 1.0,
    power: float = 0.5,
    text_ratio: float | None = 1.0,
) -> AffinePair:
    """Canonical correlation analysis with a ridge; similarity Σ ρ_k a_k b_k (as in CSA, arXiv 2410.07610).

    Both covariances get ridge · mean(diag C) on the diagonal, that of the texts `text_ratio` times as much;
    K = C_xx^-½ C_xy C_yy^-½ = A diag(ρ) Bᵀ; the maps are C_xx^-½ A and C_yy^-½ B. ρ are the canonical correlations
    (shrunk by the ridge).

    Args:
        statistics: Moments of the pairs.
        d: Directions kept; all with a correlation where not given, fewer where there are not so many.
        ridge: Strength, 0 or more; about 1 for thousands of pairs, 3 for hundreds.
        power: Each side is weighted by ρ^power: ½ gives Σ ρ a b, 0 leaves the directions equal.
        text_ratio: The texts' ridge over the images'. None is √(images / captions): the more rows, the better their
            covariance is known, and its error falls with their square root.

    Raises:
        UserError: A negative ridge, power or ratio, or d below 1.
    """
    if text_ratio is None:
        text_ratio = (statistics.images / statistics.pairs) ** 0.5
    _check(d, ridge=ridge, power=power, text_ratio=text_ratio)
    image_scale = _inverse_root(statistics.image, ridge)
    text_scale = _inverse_root(statistics.text, ridge * text_ratio)
    left, correlations, right = _svd(image_scale[:, None] * statistics.cross * text_scale, d)
    return AffinePair(
        image_matrix=(statistics.image.vectors * image_scale) @ left,
        text_matrix=(statistics.text.vectors * text_scale) @ right,
        weights=correlations.clamp(0.0, 1.0) ** power,
        strengths=correlations,
    )


def partial_least_squares(statistics: PairStatistics, d: int | None = None, *, power: float = 0.0) -> AffinePair:
    """Directions of greatest covariance: the singular vectors of C_xy (PLS-SVD), weighted by covariance^power.

    Raises:
        UserError: A negative power or d below 1.
    """
    _check(d, power=power)
    left, covariances, right = _svd(statistics.cross, d)
    return AffinePair(
        image_matrix=statistics.image.vectors @ left,
        text_matrix=statistics.text.vectors @ right,
        weights=(covariances / covariances[0].clamp_min(1e-300)) ** power,
        strengths=covariances,
    )


def procrustes(statistics: PairStatistics, d: int | None = None, *, whiten: bool = False) -> AffinePair:
    """Rotate the images' first d principal components onto the texts': R = argmin ‖X V_x R − Y V_y‖_F, RᵀR = I.

    Args:
        statistics: Moments of the pairs.
        d: Principal components kept of each side; as many as both have where not given.
        whiten: Divide each component by its standard deviation first.

    Raises:
        UserError: d below 1.
    """
    _check(d)
    kept = min(len(statistics.image.values), len(statistics.text.values), d or len(statistics.text.values))
    image_axes, text_axes = _axes(statistics.image, kept, whiten), _axes(statistics.text, kept, whiten)
    cross = image_axes.T @ (statistics.image.vectors @ statistics.cross @ statistics.text.vectors.T) @ text_axes
    left, _, right = _svd(cross, None)
    return AffinePair(
        image_matrix=image_axes @ (left @ right.T),
        text_matrix=text_axes,
        weights=torch.ones(kept, dtype=torch.float64, device=cross.device),
        strengths=torch.ones(kept, dtype=torch.float64, device=cross.device),
    )


def ridge_regression(
    statistics: PairStatistics,
    d: int | None = None,
    *,
    ridge: float = 1.0,
    direction: Literal["text_to_image", "image_to_text"] = "text_to_image",
) -> AffinePair:
    """Predict the centred features of one side from the other's: B = (C_ss + ridge · mean(diag C_ss) I)⁻¹ C_st.

    The shared space is the target's own: all its variable directions, or its first d principal components.

    Args:
        statistics: Moments of the pairs.
        d: Principal components of the target kept; all where not given.
        ridge: Strength, 0 or more.
        direction: Which side is predicted.

    Raises:
        UserError: A negative ridge or d below 1.
        UnknownNameError: No such direction.
    """
    _check(d, ridge=ridge)
    if direction not in ("text_to_image", "image_to_text"):
        raise UnknownNameError("direction", str(direction), ("text_to_image", "image_to_text"))
    from_text = direction == "text_to_image"
    source, target = (statistics.text, statistics.image) if from_text else (statistics.image, statistics.text)
    cross = statistics.cross.T if from_text else statistics.cross
    kept = min(len(target.values), d or len(target.values))
    predictor = (source.vectors * _inverse_root(source, ridge) ** 2) @ cross[:, :kept]
    axes = target.vectors[:, :kept]
    ones = torch.ones(kept, dtype=torch.float64, device=axes.device)
    image_matrix, text_matrix = (axes, predictor) if from_text else (predictor, axes)
    return AffinePair(image_matrix=image_matrix, text_matrix=text_matrix, weights=ones, strengths=ones)


def _check(d: int | None, **not_negative: float) -> None:
    if d is not None and d < 1:
        raise UserError(expected="d of 1 or more", found=repr(d))
    for name, value in not_negative.items():
        if not 0 <= value < float("inf"):
            raise UserError(expected=f"{name} of 0 or more", found=repr(value))


def _inverse_root(side: Spectrum, ridge: float) -> Tensor:
    return (side.values + ridge * side.mean_variance).rsqrt()


def _axes(side: Spectrum, kept: int, whiten: bool) -> Tensor:
    axes = side.vectors[:, :kept]
    return axes / side.values[:kept].sqrt() if whiten else axes


def _svd(matrix: Tensor, d: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first d singular triplets; few of many come from the smaller Gram matrix, in a quarter of the time."""
    small = min(matrix.shape)
    kept = min(small, d or small)
    if 2 * kept <= small:
        found = _by_gram(matrix, kept) if matrix.shape[0] >= matrix.shape[1] else None
        if found is None and matrix.shape[0] < matrix.shape[1]:
            turned = _by_gram(matrix.T, kept)
            found = None if turned is None else (turned[2], turned[1], turned[0])
        if found is not None:
            return found
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :kept], values[:kept], right[:kept].T


def _by_gram(tall: Tensor, kept: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the first singular triplets of a tall matrix, or None where squaring would cost more than 8 digits."""
    squares, vectors = eigh(gram(tall), kept)
    squares, right = squares.flip(0), vectors.flip(1)
    if not bool(squares[-1] > 1e-8 * squares[0]):
        return None
    values = squares.sqrt()
    return tall @ right / values, values, right


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


def fit_closed_form(
    name: str,
    image: Tensor,
    text: Tensor,
    partners: Tensor | Links | None = None,
    *,
    d: int | None = None,
    ridges: Sequence[float] = (1.0,),
    score: Score | None = None,
    climb: bool = False,
    inputs: tuple[Inputs, Inputs] = ({}, {}),
    options: Mapping[str, Any] | None = None,
) -> ClosedFormFit:
    """Fit a closed form on raw features: image rows [N, D] once each, caption rows [P, E], and whose caption each is.

    Args:
        name: `cca`, `procrustes`, `ridge`, `pls` or `asif`.
        image: N images' features.
        text: P captions' features.
        partners: Row of the image of each caption (0..P−1 where not given), or weighted pairs of rows (not for `asif`).
        d: Width of the shared space at most; `asif` has as many dimensions as anchors.
        ridges: Ridge strengths to choose from (`cca` and `ridge`); one decomposition serves them all.
        score: Validation score of a pair of projectors, higher is better; needed where there are several ridges.
        climb: Start in the middle of `ridges` and go on to the better neighbour while the score rises, instead of
            trying all.
        inputs: What is done to raw features first, of images and of texts (see `Projector`).
        options: Further arguments of the closed form, such as `power`, `whiten`, `direction`, `top_k`, `exponent`.

    Raises:
        UnknownNameError: No such closed form.
        UserError: Features that cannot be fitted, or several ridges without a score.
    """
    extra = dict(options or {})
    if name == "asif":
        owner = None if isinstance(partners, Links) else partners
        pair = fit_asif(image, text, owner, inputs=inputs, options=extra)
        return ClosedFormFit(image=pair[0], text=pair[1])
    if name not in CLOSED_FORMS:
        raise UnknownNameError("closed form", name, NAMES)
    image_input, text_input = _input_only(image, inputs[0]), _input_only(text, inputs[1])
    prepared = image_input.prepare(image), text_input.prepare(text)
    if isinstance(partners, Links):
        statistics = PairStatistics.weighted(*prepared, partners)
    else:
        statistics = PairStatistics.of(*prepared, partners)

    def candidate(ridge: float | None) -> ClosedFormFit:
        pair = _solve(name, statistics, d, extra if ridge is None else {**extra, "ridge": ridge})
        return ClosedFormFit(
            image=_filled(image_input, statistics.image.mean, pair.image_matrix, pair.weights),
            text=_filled(text_input, statistics.text.mean, pair.text_matrix, pair.weights),
            ridge=ridge,
        )

    if name not in WITH_RIDGE:
        return candidate(None)
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


def _input_only(features: Tensor, inputs: Inputs) -> AffineProjector:
    """Return a projector whose input statistics are taken and whose map is not filled yet."""
    if features.ndim != 2 or not torch.isfinite(features).all():
        raise UserError(expected="finite features [N, D]", found=f"shape {list(features.shape)}, or NaN or infinity")
    projector = AffineProjector(features.shape[1], 1, **inputs).to(features.device)
    projector.fit_input(features)
    return projector


def _filled(template: AffineProjector, mean: Tensor, matrix: Tensor, weights: Tensor) -> AffineProjector:
    projector = AffineProjector(**{**template.settings(), "d": matrix.shape[1]}).to(matrix.device)
    projector.input.load_state_dict(template.input.state_dict())
    projector.fill(mean, matrix, weights)
    return projector.eval()
