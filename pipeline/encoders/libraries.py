"""The one door to timm, open_clip, transformers and sentence-transformers: behind a torchvision that can be imported.

PyPI's torchvision may be a CUDA build beside a CPU build of torch. Then its native library does not load, and `import
torchvision` fails with "operator torchvision::nms does not exist" and takes every library that imports it along.
Declaring the two operators is enough for all that is used here (nothing of torchvision.ops runs). Where the native
library loads, nothing is changed.
"""

import importlib
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from pipeline.errors import MissingExtraError

INSTALL = {
    "timm": "pip install 'timm>=1.0.15'",
    "open_clip": "pip install 'open_clip_torch>=3.0'",
    "transformers": "pip install 'transformers>=5'",
    "sentence_transformers": "pip install 'sentence-transformers>=5'",
}


def import_library(name: str) -> ModuleType:
    """Import a model library, or a module of it, once torchvision can be imported.

    Raises:
        MissingExtraError: The library is not installed.
    """
    make_torchvision_loadable()
    package = name.partition(".")[0]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtraError(package, INSTALL.get(package, f"pip install {package}"), "loads encoders") from error
    if package in ("transformers", "sentence_transformers"):  # a bar for every load of weights says nothing
        importlib.import_module("transformers.utils.logging").disable_progress_bar()
    return module


@cache
def make_torchvision_loadable() -> torch.library.Library | None:
    """Declare torchvision's operators where its native library cannot be loaded; keep what must stay alive."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return None
    libraries = sorted(Path(spec.origin).parent.glob("_C*.so")) + sorted(Path(spec.origin).parent.glob("_C*.pyd"))
    try:
        for library in libraries:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError:
        libraries = []
    return None if libraries else _declare_operators()


def _declare_operators() -> torch.library.Library:
    fragment = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        fragment.define(schema)  # type: ignore[no-untyped-call]
    return fragment
