"""A searchable gallery of unit vectors: `build_index(gallery).search(queries, k)`, exact with torch or by faiss.

The kinds are recipes of `faiss.index_factory`; `auto` takes one of them by size:

| rows N of width D | kind | why |
|---|---|---|
| below a million | flat | a blocked exact search answers before anything else is built |
| from a million on, 4·N·D bytes fit the memory | ivf | whole vectors in lists: no loss but the lists not looked into |
| …, N·D bytes fit | sq8 | lists of vectors in 8 bits a number |
| else | ivfpq | lists of product-quantised vectors, a quarter of a byte a number |

`hnsw` is never chosen by itself: it is the fastest to ask, and by far the slowest to build. A large gallery is read
block by block (`Gallery`), so that neither it nor what it is made of lies in memory as a whole.
"""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import MissingExtraError, UnknownNameError, UserError
from pipeline.indexes import KINDS, MEMORY

EXACT_BELOW = 1_000_000
"""Rows."""
LINKS = 32
TRAINING_ROWS_PER_LIST = 64
MOST_TRAINING_ROWS = 2**20
NUMBERS_PER_CODE = 4
"""Neighbouring numbers of a vector that a byte of a product code stands for; fewer where the width does not divide."""
CODE_BITS = 8
BLOCK_FLOATS = 2**24  # 64 MB of scores at a time
_MOST_BLOCK_ROWS = 2**17
_MOST_CANDIDATES = 4096


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of index."""

    name: str
    recipe: str = ""
    """What `faiss.index_factory` is given; {lists}, {codes} and {bits} go by the gallery. Empty: torch does it."""
    effort: str = ""
    """faiss's name for the parameter that buys recall with time; empty for an exact kind."""
    start: int = 0
    """That parameter until it is tuned."""
    true_scores: bool = True
    """Whether scores are those of the vectors themselves, not of their codes."""

    @property
    def exact(self) -> bool:
        """Whether it finds all of the nearest rows."""
        return not self.effort

    @property
    def has_lists(self) -> bool:
        """Whether rows lie in inverted lists, which can stay on the disk and be built in parts."""
        return self.effort == "nprobe"

    def training_rows(self, rows: int) -> int:
        """Return how many rows it is trained on: 64 a list, but enough for the codes, and a million at most."""
        most = min(list_count(rows) * TRAINING_ROWS_PER_LIST, MOST_TRAINING_ROWS)
        return max(min(rows, 2**14), most) if self.has_lists else 0

    def row_bytes(self, width: int, rows: int) -> int:
        """Return how many bytes a row takes in an index of so many: its numbers or its code, in lists its id too."""
        return int(self.empty(width, rows).code_size) + 8 if self.has_lists else 4 * width

    def empty(self, width: int, rows: int, seed: int = 0, training_rows: int = MOST_TRAINING_ROWS) -> Any:
        """Return faiss's index of this kind, untrained, laid out for so many rows of so many numbers."""
        faiss = need_faiss(f"index {self.name}")
        each = next(size for size in range(NUMBERS_PER_CODE, 0, -1) if width % size == 0)
        bits = max(1, min(CODE_BITS, training_rows.bit_length() - 1))  # 2^bits centroids need as many rows
        recipe = self.recipe.format(lists=list_count(rows), codes=width // each, bits=bits)
        index = faiss.index_factory(width, recipe, faiss.METRIC_INNER_PRODUCT)
        if self.has_lists:
            index.cp.seed = seed + 1  # zero would mean "draw one"
            for clustering in (index.cp, *([index.pq.cp] if hasattr(index, "pq") else [])):
                clustering.min_points_per_centroid = 1
            if gpus():  # the clustering is the longest part of the building
                index.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(width))
                faiss.add_to_referenced_objects(index, index.clustering_index)  # faiss itself keeps no reference
        return index


# nprobe at 100k × 512: recall@10 0.973 with one list looked into, 1.0 with eight; efSearch at 50k: 0.998 with 32.
INDEXES = {
    "torch": Kind(name="torch"),
    "flat": Kind(name="flat", recipe="Flat"),
    "ivf": Kind(name="ivf", recipe="IVF{lists},Flat", effort="nprobe", start=8),
    "hnsw": Kind(name="hnsw", recipe=f"HNSW{LINKS}", effort="efSearch", start=64),
    "sq8": Kind(name="sq8", recipe="IVF{lists},SQ8", effort="nprobe", start=8, true_scores=False),
    "ivfpq": Kind(name="ivfpq", recipe="IVF{lists},PQ{codes}x{bits}np", effort="nprobe", start=8, true_scores=False),
}


def list_count(rows: int) -> int:
    """Return the number of lists for so many rows: about 4·√N."""
    return max(1, min(int(4 * rows**0.5), rows // TRAINING_ROWS_PER_LIST))


def choose_kind(kind: str, rows: int, width: int = 1, memory: int = MEMORY) -> str:
    """Return the kind to build for a gallery of so many rows; `auto` goes by the module's table.

    `flat` means exact: it is answered by torch where faiss does not load.

    Raises:
        UnknownNameError: No such kind.
    """
    if kind not in KINDS:
        raise UnknownNameError("index", kind, KINDS, "--index")
    if kind == "auto" and (rows < EXACT_BELOW or find_faiss() is None):
        kind = "flat"
    elif kind == "auto":
        kind = "ivf" if 4 * rows * width <= memory else "sq8" if rows * width <= memory else "ivfpq"
    return "torch" if kind == "flat" and find_faiss() is None else kind


@cache
def find_faiss() -> ModuleType | None:
    """Return the faiss module, or None where it is missing or does not load.

    A faiss-gpu without the CUDA libraries fails with something that is no ImportError.
    """
    try:
        return importlib.import_module("faiss")
    except Exception:
        return None


def need_faiss(purpose: str) -> ModuleType:
    """Return the faiss module, or raise a MissingExtraError where it is missing or does not load."""
    module = find_faiss()
    if module is None:
        raise MissingExtraError("faiss", "pip install faiss-cpu", purpose)
    return module


def gpus() -> int:
    """Return how many GPUs faiss-gpu sees; 0 with faiss-cpu."""
    faiss = find_faiss()
    return int(faiss.get_num_gpus()) if faiss is not None and hasattr(faiss, "StandardGpuResources") else 0


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

    def blocks(self, memory: int = MEMORY) -> list[NDArray[np.int64]]:
        """Return the positions of blocks of rows, each of which takes an eighth of the memory at most."""
        step = max(1, min(memory // (8 * 4 * self.width), _MOST_BLOCK_ROWS, self.rows))
        return [np.arange(at, min(at + step, self.rows), dtype=np.int64) for at in range(0, self.rows, step)]


class Index:
    """A gallery [N, D] of unit vectors, so that inner product is cosine, to be asked many times.

    Args:
        kind: Its kind.
        own: What faiss made and filled; `TorchFlat` answers like one.
        seed: Seed of the training sample and of the clustering.
    """

    def __init__(self, kind: Kind, own: Any, seed: int = 0) -> None:
        self.kind, self.own, self.seed = kind, own, seed
        self.rows, self.width = int(own.ntotal), int(own.d)
        self._effort = 0
        self.effort = min(kind.start, self.most_effort)

    def __repr__(self) -> str:
        effort = f", {self.kind.effort} {self.effort}" if self.kind.effort else ""
        return f"<Index {self.kind.name}: {self.rows:,} rows of {self.width} numbers{effort}>"

    @property
    def effort(self) -> int:
        """How hard it looks: lists (nprobe) or candidates (efSearch); 0 for an exact kind."""
        return self._effort

    @effort.setter
    def effort(self, value: int) -> None:
        if self.kind.effort:
            need_faiss("approximate search").ParameterSpace().set_index_parameter(self.own, self.kind.effort, value)
            self._effort = value

    @property
    def most_effort(self) -> int:
        """The effort that makes no difference any more, or is the most that is tried."""
        if self.kind.has_lists:
            return int(self.own.nlist)
        return max(1, min(self.rows, _MOST_CANDIDATES)) if self.kind.effort else 0

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the scores and positions [Q, min(k, N)] of the best rows of each query [Q, D], best first.

        Equal scores stand by rising position, whatever the kind. An approximate one that finds less fills up with -1.

        Raises:
            UserError: k is not positive or the queries are of another width.
        """
        if k < 1:
            raise UserError(expected="at least one neighbour a query", found=f"k = {k}")
        if queries.ndim != 2 or queries.shape[1] != self.width:
            raise UserError(expected=f"queries [Q, {self.width}]", found=f"shape {tuple(queries.shape)}")
        asked = queries.detach().to("cpu", torch.float32).contiguous().numpy()
        k, how = min(k, self.rows), {}
        if self.kind.effort == "efSearch":  # who keeps fewer candidates than k finds fewer than k
            how["params"] = need_faiss("index hnsw").SearchParametersHNSW(efSearch=max(self.effort, k))
        scores, positions = self.own.search(asked, k, **how)
        return order_ties(torch.from_numpy(scores), torch.from_numpy(positions))


class TorchFlat:
    """Exact search by a blocked matrix product, Q·N scores never held at once: faiss's `IndexFlatIP` without faiss.

    Args:
        gallery: [N, D], float32.
    """

    def __init__(self, gallery: Tensor) -> None:
        self._gallery = gallery
        self.ntotal, self.d = gallery.shape

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the scores and positions [Q, k] of the best rows of each query [Q, D], best first."""
        blocks = torch.split(torch.from_numpy(queries), max(1, BLOCK_FLOATS // self.ntotal))
        found = [torch.topk(block @ self._gallery.T, k, dim=1) for block in blocks]
        return torch.cat([each.values for each in found]).numpy(), torch.cat([each.indices for each in found]).numpy()


def build_index(gallery: Tensor, kind: str = "auto", seed: int = 0) -> Index:
    """Build an index over a gallery [N, D] of unit vectors, on all GPUs where faiss has some.

    Raises:
        UnknownNameError: No such kind.
        MissingExtraError: An approximate kind was asked for and faiss does not load.
        UserError: The gallery is no matrix, or is empty.
    """
    if gallery.ndim != 2 or not len(gallery):
        raise UserError(expected="a gallery [N, D] with at least one row", found=f"shape {tuple(gallery.shape)}")
    name = choose_kind(kind, *gallery.shape)
    vectors = gallery.detach().to("cpu", torch.float32).contiguous()
    if name == "torch":
        return Index(INDEXES[name], TorchFlat(vectors), seed)
    own, _ = train(INDEXES[name], Gallery.of(vectors), seed)
    own.add(vectors.numpy())
    if name == "flat" and gpus():
        own = need_faiss("index flat").index_cpu_to_all_gpus(own)
    return Index(INDEXES[name], own, seed)


def train(
    kind: Kind, gallery: Gallery, seed: int, memory: int = MEMORY, at_once: int = _MOST_BLOCK_ROWS
) -> tuple[Any, int]:
    """Return faiss's index of a kind without rows, and how many rows its lists were trained on.

    Args:
        kind: Which.
        gallery: What it is for.
        seed: Seed of the sample that it is trained on, and of the clustering.
        memory: Bytes; the sample takes half of them at most.
        at_once: Rows of the sample that are read at once: what they are made of may be far wider.

    Raises:
        UserError: The gallery has no rows.
    """
    if not gallery.rows:
        raise UserError(expected="a gallery with at least one row", found="none")
    rows = training_sample(gallery.rows, min(kind.training_rows(gallery.rows), memory // (8 * gallery.width)), seed)
    own = kind.empty(gallery.width, gallery.rows, seed, len(rows))
    if own.is_trained:
        return own, 0
    vectors = torch.empty(len(rows), gallery.width)
    for start in range(0, len(rows), at_once):
        vectors[start : start + at_once] = gallery.read(rows[start : start + at_once])
    own.train((vectors if len(rows) > 1 else vectors.repeat(2, 1)).numpy())  # faiss wants two rows at least
    return own, len(rows)


def training_sample(rows: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """Return the positions, rising, of rows drawn for training, one at least."""
    if wanted >= rows:
        return np.arange(rows, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).choice(rows, size=max(1, wanted), replace=False)).astype(np.int64)


def add_rows(
    own: Any, gallery: Gallery, blocks: Iterable[NDArray[np.int64]], see: Callable[[int, Tensor], None]
) -> None:
    """Add blocks of rows to an index of faiss under their positions; `see` is shown each (first position, [n, D])."""
    for rows in blocks:
        block = gallery.read(rows)
        vectors = np.ascontiguousarray(block.numpy(), dtype=np.float32)
        if hasattr(own, "nlist"):
            own.add_with_ids(vectors, rows)
        else:
            own.add(vectors)  # numbered from 0, as the blocks of a whole gallery are
        see(int(rows[0]), block)


def order_ties(scores: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Sort each row [Q, K] by falling score, equal scores by rising position: the same answer from every kind."""
    rows = torch.from_numpy(np.lexsort((positions.numpy(), -scores.numpy()), axis=1))
    return scores.gather(1, rows), positions.gather(1, rows)
