"""Exact search with faiss (`IndexFlatIP`)."""

from typing import Any

import torch

from pipeline.evaluate.indexes.faiss_index import FaissIndex
from pipeline.evaluate.indexes.faiss_module import gpus, need_faiss


class FlatIndex(FaissIndex):
    """Exact search in faiss: no training, no parameters; on all GPUs where faiss has some."""

    name = "flat"
    exact = True

    @classmethod
    def empty(cls, width: int, rows: int, seed: int, training_rows: int) -> Any:
        """Return an empty `IndexFlatIP`."""
        return need_faiss("index flat").IndexFlatIP(width)

    def _build(self, gallery: torch.Tensor) -> None:
        super()._build(gallery)
        faiss = need_faiss("index flat")
        if gpus(faiss):
            self._index = faiss.index_cpu_to_all_gpus(self._index)
