"""The numbers that ranks turn into: recall@k both ways, acc1, acc5, mean_per_class_recall.

Names are CLIP_benchmark's. Every one is a ratio of sums over images (or the mean of such ratios over classes), so that
one bootstrap serves all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.queries import IMAGE_RETRIEVAL, TEXT_RETRIEVAL, ZERO_SHOT, QueryRanks

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of a direction: the share of queries with rank ≤ k, or the mean of that share over classes."""

    name: str
    """Key in metrics.json."""
    direction: str
    """Whose ranks it counts."""
    k: int
    """Cut-off."""
    macro: bool = False
    """Mean over classes instead of over queries."""


def measures_of(direction: str, ks: Sequence[int], classes: int = 0) -> list[Measure]:
    """Return the measures of a direction; acc5 only where there are five classes or more."""
    if direction in (IMAGE_RETRIEVAL, TEXT_RETRIEVAL):
        return [Measure(name=f"{direction}_recall@{k}", direction=direction, k=k) for k in sorted(set(ks))]
    prefix = f"{direction.removeprefix(ZERO_SHOT + ':')}/" if direction != ZERO_SHOT else ""
    found = [Measure(name=f"{prefix}acc1", direction=direction, k=1)]
    if classes >= 5:
        found.append(Measure(name=f"{prefix}acc5", direction=direction, k=5))
    return [*found, Measure(name=f"{prefix}mean_per_class_recall", direction=direction, k=1, macro=True)]


def value_by_seed(measure: Measure, queries: QueryRanks) -> Floats:
    """Return the measure for each seed [S]."""
    hits = queries.ranks <= measure.k
    if not measure.macro:
        return np.asarray(hits.mean(1), dtype=np.float64)
    labels = np.asarray(queries.labels)
    by_class = [hits[:, labels == label].mean(1) for label in sorted(set(queries.labels))]
    return np.asarray(np.mean(by_class, axis=0), dtype=np.float64)


def sums_by_cluster(
    measure: Measure, queries: QueryRanks, clusters: NDArray[np.int64], count: int
) -> tuple[Floats, Floats]:
    """Return hits (mean over seeds) and queries, summed over each cluster.

    Args:
        measure: What is counted.
        queries: Q ranks of S seeds.
        clusters: [Q] position of each query's image among M images.
        count: M.

    Returns:
        hits [M, K] and queries [M, K]; K is 1, or the number of classes of a macro measure.
    """
    hits = (queries.ranks <= measure.k).mean(0)
    columns, width = np.zeros(len(hits), dtype=np.int64), 1
    if measure.macro:
        names, columns = np.unique(np.asarray(queries.labels), return_inverse=True)
        width = len(names)
    numerator, denominator = np.zeros((count, width)), np.zeros((count, width))
    np.add.at(numerator, (clusters, columns), hits)
    np.add.at(denominator, (clusters, columns), 1.0)
    return numerator, denominator


def chance_level(measure: Measure, *, images: int, captions: NDArray[np.int64], classes: int) -> float:
    """Return what random embeddings reach on average.

    Args:
        measure: What is counted.
        images: M images in the gallery.
        captions: [M] number of captions of each image.
        classes: C classes.
    """
    if measure.direction == IMAGE_RETRIEVAL:
        return min(1.0, measure.k / images)
    if measure.direction != TEXT_RETRIEVAL:
        return min(1.0, measure.k / max(classes, 1))
    total = int(captions.sum())
    missed = np.ones(len(captions))
    for drawn in range(min(measure.k, total)):
        missed *= np.clip(total - captions - drawn, 0, None) / (total - drawn)
    return float(1 - missed.mean())
