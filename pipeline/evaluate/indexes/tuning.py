"""How much of what exact search finds an index finds, and the least effort that finds enough of it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError
from pipeline.evaluate.indexes.base import Index, order_ties
from pipeline.evaluate.indexes.faiss_index import FaissIndex

SURE = 1.645
"""Standard errors that the measured recall must lie above the wanted one: 95 % sure on other queries."""
_QUERIES_AT_ONCE = 1024
_SAME = 1e-6


@dataclass(frozen=True, kw_only=True)
class Queries:
    """What an index is asked."""

    vectors: Tensor
    """[Q, D]."""
    kind: str
    """captions or images."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What exact search finds."""

    queries: Tensor
    """[Q, D]."""
    positions: Tensor
    """[Q, K], best first."""
    scores: Tensor
    """[Q, K]."""

    def __getitem__(self, part: slice) -> "Truth":
        """Return the truth about some of the queries."""
        return Truth(queries=self.queries[part], positions=self.positions[part], scores=self.scores[part])


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What tuning came to."""

    effort: int
    """nprobe or efSearch; 0 for an exact kind."""
    recall: float
    """recall@k on the queries that it was tuned on."""
    reached: bool
    """Whether the wanted recall was reached, 95 % sure."""


class Nearest:
    """The K nearest rows of each query among all rows shown so far, by exact search.

    Args:
        queries: [Q, D].
        k: K; fewer where fewer rows were shown.
    """

    def __init__(self, queries: Tensor, k: int) -> None:
        self.queries, self.k = queries, k
        self._scores, self._positions = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)

    def see(self, start: int, block: Tensor) -> None:
        """Take in rows [n, D] whose positions begin at `start`."""
        k = min(self.k, len(block))
        parts = [torch.topk(part @ block.T, k, dim=1) for part in torch.split(self.queries, _QUERIES_AT_ONCE)]
        self.merge(torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts]) + start)

    def merge(self, scores: Tensor, positions: Tensor) -> None:
        """Take in what exact search found among other rows, [Q, n] each."""
        scores, positions = torch.cat([self._scores, scores], dim=1), torch.cat([self._positions, positions], dim=1)
        kept = torch.topk(scores, min(self.k, scores.shape[1]), dim=1)
        self._scores, self._positions = kept.values, positions.gather(1, kept.indices)

    def truth(self) -> Truth:
        """Return what was found, best first."""
        scores, positions = order_ties(self._scores, self._positions)
        return Truth(queries=self.queries, positions=positions, scores=scores)


def exact_neighbours(queries: Tensor, blocks: Iterable[tuple[int, Tensor]], k: int) -> Truth:
    """Return the K = k nearest rows of each query, the gallery seen block by block.

    Args:
        queries: [Q, D].
        blocks: (position of the first row, rows [n, D]) of each block.
        k: At most the number of rows.
    """
    nearest = Nearest(queries, k)
    for start, block in blocks:
        nearest.see(start, block)
    return nearest.truth()


def recalls(index: Index, truth: Truth) -> NDArray[np.float64]:
    """Return recall@K of each query [Q]: the share of its K nearest rows that the index finds.

    Where the index gives true scores, a row that scores the same as the last of the K counts as one of them.
    """
    k = truth.positions.shape[1]
    scores, found = index.search(truth.queries, k)
    if getattr(index, "true_scores", True):
        hits = ((scores >= truth.scores[:, -1:] - _SAME) & (found >= 0)).sum(dim=1)
    else:
        hits = (found[:, :, None] == truth.positions[:, None, :]).any(1).sum(dim=1)
    return (hits.double() / k).numpy()


def tune(index: FaissIndex, truth: Truth, wanted: float) -> Tuned:
    """Set the least effort, to a factor, whose recall is wanted or more, 95 % sure; the most where none is enough.

    Raises:
        UserError: The wanted recall is not in (0, 1].
    """
    if not 0 < wanted <= 1:
        raise UserError(expected="a recall above 0 and at most 1", found=str(wanted), where="--recall")
    if not index.effort_name:
        return Tuned(effort=0, recall=float(recalls(index, truth).mean()), reached=True)
    too_little, enough = 0, 0
    for effort in _doubling(index.most_effort):
        if _sure(index, truth, effort, wanted):
            enough = effort
            break
        too_little = effort
    while enough - too_little > max(1, enough // 16):
        middle = (too_little + enough) // 2
        too_little, enough = (too_little, middle) if _sure(index, truth, middle, wanted) else (middle, enough)
    chosen = enough or index.most_effort
    index.set_effort(chosen)
    return Tuned(effort=chosen, recall=float(recalls(index, truth).mean()), reached=bool(enough))


def _sure(index: FaissIndex, truth: Truth, effort: int, wanted: float) -> bool:
    index.set_effort(effort)
    found = recalls(index, truth)
    margin = SURE * float(found.std()) / math.sqrt(max(1, len(found)))
    return float(found.mean()) - margin >= wanted


def _doubling(most: int) -> list[int]:
    efforts = [2**power for power in range(max(1, most).bit_length()) if 2**power < most]
    return [*efforts, max(1, most)]
