"""What is remembered of a training run: rows for history.jsonl.

A row: step, epoch, lr, loss, loss_i2t, loss_t2i, lambda_i2t, lambda_t2i, temperature, with STRUCTURE also structure,
structure_weight, diagonal_features, diagonal_embeddings; at validated steps val_<metric> beside them.
"""

from typing import Any

import torch
from torch import Tensor

MAX_ROWS = 200


class History:
    """Collects a step's terms without waiting for the device, and averages them over the steps of a row.

    Args:
        total_steps: Steps planned; at most about 200 rows are made of them.
    """

    def __init__(self, total_steps: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self._every = max(1, total_steps // MAX_ROWS)
        self._waiting: list[dict[str, Tensor | float]] = []
        self._head: dict[str, Any] = {}

    def add(self, step: int, epoch: int, rate: float, terms: dict[str, Tensor | float]) -> None:
        """Take one step's terms."""
        self._head = {"step": step, "epoch": epoch, "lr": rate}
        self._waiting.append(terms)
        if step == 1 or step % self._every == 0:
            self._flush()

    def last(self) -> dict[str, Any]:
        """Return the row that the last step is in."""
        if self._waiting:
            self._flush()
        return self.rows[-1]

    def validated(self, metrics: dict[str, float]) -> None:
        """Add validation metrics to the last step's row."""
        row = self.last()
        row |= {f"val_{name}": value for name, value in metrics.items()}

    def _flush(self) -> None:
        names = self._waiting[0]
        means = {name: _mean([terms[name] for terms in self._waiting]) for name in names}
        self.rows.append({**self._head, **means})
        self._waiting = []


def _mean(values: list[Tensor | float]) -> float:
    return float(torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in values]).mean())
