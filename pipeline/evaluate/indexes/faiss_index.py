"""What the faiss kinds share: an empty index that blocks of rows are added to, one knob for effort, ordered answers."""

from abc import abstractmethod
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.evaluate.indexes.base import Index, order_ties


class FaissIndex(Index):
    """A gallery behind an index of faiss.

    `_index` is faiss's own. A subclass writes `empty` and, where it is approximate, `effort`, `most_effort` and
    `set_effort`.
    """

    _index: Any
    effort_name: ClassVar[str] = ""
    """What faiss calls the knob that buys recall with time; empty for an exact kind."""
    true_scores: ClassVar[bool] = True
    """Whether scores are those of the vectors themselves."""

    @classmethod
    @abstractmethod
    def empty(cls, width: int, rows: int, seed: int, training_rows: int) -> Any:
        """Return faiss's index of that kind, untrained, laid out for so many rows."""

    @classmethod
    def training_rows(cls, rows: int) -> int:
        """Return how many rows of a gallery it is trained on."""
        return 0

    @classmethod
    def wrap(cls, index: Any, seed: int = 0) -> Self:
        """Return one around an index of faiss that holds its rows already."""
        made = cls.__new__(cls)
        made.rows, made.width, made.seed = int(index.ntotal), int(index.d), seed
        made._index = index
        return made

    @property
    def own(self) -> Any:
        """Return faiss's index."""
        return self._index

    @property
    def effort(self) -> int:
        """How hard it looks: lists or candidates."""
        return 0

    @property
    def most_effort(self) -> int:
        """The effort that makes no difference any more, or is the most that is tried."""
        return 0

    def set_effort(self, effort: int) -> None:
        """Look so hard from now on."""

    def build_settings(self) -> dict[str, Any]:
        """Return what it was laid out as, for its record."""
        return {}

    def _build(self, gallery: torch.Tensor) -> None:
        wanted = self.training_rows(self.rows)
        self._index = self.empty(self.width, self.rows, self.seed, min(wanted, self.rows))
        if not self._index.is_trained:
            self._index.train(training_vectors(gallery[training_sample(self.rows, wanted, self.seed)]))
        self._index.add(gallery.numpy())

    def _search(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        scores, positions = self._index.search(queries.numpy(), k)
        return order_ties(torch.from_numpy(scores), torch.from_numpy(positions))


def training_sample(rows: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """Return the positions, rising, of rows drawn for training."""
    if wanted >= rows:
        return np.arange(rows, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).choice(rows, size=wanted, replace=False)).astype(np.int64)


def training_vectors(vectors: torch.Tensor) -> NDArray[np.float32]:
    """Return training rows [n, D] as faiss takes them; it wants two of them at least."""
    enough = vectors if len(vectors) > 1 else vectors.repeat(2, 1)
    return np.ascontiguousarray(enough.numpy(), dtype=np.float32)
