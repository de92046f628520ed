"""The kinds of index as recipes of `faiss.index_factory`, and the rule behind `auto`. Nothing heavy is loaded.

| rows N of width D | kind | why |
|---|---|---|
| below a million | flat | a blocked exact search answers before anything else is built |
| from a million on, 4·N·D bytes fit the memory | ivf | whole vectors in lists: no loss but the lists not looked into |
| …, N·D bytes fit | sq8 | lists of vectors in 8 bits a number |
| else | ivfpq | lists of product-quantised vectors, a quarter of a byte a number |

`hnsw` is never chosen by itself: it is the fastest to ask, and by far the slowest to build.
"""

import importlib
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from pipeline.errors import MissingExtraError, UnknownNameError

EXACT_BELOW = 1_000_000
"""Rows."""
MEMORY = 8 * 2**30
"""Bytes that an index may take by default."""
LINKS = 32
TRAINING_ROWS_PER_LIST = 64
MOST_TRAINING_ROWS = 2**20
NUMBERS_PER_CODE = 4
"""Neighbouring numbers of a vector that a byte of a product code stands for; fewer where the width does not divide."""
CODE_BITS = 8


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
    kind.name: kind
    for kind in (
        Kind(name="torch"),
        Kind(name="flat", recipe="Flat"),
        Kind(name="ivf", recipe="IVF{lists},Flat", effort="nprobe", start=8),
        Kind(name="hnsw", recipe=f"HNSW{LINKS}", effort="efSearch", start=64),
        Kind(name="sq8", recipe="IVF{lists},SQ8", effort="nprobe", start=8, true_scores=False),
        Kind(name="ivfpq", recipe="IVF{lists},PQ{codes}x{bits}np", effort="nprobe", start=8, true_scores=False),
    )
}
KINDS = ("auto", *INDEXES)


def list_count(rows: int) -> int:
    """Return the number of lists for so many rows: about 4·√N."""
    return max(1, min(int(4 * rows**0.5), rows // TRAINING_ROWS_PER_LIST))


def choose_kind(kind: str, rows: int, width: int = 1, memory: int = MEMORY) -> str:
    """Return the kind to build for a gallery of so many rows; `auto` goes by the rule above.

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
    """Return the faiss module.

    Raises:
        MissingExtraError: It is missing or does not load.
    """
    module = find_faiss()
    if module is None:
        raise MissingExtraError("faiss", "pip install faiss-cpu", purpose)
    return module


def gpus() -> int:
    """Return how many GPUs faiss-gpu sees; 0 with faiss-cpu."""
    faiss = find_faiss()
    return int(faiss.get_num_gpus()) if faiss is not None and hasattr(faiss, "StandardGpuResources") else 0
