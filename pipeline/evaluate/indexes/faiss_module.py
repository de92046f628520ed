"""Load faiss late and once. Used by the index kinds that need it.

A faiss that is installed can still fail to load: faiss-gpu without the CUDA libraries fails with something that is no
ImportError. Whatever it raises, exact search goes on with torch alone.
"""

import importlib
from functools import cache
from types import ModuleType
from typing import Any

from pipeline.errors import MissingExtraError


@cache
def find_faiss() -> ModuleType | None:
    """Return the faiss module, or None where it is missing or does not load."""
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


def gpus(faiss: Any) -> int:
    """Return how many GPUs faiss-gpu sees; 0 with faiss-cpu."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def gpu_clustering(faiss: Any, index: Any, width: int) -> Any:
    """Let inverted lists be clustered, the longest part of their building, on all GPUs where there are any."""
    if gpus(faiss):
        on_gpus = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(width))
        index.clustering_index = on_gpus
        faiss.add_to_referenced_objects(index, on_gpus)  # faiss itself keeps no reference
    return index
