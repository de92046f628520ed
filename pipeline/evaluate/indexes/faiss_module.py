"""Load faiss late and once. Used by the index kinds that need it.

A faiss that is installed can still fail to load: faiss-gpu without the CUDA libraries fails with something that is no
ImportError. Whatever it raises, exact search goes on with torch alone.
"""

import importlib
from functools import cache
from types import ModuleType

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
