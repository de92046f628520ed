"""How much of what exact search finds an index finds, and the least effort that finds enough of it."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError
from pipeline.indexes.index import Index, build_index, order_ties

SURE = 1.645
"""Standard errors that the measured recall must lie above the wanted one: 95 % sure on other queries."""
_QUERIES_AT_ONCE = 1024
_SAME = 1e-6


class Truth:
    """The K nearest rows of each query among all rows shown so far, by exact search.

    Args:
        queries: [Q, D].
        k: K; fewer where fewer rows were shown.

    Attributes:
        scores: [Q, K], best first.
        positions: [Q, K], those of equal scores rising.
    """

    def __init__(self, queries: Tensor, k: int) -> None:
        self.queries, self.k = queries, k
        self.scores, self.positions = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)

    def see(self, start: int, block: Tensor) -> None:
        """Take in rows [n, D] whose positions begin at `start`."""
        k = min(self.k, len(block))
        parts = [torch.topk(part @ block.T, k, dim=1) for part in torch.split(self.queries, _QUERIES_AT_ONCE)]
        self.merge(torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts]) + start)

    def merge(self, scores: Tensor, positions: Tensor) -> None:
        """Take in what exact search found among other rows, [Q, n] each."""
        found = order_ties(torch.cat([self.scores, scores], dim=1), torch.cat([self.positions, positions], dim=1))
        self.scores, self.positions = (each[:, : self.k] for each in found)

    def part(self, which: slice) -> "Truth":
        """Return the truth about some of the queries."""
        some = Truth(self.queries[which], self.k)
        some.merge(self.scores[which], self.positions[which])
        return some


def recalls(index: Index, truth: Truth) -> NDArray[np.float64]:
    """Return recall@K of each query [Q]: the share of its K nearest rows that the index finds.

    Where the index gives true scores, a row that scores the same as the last of the K counts as one of them.
    """
    k = truth.positions.shape[1]
    scores, found = index.search(truth.queries, k)
    if index.kind.true_scores:
        hits = ((scores >= truth.scores[:, -1:] - _SAME) & (found >= 0)).sum(dim=1)
    else:
        hits = (found[:, :, None] == truth.positions[:, None, :]).any(1).sum(dim=1)
    return (hits.double() / k).numpy()


def recall_against_exact(index: Index, gallery: Tensor, queries: Tensor, k: int = 10) -> float:
    """Return the share of the exact K nearest rows that an index finds, over all queries [Q, D]."""
    _, found = index.search(queries, k)
    _, truth = build_index(gallery, "torch").search(queries, k)
    return float((found[:, :, None] == truth[:, None, :]).any(1).double().mean())


def tune(index: Index, truth: Truth, wanted: float) -> bool:
    """Set the least effort, to a factor, whose recall is wanted or more, 95 % sure; the most where none is enough.

    Efforts are doubled until one is enough, so that the dear ones are not tried; then halved in between.

    Returns:
        Whether the wanted recall was reached.

    Raises:
        UserError: The wanted recall is not in (0, 1].
    """
    if not 0 < wanted <= 1:
        raise UserError(expected="a recall above 0 and at most 1", found=str(wanted), where="--recall")

    def enough(effort: int) -> bool:
        index.effort = effort
        found = recalls(index, truth)
        return float(found.mean()) - SURE * float(found.std()) / math.sqrt(max(1, len(found))) >= wanted

    too_little, chosen = 0, 0
    for effort in [*(2**power for power in range(32) if 2**power < index.most_effort), index.most_effort]:
        if index.kind.exact or enough(effort):
            chosen = effort
            break
        too_little = effort
    while chosen - too_little > max(1, chosen // 16):
        middle = (too_little + chosen) // 2
        too_little, chosen = (too_little, middle) if enough(middle) else (middle, chosen)
    index.effort = chosen or index.most_effort
    return index.kind.exact or bool(chosen)


def measure(index: Index, truth: Truth, asked: str, wanted: float) -> dict[str, Any]:
    """Tune an index on one half of the queries and return its recall on the other half, for its record.

    Args:
        index: The index.
        truth: What exact search finds.
        asked: What the queries are: captions or images.
        wanted: The recall that is wanted.
    """
    half = max(1, len(truth.queries) // 2)
    tuned_on = truth.part(slice(half))
    held = truth.part(slice(half, None)) if len(truth.queries) > 1 else truth
    reached = tune(index, tuned_on, wanted)
    return {
        "k": truth.positions.shape[1],
        "wanted": wanted,
        "recall": float(recalls(index, held).mean()),
        "queries": len(held.queries),
        "of": asked,
        "tuned_on": half,
        "recall_tuned": float(recalls(index, tuned_on).mean()),
        "reached": reached,
    }
