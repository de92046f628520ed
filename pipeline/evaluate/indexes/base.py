"""What every index does: take a gallery of unit vectors, answer the K nearest by inner product, best first."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch

from pipeline.errors import UserError


class Index(ABC):
    """A searchable gallery.

    Args:
        gallery: [N, D] embeddings, L2-normalised, so that inner product is cosine.
        seed: Seed of whatever the kind draws at random.

    Shape:
        `search`: queries [Q, D] → scores float32 [Q, K], positions int64 [Q, K], best first.

    Raises:
        UserError: The gallery is not a matrix or holds no rows.
    """

    name: ClassVar[str]
    exact: ClassVar[bool]

    def __init__(self, gallery: torch.Tensor, seed: int = 0) -> None:
        if gallery.ndim != 2 or not len(gallery):
            raise UserError(expected="a gallery [N, D] with at least one row", found=f"shape {tuple(gallery.shape)}")
        self.rows, self.width = gallery.shape
        self.seed = seed
        self._build(gallery.detach().to("cpu", torch.float32).contiguous())

    def search(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the scores and positions of the min(k, N) best gallery rows of each query.

        Raises:
            UserError: k is not positive or the queries are of another width.
        """
        if k < 1:
            raise UserError(expected="at least one neighbour a query", found=f"k = {k}")
        if queries.ndim != 2 or queries.shape[1] != self.width:
            raise UserError(expected=f"queries [Q, {self.width}]", found=f"shape {tuple(queries.shape)}")
        queries = queries.detach().to("cpu", torch.float32).contiguous()
        return self._search(queries, min(k, self.rows))

    @abstractmethod
    def _build(self, gallery: torch.Tensor) -> None: ...

    @abstractmethod
    def _search(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]: ...


def order_ties(scores: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sort each row by falling score, equal scores by rising position: the same answer from every kind."""
    order = np.lexsort((positions.numpy(), -scores.numpy()), axis=1)
    rows = torch.from_numpy(order)
    return scores.gather(1, rows), positions.gather(1, rows)
