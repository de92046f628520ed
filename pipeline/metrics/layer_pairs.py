"""All image layers against all text layers by mutual kNN, each score held against a permutation null.

Raw scores rise with width and depth, so each is also calibrated: the pairing is shuffled, the same shuffle for every
pair of layers, and the score is measured from what shuffled pairs reach. Source: arXiv 2602.14486.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics.arrays import check_count
from pipeline.metrics.neighbours import Neighbours, check_tables

Table = NDArray[np.float64]
_MOST_ROWS = 20_000  # the lookup table holds rows² whole numbers of 4 bytes


@dataclass(frozen=True, kw_only=True)
class LayerPairs:
    """Scores of A image layers against B text layers."""

    score: Table
    """Mutual kNN, [A, B] in 0..1."""
    calibrated: Table
    """max(0, (score − threshold) / (1 − threshold)), [A, B]: 0 is what chance reaches, 1 is the same neighbours."""
    p_value: Table
    """(1 + #{null ≥ score}) / (1 + P), [A, B]."""
    threshold: Table
    """The (1 − alpha) order statistic of the null and the score together, [A, B]."""
    null: Table
    """Scores of the P shuffled pairings, [P, A, B]."""
    k: int
    """Neighbours of a row."""
    rows: int
    """Items N."""

    @property
    def best(self) -> tuple[int, int]:
        """The pair with the highest calibrated score; among equals the highest score, then the deepest layers."""
        a, b = np.indices(self.score.shape).reshape(2, -1)
        order = np.lexsort((b, a, self.score.ravel(), self.calibrated.ravel()))
        return int(a[order[-1]]), int(b[order[-1]])

    @property
    def best_p_value(self) -> float:
        """P-value of the best score of all, against the best of all pairs in each shuffle: the choice is paid for."""
        reached = self.null.max(axis=(1, 2)) >= self.score.max()
        return float((1 + reached.sum()) / (1 + len(reached)))


def compare_layers(
    image: Sequence[Neighbours],
    text: Sequence[Neighbours],
    *,
    permutations: int = 200,
    alpha: float = 0.05,
    seed: int = 0,
) -> LayerPairs:
    """Score every image layer against every text layer, with a permutation null.

    Args:
        image: Neighbour tables [N, K] of the A image layers; row i of every table is the same pair.
        text: Neighbour tables [N, K] of the B text layers.
        permutations: Number P of shuffles; 0 for raw scores alone (then calibrated = score, p = 1).
        alpha: Level of the threshold.
        seed: Seed of the shuffles.

    Raises:
        UserError: Tables of different shapes, more than 20,000 rows, or P or alpha out of range.
    """
    rows, k = check_tables([*image, *text])
    check_count(permutations, "permutations", low=0, high=1_000_000)
    if not 0 < alpha < 1:
        raise UserError(expected="alpha between 0 and 1", found=repr(alpha))
    if rows > _MOST_ROWS or not image or not text:
        raise UserError(
            expected=f"at most {_MOST_ROWS} rows, and a layer on each side at least",
            found=f"{rows} rows, {len(image)} image and {len(text)} text layers",
            remedy="compare the layers on a sample of rows: 5,000 are plenty",
        )
    overlaps = list(_overlaps(image, text, permutations, seed))
    score, null = overlaps[0] / (rows * k), np.array(overlaps[1:]).reshape(permutations, len(image), len(text))
    null = null / (rows * k)
    threshold, p_value = _against_null(score, null, alpha)
    span = np.maximum(1.0 - threshold, 1e-12)
    calibrated = np.clip((score - threshold) / span, 0.0, 1.0)
    return LayerPairs(
        score=score, calibrated=calibrated, p_value=p_value, threshold=threshold, null=null, k=k, rows=rows
    )


def _against_null(score: Table, null: Table, alpha: float) -> tuple[Table, Table]:
    if len(null) == 0:
        return np.zeros_like(score), np.ones_like(score)
    together = np.sort(np.concatenate([score[None], null]), axis=0)
    place = min(max(math.ceil((1 - alpha) * len(together)) - 1, 0), len(together) - 1)
    return together[place], (1 + (null >= score).sum(axis=0)) / len(together)


def _overlaps(image: Sequence[Neighbours], text: Sequence[Neighbours], permutations: int, seed: int) -> Iterator[Table]:
    """Yield Σ_i |A_i ∩ B_i| of every pair of layers [A, B]: of the true pairing first, then of each shuffle.

    Only cells (i, j) where j is a neighbour of i in some layer matter. The cells of one side are looked up in a table
    of the other's, and one small matrix product over the common cells counts all pairs of layers at once.
    """
    rows = len(image[0])
    swapped = len(image) > len(text)
    few, many = (text, image) if swapped else (image, text)
    few_cells, few_layers = _cells(few)
    many_cells, many_layers = _cells(many)
    place = torch.zeros(rows * rows, dtype=torch.int32)
    place[many_cells] = torch.arange(1, len(many_cells) + 1, dtype=torch.int32)
    source, target = few_cells // rows, few_cells % rows
    generator = torch.Generator().manual_seed(seed)
    for number in range(permutations + 1):
        order = torch.randperm(rows, generator=generator) if number else torch.arange(rows)
        if swapped:  # text row order[i] is paired with image i, so text cells go back to their image's place
            order = torch.argsort(order)
        hits = place[order[source] * rows + order[target]]
        common = hits.nonzero().squeeze(1)
        counts = few_layers[common].float().T @ many_layers[hits[common].long() - 1].float()
        yield (counts.T if swapped else counts).double().numpy()


def _cells(tables: Sequence[Neighbours]) -> tuple[Tensor, Tensor]:
    """Return the flat positions i·N + j [C] of all neighbour pairs of any layer, rising, and who has them [C, L]."""
    rows, k = tables[0].shape
    start = torch.arange(rows).repeat_interleave(k) * rows
    flat = torch.stack([start + torch.from_numpy(table.reshape(-1).astype(np.int64)) for table in tables])
    cells, where = torch.unique(flat, return_inverse=True)
    member = torch.zeros(len(cells), len(tables), dtype=torch.uint8)
    for layer, position in enumerate(where):
        member[position, layer] = 1
    return cells, member
