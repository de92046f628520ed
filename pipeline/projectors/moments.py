"""The second moments of image-caption pairs, in the coordinates in which every closed form is short.

`PairStatistics.of(image, text, text_image)` takes them once; `closed_form` then needs neither the features nor another
eigendecomposition. An image with five captions counts as five pairs, but its row is never repeated.

The dense algebra is here too (`gram`, `eigh`). On a CPU numpy and scipy do it, on any other device torch: numpy knows
that XᵀX is symmetric (half the work), and LAPACK finds a few of many eigenvectors without the others (half again), for
neither of which torch has a call. The number of threads is torch's own, so that runs side by side give the digits of a
run alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import UserError

_BLOCK = 8192


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Mean and covariance of one side, as principal axes: C = V diag(values) Vᵀ."""

    mean: Tensor
    """μ, float64 [D]."""
    vectors: Tensor
    """V, float64 [D, R], R ≤ min(D, rows − 1) axes with variance, the largest first."""
    values: Tensor
    """Variances along them, float64 [R], all positive."""
    mean_variance: float
    """trace(C) / D: what a ridge strength is measured in."""


@dataclass(frozen=True)
class Links:
    """Which text is paired with which image, and how much that counts.

    Args:
        text: Row of a text of each of L links, int64 [L].
        image: Row of an image of each.
        weight: Weights, 0 or more, not all 0 [L].
    """

    text: Tensor
    image: Tensor
    weight: Tensor


@dataclass(frozen=True, kw_only=True)
class PairStatistics:
    """All that the closed forms need of P pairs."""

    image: Spectrum
    """Image side, each image weighted by the number of its captions."""
    text: Spectrum
    """Text side."""
    cross: Tensor
    """V_imageᵀ C_image,text V_text, float64 [R_image, R_text]."""
    pairs: int
    """P."""
    images: int
    """Images that have a caption."""

    @classmethod
    def of(cls, image: Tensor, text: Tensor, text_image: Tensor | None = None) -> "PairStatistics":
        """Take the moments (divided by P, not P − 1) of image rows [N, D] and text rows [P, E].

        Args:
            image: N images, each once.
            text: P captions.
            text_image: Row of the image of each caption [P]; 0..P−1 where not given.

        Raises:
            UserError: Fewer than two images, non-finite or constant features, or an index that is out of range.
        """
        owner = cls.owner(image, text, text_image)
        links = Links(torch.arange(len(text), device=text.device), owner, text.new_ones(len(text)))
        return cls.weighted(image, text, links)

    @classmethod
    def weighted(cls, image: Tensor, text: Tensor, links: "Links") -> "PairStatistics":
        """Take the moments of L weighted links between image rows [N, D] and text rows [P, E], divided by their sum.

        A row counts as often as the weights of its links say; one without any counts nowhere.

        Raises:
            UserError: Fewer than two rows, non-finite or constant features.
        """
        _check_features(image, text)
        weight = links.weight.double()
        total = weight.sum()
        counts, said = (
            torch.zeros(len(rows), dtype=torch.float64, device=image.device).index_add_(0, at, weight)
            for rows, at in ((image, links.image), (text, links.text))
        )
        image_side = _spectrum(image, counts / total, "image")
        text_side = _spectrum(text, said / total, "text")
        summed = torch.zeros(len(image), text.shape[1], dtype=torch.float64, device=image.device)
        for start in range(0, len(weight), _BLOCK):
            part = slice(start, start + _BLOCK)
            block = (text[links.text[part]].double() - text_side.mean) * weight[part, None]
            summed.index_add_(0, links.image[part], block)
        cross = _cross(image, image_side, summed, text_side)
        described = int((counts > 0).sum())
        return cls(image=image_side, text=text_side, cross=cross / total, pairs=len(weight), images=described)

    @staticmethod
    def owner(image: Tensor, text: Tensor, text_image: Tensor | None = None) -> Tensor:
        """Return the image row of each caption, int64 [P], after checking both sides' features.

        Raises:
            UserError: As `of`.
        """
        _check_features(image, text)
        owner = torch.arange(len(text), device=text.device) if text_image is None else text_image.long()
        if owner.shape != (len(text),) or int(owner.min()) < 0 or int(owner.max()) >= len(image):
            raise UserError(
                expected=f"for each of {len(text)} captions the row of its image, 0 to {len(image) - 1}",
                found=f"{len(owner)} rows from {int(owner.min())} to {int(owner.max())}",
            )
        return owner


def _cross(image: Tensor, image_side: Spectrum, summed: Tensor, text_side: Spectrum) -> Tensor:
    """Return V_imageᵀ Σ_i x_i s_iᵀ V_text for image rows x [N, D] and the sums s [N, E] of their captions.

    The captions are many, so they are summed an image before anything is multiplied.
    """
    few = len(image) <= image.shape[1]
    total = torch.zeros(0, dtype=torch.float64, device=image.device)
    for start in range(0, len(image), _BLOCK):
        block = image[start : start + _BLOCK].double() - image_side.mean
        texts = summed[start : start + _BLOCK]
        if few:
            block, texts = block @ image_side.vectors, texts @ text_side.vectors
        part = block.T @ texts
        total = part if start == 0 else total.add_(part)
    return total if few else image_side.vectors.T @ total @ text_side.vectors


def _check_features(image: Tensor, text: Tensor) -> None:
    for side, features in (("image", image), ("text", text)):
        if features.ndim != 2 or len(features) < 2:
            raise UserError(expected=f"{side} features [N, D] of two rows at least", found=f"{list(features.shape)}")
        if not torch.isfinite(features).all():
            raise UserError(expected=f"finite {side} features", found="NaN or infinity")


def _spectrum(features: Tensor, weights: Tensor, side: str) -> Spectrum:
    mean = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
    for start in range(0, len(features), _BLOCK):
        mean += weights[start : start + _BLOCK] @ features[start : start + _BLOCK].double()
    wide = features.shape[1] > len(features)
    values, vectors, trace = (_by_rows if wide else _by_columns)(features, mean, weights)
    scale = float((mean**2).sum()) + trace
    if trace <= 1e-14 * scale or trace == 0:
        raise UserError(
            expected=f"{side} features that vary between rows",
            found="the same row everywhere",
            remedy="choose another layer",
        )
    kept = values > 1e-12 * values.max()
    order = torch.argsort(values[kept], descending=True)
    return Spectrum(
        mean=mean,
        vectors=vectors[:, kept][:, order],
        values=values[kept][order],
        mean_variance=trace / features.shape[1],
    )


def _by_columns(features: Tensor, mean: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, float]:
    """Eigendecompose the covariance [D, D]."""
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=features.device)
    for start in range(0, len(features), _BLOCK):
        block = features[start : start + _BLOCK].double() - mean
        covariance += gram(block.mul_(weights[start : start + _BLOCK, None].sqrt()))
    values, vectors = eigh(covariance)
    return values, vectors, float(covariance.trace())


def _by_rows(features: Tensor, mean: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, float]:
    """Eigendecompose the Gram matrix [N, N] instead, where there are fewer rows than columns."""
    scaled = (features.double() - mean) * weights.sqrt()[:, None]
    between = gram(scaled.T)
    values, left = eigh(between)
    vectors = scaled.T @ left / values.clamp_min(1e-300).sqrt()
    return values, vectors, float(between.trace())


def gram(rows: Tensor) -> Tensor:
    """Return XᵀX, float64 [D, D], of X [N, D]."""
    if rows.device.type != "cpu":
        return rows.T @ rows
    array = rows.numpy()
    with _threads():
        return torch.from_numpy(array.T @ array)


def eigh(matrix: Tensor, largest: int | None = None) -> tuple[Tensor, Tensor]:
    """Return eigenvalues [K], ascending, and eigenvectors [D, K] of a symmetric matrix [D, D].

    Args:
        matrix: float64.
        largest: How many, the largest ones; all where not given.
    """
    size = len(matrix)
    count = size if largest is None else min(largest, size)
    if matrix.device.type != "cpu":
        values, vectors = torch.linalg.eigh(matrix)
        return values[size - count :], vectors[:, size - count :]
    from scipy.linalg import eigh as lapack

    some = {} if count == size else {"driver": "evr", "subset_by_index": [size - count, size - 1]}
    with _threads():
        values, vectors = lapack(matrix.numpy(), check_finite=False, **({"driver": "evd"} | some))
    return torch.from_numpy(values), torch.from_numpy(vectors)


@contextmanager
def _threads() -> Iterator[None]:
    from threadpoolctl import threadpool_limits

    with threadpool_limits(torch.get_num_threads(), user_api="blas"):
        yield
