"""Neighbour graph (`IndexHNSWFlat`): slow to build, fast to ask. For galleries that are asked often."""

import torch

from pipeline.evaluate.indexes.faiss_module import need_faiss
from pipeline.evaluate.indexes.flat import FaissIndex

LINKS = 32
BREADTH = 64  # of the search; 50k rows: recall@10 0.998 at 32


class HNSWIndex(FaissIndex):
    """Approximate search by walking a graph of `LINKS` neighbours a row."""

    name = "hnsw"
    exact = False

    def _build(self, gallery: torch.Tensor) -> None:
        faiss = need_faiss("index hnsw")
        self._index = faiss.IndexHNSWFlat(self.width, LINKS, faiss.METRIC_INNER_PRODUCT)
        self._index.hnsw.efSearch = BREADTH
        self._index.add(gallery.numpy())

    def _search(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        self._index.hnsw.efSearch = max(BREADTH, k)
        return super()._search(queries, k)
