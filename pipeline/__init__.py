"""Frozen image and text encoders, aligned from a few thousand pairs: extract once, align small projectors, evaluate.

Run `pipeline --help` for the commands. By import, everything that most programs need is here:

    from pipeline import AlignConfig, DualEncoder, FeatureStore, align, join

    run = align(AlignConfig(image=image, text=text, out=out))
    DualEncoder.open(run).search(image, "a red heart")

Names load when they are first used, so this module itself imports nothing heavy. The stages `extract`, `align`,
`evaluate` and `sweep` are subpackages and functions at once: each is a module that is called like the function of its
name in its module `run`. So `from pipeline import extract` and `import pipeline.extract.run` mean the same `extract`,
in whichever order, and `extract(config)` is `pipeline.extract.run.extract(config)`.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.align.config import AlignConfig
    from pipeline.align.run import align
    from pipeline.apps.dual_encoder import DualEncoder, load_model
    from pipeline.apps.export.run import export
    from pipeline.apps.search import search
    from pipeline.apps.searcher import SearchResult
    from pipeline.encoders.load import load_encoder
    from pipeline.errors import PipelineError, UserError
    from pipeline.evaluate.config import EvaluateConfig
    from pipeline.evaluate.run import evaluate
    from pipeline.extract.config import ExtractConfig
    from pipeline.extract.datasets.importers import import_dataset
    from pipeline.extract.run import extract
    from pipeline.indexes.index import build_index
    from pipeline.projectors.run_record import AlignedRun
    from pipeline.store.reader import FeatureStore
    from pipeline.store.samples import join
    from pipeline.sweep.run import sweep

__version__ = "0.1.0"
__all__ = [
    "AlignConfig",
    "AlignedRun",
    "DualEncoder",
    "EvaluateConfig",
    "ExtractConfig",
    "FeatureStore",
    "PipelineError",
    "SearchResult",
    "UserError",
    "align",
    "build_index",
    "evaluate",
    "export",
    "extract",
    "import_dataset",
    "join",
    "load_encoder",
    "load_model",
    "search",
    "sweep",
]

_STAGES = ("align", "evaluate", "extract", "sweep")
_HOMES = {
    "AlignConfig": "align.config",
    "AlignedRun": "projectors.run_record",
    "DualEncoder": "apps.dual_encoder",
    "EvaluateConfig": "evaluate.config",
    "ExtractConfig": "extract.config",
    "FeatureStore": "store.reader",
    "PipelineError": "errors",
    "SearchResult": "apps.searcher",
    "UserError": "errors",
    "build_index": "indexes.index",
    "export": "apps.export.run",
    "import_dataset": "extract.datasets.importers",
    "join": "store.samples",
    "load_encoder": "encoders.load",
    "load_model": "apps.dual_encoder",
    "search": "apps.search",
}
"""Name → the module that it lies in."""


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name in _STAGES:
        return import_module(f"pipeline.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(import_module(f"pipeline.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Stage(ModuleType):
    """A subpackage that is called like the function of its name."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(import_module(f"{self.__name__}.run"), name)(*arguments, **options)


class _Package(ModuleType):
    """This module: when the import system puts a stage's subpackage into it, that becomes callable."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _STAGES and type(value) is ModuleType:
            value.__class__ = _Stage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
