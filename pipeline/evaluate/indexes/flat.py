"""Exact search with faiss (`IndexFlatIP`)."""

from typing import Any

import torch

from pipeline.evaluate.indexes.base import Index, order_ties
from pipeline.evaluate.indexes.faiss_module import need_faiss


class FaissIndex(Index):
    """What the faiss kinds share: how to ask, and how to order the answer."""

    _index: Any

    def _search(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        scores, positions = self._index.search(queries.numpy(), k)
        return order_ties(torch.from_numpy(scores), torch.from_numpy(positions))


class FlatIndex(FaissIndex):
    """Exact search in faiss: no training, no parameters."""

    name = "flat"
    exact = True

    def _build(self, gallery: torch.Tensor) -> None:
        self._index = need_faiss("index flat").IndexFlatIP(self.width)
        self._index.add(gallery.numpy())
