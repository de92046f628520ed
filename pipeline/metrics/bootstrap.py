"""Bootstrap over images: how far would a number move with other test images of the same kind?

drawn = Bootstrap(images=1000, samples=2000, seed=0).replicates([(hits_MK, queries_MK), …])
low, high = interval(drawn[0], 0.95, images=1000)

The captions of an image are no independent queries, so whole images are drawn. Every method is resampled with the same
draws: the difference of two methods is paired, query by query.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.retrieval import check_count

Floats = NDArray[np.float64]
BLOCK_FLOATS = 2**22
ALIKE = 1e-9
"""Replicates that differ by less are the same number, rounded."""


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """The draws: B samples of M images with replacement, the same whenever they are asked for.

    Raises:
        UserError: There is no image, or no sample.
    """

    images: int
    samples: int
    seed: int

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_count(self.images, "images to draw from", low=1, high=2**31)
        check_count(self.samples, "bootstrap samples", low=1, high=10_000_000)

    def weights(self) -> Iterator[Floats]:
        """Yield blocks [b, M] of how often each image was drawn; the blocks hold B rows in all."""
        generator = np.random.default_rng(self.seed)
        step = max(1, BLOCK_FLOATS // self.images)
        for start in range(0, self.samples, step):
            rows = min(step, self.samples - start)
            drawn = generator.integers(0, self.images, size=(rows, self.images))
            drawn += np.arange(rows)[:, None] * self.images
            yield np.bincount(drawn.ravel(), minlength=rows * self.images).reshape(rows, -1).astype(np.float64)

    def replicates(self, sums: list[tuple[Floats, Floats]]) -> Floats:
        """Return [n, B]: for each of n measures its value in every sample.

        Args:
            sums: n pairs of hits [M, K] and queries [M, K] of each image; K is 1, or C classes whose ratios are then
                averaged. A class that no drawn image belongs to is left out of that sample's mean.
        """
        bounds = np.cumsum([0, *(hits.shape[1] for hits, _ in sums)])
        hits, queries = (np.concatenate([pair[side] for pair in sums], axis=1) for side in (0, 1))
        blocks = []
        for weights in self.weights():
            with np.errstate(invalid="ignore"):
                ratios = (weights @ hits) / (weights @ queries)
            blocks.append([np.nanmean(ratios[:, a:b], axis=1) for a, b in pairwise(bounds)])
        return np.concatenate([np.stack(block) for block in blocks], axis=1)


def interval(replicates: Floats, confidence: float, images: int, least: float = 0.0) -> tuple[float, float]:
    """Return the interval of a number: the percentiles of its replicates [B].

    Where every image says the same, all replicates are equal and know nothing of what another image could say. Then the
    share of such images is at most Wilson's upper limit for 0 of M, z²/(M + z²), and each of them could move the number
    to an end of its range. For 0 % and 100 % that is Wilson's interval; for two runs that answer alike it is Tango's.

    Args:
        replicates: The number in B samples.
        confidence: Share of the samples inside.
        images: M images that were drawn from.
        least: The smallest value that is possible: 0, or −1 for a difference; the largest is 1.
    """
    if np.ptp(replicates) < ALIKE:
        value, square = float(replicates.mean()), NormalDist().inv_cdf((1 + confidence) / 2) ** 2
        other = square / (images + square)
        return value - other * (value - least), value + other * (1 - value)
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def p_value(differences: Floats, images: int) -> float:
    """Return the two-sided bootstrap p-value of differences [B] against zero.

    It is never below 1/(B+1), nor below 2^(1−M), which is what a sign test says where all M images agree.
    """
    count = len(differences)
    smaller = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, max(2 * (smaller + 1) / (count + 1), 0.5 ** min(images - 1, 1000)))
