"""Calibration: does a probability of 0.8 mean right in 80 of 100 cases? ECE, reliability, NLL, temperature scaling.

`confidences` takes embeddings of queries and of a gallery (classes or items) to what the others need; the scores exist
only in blocks. `TopProbabilities` watches the tiles of `retrieval.cross_ranks`: no score is computed twice.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics.retrieval import Array, check_count, matrix, positive_pairs

Values = NDArray[np.float64]
_BLOCK = 2**22  # scores at once: 16 MB
_CHUNK = 2048  # columns at once: a piece of a tile that stays in the cache


@dataclass(frozen=True, kw_only=True)
class Confidences:
    """Softmax probabilities of Q queries over a gallery, boiled down."""

    top: Values
    """Highest probability of each query [Q]."""
    correct: NDArray[np.bool_]
    """Whether a positive alone has it [Q]; a tie with a negative does not count."""
    match: Values
    """Probability of all its positives together [Q]."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """A reliability diagram of B bins; empty bins have count 0 and NaN means."""

    lower: Values
    """Lower edges [B]."""
    upper: Values
    """Upper edges [B]."""
    count: NDArray[np.int64]
    """Queries in each bin [B]."""
    confidence: Values
    """Mean confidence in each bin [B]."""
    accuracy: Values
    """Share of right ones in each bin [B]."""

    @property
    def error(self) -> float:
        """Expected calibration error Σ_b (n_b / N) |accuracy_b − confidence_b|."""
        held = self.count > 0
        gap = np.abs(self.accuracy[held] - self.confidence[held])
        return float((gap * self.count[held]).sum() / self.count.sum())


class TopProbabilities:
    """The highest softmax probability of every row and every column of [R, C] scores that are only ever seen in tiles.

    Kept are running maxima and sums of exp((score − maximum) / temperature) along both axes.
    Scores and exponentials are float32, sums are float64.

    Args:
        rows: Number R of rows.
        columns: Number C of columns.
        temperature: What scores are divided by; one for the rows' softmax, one for the columns', or one for both.

    Raises:
        UserError: The temperature is not positive.
    """

    def __init__(self, rows: int, columns: int, temperature: float | tuple[float, float]) -> None:
        self._temperature = temperature if isinstance(temperature, tuple) else (temperature, temperature)
        for each in self._temperature:
            _check_temperature(each)
        self._most = [torch.full((count,), -torch.inf) for count in (rows, columns)]
        self._sum = [torch.zeros(count, dtype=torch.float64) for count in (rows, columns)]

    def watch(self, scores: Tensor, rows: slice, columns: slice) -> None:
        """Take in a tile of scores, float32 [r, c], which is left as it is; each cell must come once."""
        for start in range(0, scores.shape[1], _CHUNK):
            piece = scores[:, start : start + _CHUNK]
            first = columns.start + start
            for axis, place in ((0, rows), (1, slice(first, first + piece.shape[1]))):
                self._add(piece, axis, place)

    @property
    def by_row(self) -> Values:
        """Highest probability of each row's softmax over the columns [R]."""
        return np.asarray(1.0 / self._sum[0].numpy())

    @property
    def by_column(self) -> Values:
        """Highest probability of each column's softmax over the rows [C]."""
        return np.asarray(1.0 / self._sum[1].numpy())

    def _add(self, piece: Tensor, axis: int, place: slice) -> None:
        before = self._most[axis][place]
        most = torch.maximum(before, piece.amax(dim=1 - axis).cpu())
        shift = most.to(piece.device).unsqueeze(1 - axis)
        sums = (piece - shift).div_(self._temperature[axis]).exp_().sum(dim=1 - axis)
        fade = ((before.double() - most.double()) / self._temperature[axis]).exp()
        self._sum[axis][place] = self._sum[axis][place] * fade + sums.cpu().double()
        self._most[axis][place] = most


def confidences(
    query_QD: Array, gallery_GD: Array, positives: Array, temperature: float, offsets: Array | None = None
) -> Confidences:
    """Return softmax(query · galleryᵀ / temperature), boiled down; positives and offsets as in `retrieval.ranks`.

    Raises:
        UserError: Non-finite or mismatched input, a query without a positive, or a temperature that is not positive.
    """
    queries = matrix(query_QD, "queries")
    gallery = matrix(gallery_GD, "gallery", width=queries.shape[1]).to(queries.device)
    _check_temperature(temperature)
    rows, columns = positive_pairs(len(queries), len(gallery), positives, offsets)
    step = max(1, _BLOCK // len(gallery))
    bounds = torch.searchsorted(rows, torch.arange(0, len(queries) + step, step)).tolist()
    parts = []
    for start, low, high in zip(range(0, len(queries), step), bounds[:-1], bounds[1:], strict=True):
        scores = queries[start : start + step] @ gallery.T
        who, what = (part[low:high].to(scores.device) for part in (rows - start, columns))
        parts.append(_boil_down(scores, who, what, temperature))
    top, match, correct = torch.cat(parts, dim=1).cpu().numpy()
    return Confidences(top=top, correct=correct > 0, match=match)


def reliability(confidence_Q: Array, correct_Q: Array, *, bins: int = 15) -> Reliability:
    """Bin confidences by cutting [0, 1] into B equal pieces [low, high), the last of which holds 1 as well.

    Source: arXiv 1706.04599.

    Raises:
        UserError: No queries, a confidence outside 0..1, different lengths, or no bins.
    """
    confidence, correct = _checked(confidence_Q, correct_Q)
    check_count(bins, "bins", low=1, high=1_000_000)
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.minimum(np.searchsorted(edges, confidence, side="right") - 1, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(place, confidence, minlength=bins) / count
        mean_accuracy = np.bincount(place, correct, minlength=bins) / count
    return Reliability(
        lower=edges[:-1], upper=edges[1:], count=count, confidence=mean_confidence, accuracy=mean_accuracy
    )


def fit_temperature(
    score_QG: Array, positives: Array, offsets: Array | None = None, *, low: float = 1e-4, high: float = 1e3
) -> float:
    """Return the temperature in low..high that minimises the NLL of softmax(scores / T) on *validation* queries.

    With one positive a query the NLL is convex in 1/T; the root of its derivative, Σ_q (E_p[s] − s_positive), is found
    in log T by Newton's steps, by halves where they would leave the bracket. With several, the likelihood is that of
    any of them, s_positive becomes E_p[s | positive], and the root is a minimum, though there might be another. Scores
    stay float32, in blocks; sums are float64. Source: arXiv 1706.04599.

    Args:
        score_QG: Scores of Q validation queries against G items.
        positives: The right item of each query [Q], or with `offsets` the right items, as in `retrieval.ranks`.
        offsets: [Q + 1], where each query's positives begin and end.
        low: Smallest temperature; the answer where every query is right (there is no minimum then).
        high: Largest temperature; the answer where the scores say nothing.

    Raises:
        UserError: Non-finite or mismatched input, or bounds that are not 0 < low < high.
    """
    scores = matrix(score_QG, "scores")
    rows, columns = (
        part.to(scores.device) for part in positive_pairs(len(scores), scores.shape[1], positives, offsets)
    )
    own = scores[rows, columns].double()
    _check_temperature(low)
    if not low < high < float("inf"):
        raise UserError(expected="bounds with low < high", found=f"{low} and {high}")
    bottom, top = float(np.log(low)), float(np.log(high))
    at = (bottom + top) / 2
    for _ in range(60):
        mean, variance = _expected_score(scores, float(np.exp(at)))
        matched, spread = _expected_positive(own, rows, len(scores), float(np.exp(at)))
        bottom, top = (at, top) if mean > matched else (bottom, at)
        step = (mean - matched) / max((variance - spread) * float(np.exp(-at)), 1e-300)
        at, before = (at + step if bottom < at + step < top else (bottom + top) / 2), at
        if abs(at - before) < 1e-7:
            break
    return float(np.exp(at))


def _expected_score(scores: Tensor, temperature: float) -> tuple[float, float]:
    """Return the mean over queries of E_p[s] and of Var_p[s], p = softmax(s / T)."""
    step = max(1, _BLOCK // scores.shape[1])
    mean = variance = 0.0
    for part in torch.split(scores, step):
        gap = part - part.amax(dim=1, keepdim=True)
        p = torch.softmax(gap / temperature, dim=1)
        first = (p * gap).sum(dim=1)
        spread = (p.mul_(gap.square())).sum(dim=1) - first.square()
        mean += float((first + part.amax(dim=1)).double().sum())
        variance += float(spread.double().sum())
    return mean / len(scores), variance / len(scores)


def _expected_positive(own: Tensor, rows: Tensor, queries: int, temperature: float) -> tuple[float, float]:
    """Return the mean over queries of E[s] and Var[s] under softmax(s / T) among each query's positives [P]."""
    if len(own) == queries:
        return float(own.mean()), 0.0
    zeros = own.new_zeros(queries)
    best = torch.full_like(zeros, -torch.inf).scatter_reduce_(0, rows, own, "amax")
    gap = own - best[rows]
    weight = (gap / temperature).exp()
    total = zeros.index_add(0, rows, weight)
    first = zeros.index_add(0, rows, weight * gap) / total
    spread = zeros.index_add(0, rows, weight * gap.square()) / total - first.square()
    return float((first + best).mean()), float(spread.mean())


def _boil_down(scores: Tensor, rows: Tensor, columns: Tensor, temperature: float) -> Tensor:
    """Return highest probability, probability of the positives, and whether a positive alone is highest: [3, q].

    Args:
        scores: [q, G] float32; overwritten.
        rows: Query of each positive, rising.
        columns: Gallery row of each positive.
        temperature: What scores are divided by.
    """
    most = scores.amax(dim=1)
    total = ((scores - most[:, None]) / temperature).exp_().sum(dim=1, dtype=torch.float64)
    own = scores[rows, columns]
    weight = ((own.double() - most.double()[rows]) / temperature).exp()
    match = torch.zeros_like(total).index_add_(0, rows, weight) / total
    best = torch.full_like(most, -torch.inf).scatter_reduce_(0, rows, own, "amax")
    scores[rows, columns] = -torch.inf
    return torch.stack([1 / total, match, (best > scores.amax(dim=1)).double()])


def _check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive and finite.

    Raises:
        UserError: It is not.
    """
    if not 0 < temperature < float("inf"):
        raise UserError(expected="a positive temperature", found=repr(temperature))


def _checked(confidence_Q: Array, correct_Q: Array) -> tuple[Values, Values]:
    confidence = np.asarray(torch.as_tensor(confidence_Q).double())
    correct = np.asarray(torch.as_tensor(correct_Q).double())
    if confidence.ndim != 1 or len(confidence) == 0 or confidence.shape != correct.shape:
        found = f"shapes {list(confidence.shape)} and {list(correct.shape)}"
        raise UserError(expected="as many confidences [Q] as outcomes [Q], one at least", found=found)
    inside = (confidence >= 0) & (confidence <= 1 + 1e-9)
    if not inside.all():
        raise UserError(expected="confidences between 0 and 1", found=repr(float(confidence[~inside][0])))
    if not np.isin(correct, (0.0, 1.0)).all():
        raise UserError(expected="outcomes that are right (1) or wrong (0)", found="other numbers")
    return np.minimum(confidence, 1.0), correct
