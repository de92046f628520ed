"""One forward pass after another: batches, the storage dtype, and a GPU that runs out of memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.encoders.base import Encoder
from pipeline.errors import PipelineError, UserError
from pipeline.extract.items import Prepared
from pipeline.runtime import torch_dtype
from pipeline.store.formats.base import storage_dtype

Arrays = dict[str, NDArray[np.generic]]


def batches_in_order(items: Iterable[Prepared], size: int) -> Iterator[list[Prepared]]:
    """Yield batches in the order of the items."""
    batch: list[Prepared] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def batches_by_length(items: Iterable[Prepared], size: int) -> Iterator[list[Prepared]]:
    """Yield batches of texts of similar length T, the longest first: little padding, want of memory shows early."""
    ordered = sorted(items, key=lambda item: (-_length(item), item.position))
    yield from batches_in_order(ordered, size)


def _length(item: Prepared) -> int:
    return len(item.tensor) if item.tensor is not None else 0


@dataclass
class Forward:
    """Runs an encoder over batches.

    Args:
        encoder: The encoder.
        layers: L layers to take.
        storage: Number format of the results: float32, float16 or bfloat16 (whose bits travel as uint16).
        batch_size: Rows in a pass; halved for good when the GPU runs out of memory.
    """

    encoder: Encoder
    layers: Sequence[str]
    storage: str
    batch_size: int
    notes: list[str] = field(default_factory=list)
    """What the user should know, such as a halved batch."""

    def empty(self, rows: int, layers: Sequence[str]) -> Arrays:
        """Return room for the features of some rows: layer → [rows, D]."""
        dtype = storage_dtype(self.storage).numpy
        return {name: np.empty((rows, self.encoder.width(name)), dtype) for name in layers}

    def start(self, batch: Sequence[Tensor], layers: Sequence[str]) -> Callable[[], Arrays]:
        """Start one pass or several smaller ones; return what waits for layer → [N, D] in the storage dtype.

        Raises:
            PipelineError: A single row does not fit into the GPU's memory.
            UserError: When waited for: the encoder gives something else than one row a sample.
        """
        while True:
            size = self.batch_size
            parts = [list(batch[first : first + size]) for first in range(0, len(batch), size)]
            try:
                waiting = [(len(part), self.encoder.start(part, layers)) for part in parts]
            except torch.OutOfMemoryError as error:
                self._halve(error)
            else:
                return partial(self._finish, waiting, layers)

    def _halve(self, error: Exception) -> None:
        if self.batch_size == 1:
            raise PipelineError(
                expected="memory for one row",
                found="too little on the device",
                where=self.encoder.spec,
                remedy="use --device cpu, --dtype bf16 or a smaller encoder",
            ) from error
        self.batch_size //= 2
        torch.cuda.empty_cache()
        self.notes.append(f"out of GPU memory: going on with --batch-size {self.batch_size}")

    def _finish(
        self, waiting: Sequence[tuple[int, Callable[[], Mapping[str, Tensor]]]], layers: Sequence[str]
    ) -> Arrays:
        parts = []
        for rows, finish in waiting:
            features = finish()
            self._check(features, rows, layers)
            parts.append({name: _stored(features[name], self.storage) for name in layers})
        return parts[0] if len(parts) == 1 else {n: np.concatenate([part[n] for part in parts]) for n in layers}

    def _check(self, features: Mapping[str, Tensor], rows: int, layers: Sequence[str]) -> None:
        for name in layers:
            wanted = (rows, self.encoder.width(name))
            found = tuple(features[name].shape) if name in features else "no such layer"
            if found != wanted:
                raise UserError(
                    expected=f"{name} of shape {wanted}", found=str(found), where=f"encode() of {self.encoder.spec}"
                )


def _stored(tensor: Tensor, storage: str) -> NDArray[np.generic]:
    values = tensor.detach().to("cpu", torch_dtype(storage)).contiguous()
    if storage == "bfloat16":
        return values.view(torch.int16).numpy().view(np.uint16)
    return values.numpy()
