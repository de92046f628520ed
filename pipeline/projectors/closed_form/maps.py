"""The closed forms themselves: second moments in, two affine maps out.

Each function is pure, in float64, and cheap next to `PairStatistics.of`, so a grid of ridge strengths costs one small
singular value decomposition a point.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.errors import UnknownNameError, UserError
from pipeline.projectors.closed_form.decompositions import eigh, gram
from pipeline.projectors.closed_form.statistics import PairStatistics, Spectrum


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
