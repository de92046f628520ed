"""Bootstrap intervals over queries, and paired differences between two runs on the same queries.

Percentile intervals from a seeded generator. Captions of one image are not independent: give `groups` and whole images
are drawn instead of captions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.metrics.arrays import check_count

Values = NDArray[np.floating] | NDArray[np.integer] | NDArray[np.bool_]
_DRAWN = 4_000_000  # draws held at once


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its percentile interval."""

    mean: float
    """Mean over the queries."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
    level: float
    """Share of resamples inside."""


@dataclass(frozen=True, kw_only=True)
class PairedDifference(Interval):
    """Mean of b − a, its interval, and how often chance would put it on the other side."""

    p_value: float
    """Two-sided: 2 · min(share of resamples ≤ 0, share ≥ 0), each with one added, at most 1."""


def bootstrap_interval(
    value_Q: Values,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    groups: Values | None = None,
) -> Interval:
    """Return the mean of per-query values (such as rank ≤ k) with its percentile interval.

    Args:
        value_Q: One number a query.
        level: Share of resamples inside the interval.
        resamples: Number of resamples.
        seed: Seed of the generator.
        groups: Group of each query [Q]; whole groups are drawn.

    Raises:
        UserError: No queries, non-finite values, or a setting out of range.
    """
    values = _checked(value_Q)
    means = _resampled_means(values, groups, resamples, seed)
    low, high = _ends(means, level)
    return Interval(mean=float(values.mean()), low=low, high=high, level=level)


def paired_difference(
    a_Q: Values,
    b_Q: Values,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    groups: Values | None = None,
) -> PairedDifference:
    """Return the mean of b − a over the same queries, drawn together, with interval and p-value.

    Raises:
        UserError: Different numbers of queries, or as `bootstrap_interval`.
    """
    a, b = _checked(a_Q), _checked(b_Q)
    if len(a) != len(b):
        raise UserError(
            expected=f"the same queries in both runs ({len(a)})",
            found=f"{len(b)} in the second",
            remedy="evaluate both runs on the same split of the same data set",
        )
    means = _resampled_means(b - a, groups, resamples, seed)
    low, high = _ends(means, level)
    rarer = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p_value = min(1.0, 2 * (1 + rarer) / (1 + len(means)))
    return PairedDifference(mean=float((b - a).mean()), low=low, high=high, level=level, p_value=p_value)


def _resampled_means(
    values: NDArray[np.float64], groups: Values | None, resamples: int, seed: int
) -> NDArray[np.float64]:
    check_count(resamples, "resamples", low=1, high=10_000_000)
    sums: NDArray[np.float64] = values
    sizes = np.ones(len(values))
    if groups is not None:
        if len(groups) != len(values):
            raise UserError(expected=f"a group for each of {len(values)} queries", found=str(len(groups)))
        _, member = np.unique(groups, return_inverse=True)
        sums = np.bincount(member, values).astype(np.float64)
        sizes = np.bincount(member).astype(np.float64)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    at_once = max(1, _DRAWN // len(sums))
    for start in range(0, resamples, at_once):
        drawn = generator.integers(0, len(sums), size=(min(at_once, resamples - start), len(sums)), dtype=np.int32)
        means[start : start + len(drawn)] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return means


def _ends(means: NDArray[np.float64], level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise UserError(expected="a level between 0 and 1", found=repr(level))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked(values: Values) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise UserError(expected="values [Q] of one query at least", found=f"shape {list(array.shape)}")
    if not np.isfinite(array).all():
        raise UserError(expected="finite values", found="NaN or infinity")
    return array
