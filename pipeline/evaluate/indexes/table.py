"""Which index: the table of kinds, the rule behind `auto`, and the recall of an approximate one against exact search.

The rule: below one million rows search is exact, because a blocked flat search answers before anything else is built.
From one million on it is IVF, with its recall against exact search measured and reported. faiss does the work where it
loads, torch where it does not.
"""

import torch

from pipeline.errors import UnknownNameError
from pipeline.evaluate.indexes.base import Index
from pipeline.evaluate.indexes.exact import TorchIndex
from pipeline.evaluate.indexes.faiss_module import find_faiss
from pipeline.evaluate.indexes.flat import FlatIndex
from pipeline.evaluate.indexes.hnsw import HNSWIndex
from pipeline.evaluate.indexes.ivf import IVFIndex
from pipeline.evaluate.indexes.kinds import EXACT_BELOW, KINDS

INDEXES: dict[str, type[Index]] = {"torch": TorchIndex, "flat": FlatIndex, "ivf": IVFIndex, "hnsw": HNSWIndex}


def choose_kind(kind: str, rows: int) -> str:
    """Return the kind to build for a gallery of so many rows (see the rule above).

    `flat` means exact: it is answered by torch where faiss does not load.

    Raises:
        UnknownNameError: No such kind.
    """
    if kind not in KINDS:
        raise UnknownNameError("index", kind, KINDS, "--index")
    has_faiss = find_faiss() is not None
    if kind == "auto":
        kind = "flat" if rows < EXACT_BELOW or not has_faiss else "ivf"
    return "torch" if kind == "flat" and not has_faiss else kind


def build_index(gallery: torch.Tensor, kind: str = "auto", seed: int = 0) -> Index:
    """Build an index over a gallery [N, D] of unit vectors.

    Raises:
        UnknownNameError: No such kind.
        MissingExtraError: An approximate kind was asked for and faiss does not load.
        UserError: The gallery is empty.
    """
    return INDEXES[choose_kind(kind, len(gallery))](gallery, seed)


def search(index: Index, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scores [Q, K] and gallery positions [Q, K] of the best K = min(k, N) rows of each query, best first."""
    return index.search(queries, k)


def recall_against_exact(index: Index, gallery: torch.Tensor, queries: torch.Tensor, k: int = 10) -> float:
    """Return the share of the exact K nearest rows that an index finds, over all queries [Q, D]."""
    _, found = index.search(queries, k)
    _, truth = TorchIndex(gallery).search(queries, k)
    hits = (found[:, :, None] == truth[:, None, :]).any(1)
    return float(hits.double().mean())
