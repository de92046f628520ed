"""Build an index of more rows than memory holds vectors for: block by block, global ids, parts merged at the end.

Inverted lists are trained once, on a sample. Each part is a copy of the empty trained index with a run of rows under
their global ids; parts that fill the memory go to the disk. In the end they are merged: in memory where all codes fit,
else into lists on the disk that the index reads as it needs them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError
from pipeline.evaluate.indexes.faiss_index import FaissIndex, training_sample, training_vectors
from pipeline.evaluate.indexes.faiss_module import need_faiss
from pipeline.evaluate.indexes.ivf import ListsIndex
from pipeline.evaluate.indexes.kinds import MEMORY
from pipeline.evaluate.indexes.on_disk import ON_DISK, merge_lists

_ID_BYTES = 8
_MOST_BLOCK_ROWS = 2**17


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Unit vectors that are read when they are needed.

    Args:
        rows: N.
        width: D.
        read: Positions [n], rising → vectors float32 [n, D].
    """

    rows: int
    width: int
    read: Callable[[NDArray[np.int64]], Tensor]

    @classmethod
    def of(cls, vectors: Tensor) -> "Gallery":
        """Return a gallery of vectors that lie in memory."""
        return cls(rows=len(vectors), width=vectors.shape[1], read=lambda rows: vectors[torch.from_numpy(rows)])

    def blocks(self, rows: int) -> Iterator[tuple[int, Tensor]]:
        """Yield (position of the first row, vectors) of runs of rows."""
        for start in range(0, self.rows, rows):
            yield start, self.read(np.arange(start, min(start + rows, self.rows), dtype=np.int64))

    def drawn(self, positions: NDArray[np.int64], rows: int) -> Tensor:
        """Return the vectors [n, D] of some rows, so many read at once: what they are made of may be far wider."""
        vectors = torch.empty(len(positions), self.width)
        for start in range(0, len(positions), rows):
            vectors[start : start + rows] = self.read(positions[start : start + rows])
        return vectors

    def block_rows(self, memory: int) -> int:
        """Return how many rows an eighth of the memory holds."""
        return max(1, min(memory // (8 * 4 * self.width), _MOST_BLOCK_ROWS, self.rows))


@dataclass(frozen=True, kw_only=True)
class Built:
    """What was built."""

    index: FaissIndex
    parts: int
    """Parts that were merged; 1 where all fitted."""
    files: tuple[Path, ...] = ()
    """Files beside the index itself that hold its lists."""


def build_in_blocks(
    kind: type[FaissIndex], gallery: Gallery, folder: Path, *, seed: int = 0, memory: int = MEMORY
) -> Built:
    """Build an index within a memory limit (vectors and codes; faiss's own few megabytes come on top).

    Args:
        kind: Which.
        gallery: Its rows.
        folder: Place for parts, and for the lists where they stay on the disk.
        seed: Seed of the training sample and of the clustering.
        memory: Bytes.

    Raises:
        UserError: There are no rows, or the kind must lie in memory as a whole and does not fit.
    """
    if not gallery.rows:
        raise UserError(expected="a gallery with at least one row", found="none")
    trained_on = max(1, min(kind.training_rows(gallery.rows), memory // (8 * gallery.width)))
    sample = training_sample(gallery.rows, trained_on, seed)
    empty = kind.empty(gallery.width, gallery.rows, seed, len(sample))
    if issubclass(kind, ListsIndex):
        empty.train(training_vectors(gallery.drawn(sample, gallery.block_rows(memory))))
        return _lists(kind, empty, gallery, folder, seed, memory)
    need = 4 * gallery.rows * gallery.width
    if need > memory:
        raise UserError(
            expected=f"an index of at most {memory:,} bytes",
            found=f"{need:,} bytes of vectors, which {kind.name} holds whole",
            where="--memory",
            remedy="take --kind ivf, sq8 or ivfpq, or allow more memory",
        )
    for _, block in gallery.blocks(gallery.block_rows(memory)):
        empty.add(np.ascontiguousarray(block.numpy()))
    return Built(index=kind.wrap(empty, seed), parts=1)


def _lists(kind: type[ListsIndex], empty: Any, gallery: Gallery, folder: Path, seed: int, memory: int) -> Built:
    faiss = need_faiss(f"index {kind.name}")
    row_bytes = int(empty.code_size) + _ID_BYTES
    part_rows = max(1, memory // 2 // row_bytes)
    whole = gallery.rows <= part_rows
    saved: list[Path] = []
    part = empty if whole else faiss.clone_index(empty)
    step = min(gallery.block_rows(memory), part_rows)
    for start, block in gallery.blocks(step):
        if part.ntotal + len(block) > part_rows:
            saved.append(_save(faiss, part, folder, len(saved)))
            part = faiss.clone_index(empty)
        part.add_with_ids(np.ascontiguousarray(block.numpy()), np.arange(start, start + len(block), dtype=np.int64))
    if whole:
        return Built(index=kind.wrap(part, seed), parts=1)
    saved.append(_save(faiss, part, folder, len(saved)))
    del part
    fits = gallery.rows * row_bytes <= memory
    data = folder / ON_DISK
    merged = _merge(faiss, empty, saved) if fits else empty
    if not fits:
        merge_lists(empty, saved, data)
    for path in saved:
        path.unlink()
    return Built(index=kind.wrap(merged, seed), parts=len(saved), files=() if fits else (data,))


def _save(faiss: Any, part: Any, folder: Path, number: int) -> Path:
    path = folder / f"part-{number:05}.faiss"
    faiss.write_index(part, str(path))
    return path


def _merge(faiss: Any, empty: Any, parts: list[Path]) -> Any:
    for path in parts:
        empty.merge_from(faiss.read_index(str(path)), 0)  # ids are global already
    return empty
