"""The highest softmax probability of every row and every column of a score matrix that is only ever seen in tiles.

Used by `evaluate` beside `retrieval.cross_ranks`, whose tiles it watches: no score is computed twice, none is kept.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError

Values = NDArray[np.float64]
_CHUNK = 2048  # columns at once: a piece of a tile that stays in the cache


class TopProbabilities:
    """Running maxima and sums of exp((score − maximum) / temperature) along both axes of [R, C] scores.

    Scores and exponentials are float32, sums are float64.

    Args:
        rows: Number R of rows.
        columns: Number C of columns.
        temperature: What scores are divided by; one for the rows' softmax, one for the columns', or one for both.

    Raises:
        UserError: The temperature is not positive.
    """

    def __init__(self, rows: int, columns: int, temperature: float | tuple[float, float]) -> None:
        self._temperature = temperature if isinstance(temperature, tuple) else (temperature, temperature)
        for each in self._temperature:
            check_temperature(each)
        self._most = [torch.full((count,), -torch.inf) for count in (rows, columns)]
        self._sum = [torch.zeros(count, dtype=torch.float64) for count in (rows, columns)]

    def watch(self, scores: Tensor, rows: slice, columns: slice) -> None:
        """Take in a tile of scores, float32 [r, c], which is left as it is; each cell must come once."""
        for start in range(0, scores.shape[1], _CHUNK):
            piece = scores[:, start : start + _CHUNK]
            first = columns.start + start
            for axis, place in ((0, rows), (1, slice(first, first + piece.shape[1]))):
                self._add(piece, axis, place)

    @property
    def by_row(self) -> Values:
        """Highest probability of each row's softmax over the columns [R]."""
        return np.asarray(1.0 / self._sum[0].numpy())

    @property
    def by_column(self) -> Values:
        """Highest probability of each column's softmax over the rows [C]."""
        return np.asarray(1.0 / self._sum[1].numpy())

    def _add(self, piece: Tensor, axis: int, place: slice) -> None:
        before = self._most[axis][place]
        most = torch.maximum(before, piece.amax(dim=1 - axis).cpu())
        shift = most.to(piece.device).unsqueeze(1 - axis)
        sums = (piece - shift).div_(self._temperature[axis]).exp_().sum(dim=1 - axis)
        fade = ((before.double() - most.double()) / self._temperature[axis]).exp()
        self._sum[axis][place] = self._sum[axis][place] * fade + sums.cpu().double()
        self._most[axis][place] = most


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not positive and finite.

    Raises:
        UserError: It is not.
    """
    if not 0 < temperature < float("inf"):
        raise UserError(expected="a positive temperature", found=repr(temperature))
