"""Which index: the table of kinds, `auto` by the rule in `kinds`, and the recall of an approximate one.

faiss does the work where it loads, torch where it does not.
"""

import torch

from pipeline.errors import UnknownNameError
from pipeline.evaluate.indexes.base import Index
from pipeline.evaluate.indexes.exact import TorchIndex
from pipeline.evaluate.indexes.faiss_module import find_faiss
from pipeline.evaluate.indexes.flat import FlatIndex
from pipeline.evaluate.indexes.hnsw import HNSWIndex
from pipeline.evaluate.indexes.ivf import IVFIndex, IVFPQIndex, SQ8Index
from pipeline.evaluate.indexes.kinds import KINDS, MEMORY, kind_for

INDEXES: dict[str, type[Index]] = {
    "torch": TorchIndex,
    "flat": FlatIndex,
    "ivf": IVFIndex,
    "hnsw": HNSWIndex,
    "sq8": SQ8Index,
    "ivfpq": IVFPQIndex,
}


def choose_kind(kind: str, rows: int, width: int = 1, memory: int = MEMORY) -> str:
    """Return the kind to build for a gallery of so many rows (see the rule in `kinds`).

    `flat` means exact: it is answered by torch where faiss does not load.

    Raises:
        UnknownNameError: No such kind.
    """
    if kind not in KINDS:
        raise UnknownNameError("index", kind, KINDS, "--index")
    has_faiss = find_faiss() is not None
    if kind == "auto":
        kind = kind_for(rows, width, memory) if has_faiss else "flat"
    return "torch" if kind == "flat" and not has_faiss else kind


def build_index(gallery: torch.Tensor, kind: str = "auto", seed: int = 0) -> Index:
    """Build an index over a gallery [N, D] of unit vectors.

    Raises:
        UnknownNameError: No such kind.
        MissingExtraError: An approximate kind was asked for and faiss does not load.
        UserError: The gallery is empty.
    """
    width = gallery.shape[1] if gallery.ndim == 2 else 1
    return INDEXES[choose_kind(kind, len(gallery), width)](gallery, seed)


def search(index: Index, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scores [Q, K] and gallery positions [Q, K] of the best K = min(k, N) rows of each query, best first."""
    return index.search(queries, k)


def recall_against_exact(index: Index, gallery: torch.Tensor, queries: torch.Tensor, k: int = 10) -> float:
    """Return the share of the exact K nearest rows that an index finds, over all queries [Q, D]."""
    _, found = index.search(queries, k)
    _, truth = TorchIndex(gallery).search(queries, k)
    hits = (found[:, :, None] == truth[:, None, :]).any(1)
    return float(hits.double().mean())
