"""Exact search with torch alone: blocked matrix product and top-k. Always available."""

import torch

from pipeline.evaluate.indexes.base import Index, order_ties

BLOCK_FLOATS = 2**24  # 64 MB of scores at a time


class TorchIndex(Index):
    """Exact search by a blocked matrix product, Q·N scores never held at once."""

    name = "torch"
    exact = True

    def _build(self, gallery: torch.Tensor) -> None:
        self._gallery = gallery

    def _search(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        step = max(1, BLOCK_FLOATS // self.rows)
        blocks = [torch.topk(block @ self._gallery.T, k, dim=1) for block in torch.split(queries, step)]
        if not blocks:
            return torch.empty(0, k), torch.empty(0, k, dtype=torch.int64)
        return order_ties(torch.cat([block.values for block in blocks]), torch.cat([block.indices for block in blocks]))
