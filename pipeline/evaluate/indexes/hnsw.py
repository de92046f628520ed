"""Neighbour graph (`IndexHNSWFlat`): slow to build, fast to ask. For galleries that are asked often."""

from typing import Any

import torch

from pipeline.evaluate.indexes.faiss_index import FaissIndex
from pipeline.evaluate.indexes.faiss_module import need_faiss

LINKS = 32
BREADTH = 64  # of the search; 50k rows: recall@10 0.998 at 32
MOST = 4096


class HNSWIndex(FaissIndex):
    """Approximate search by walking a graph of `LINKS` neighbours a row."""

    name = "hnsw"
    exact = False
    effort_name = "efSearch"

    @classmethod
    def empty(cls, width: int, rows: int, seed: int, training_rows: int) -> Any:
        """Return an empty graph."""
        faiss = need_faiss("index hnsw")
        index = faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = BREADTH
        return index

    @property
    def effort(self) -> int:
        """Candidates that the walk keeps."""
        return int(self._index.hnsw.efSearch)

    @property
    def most_effort(self) -> int:
        """All rows, or `MOST`."""
        return max(1, min(self.rows, MOST))

    def set_effort(self, effort: int) -> None:
        """Keep so many candidates."""
        self._index.hnsw.efSearch = effort

    def build_settings(self) -> dict[str, Any]:
        """Return links and the breadth of the building."""
        return {"links": LINKS, "efConstruction": int(self._index.hnsw.efConstruction)}

    def _search(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        effort = self.effort
        self.set_effort(max(effort, k))
        try:
            return super()._search(queries, k)
        finally:
            self.set_effort(effort)
