"""Search the images of a run's store by a sentence or by a picture: `search(run, "two dogs")`.

Run by `pipeline search` and, many queries at a time, by `pipeline serve`. The store's features are projected once; the
search is exact below a million images.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.apps.config import SearchConfig
from pipeline.apps.dual_encoder import DualEncoder
from pipeline.apps.opening import OpenedRun
from pipeline.apps.searcher import Searcher, SearchResult
from pipeline.encoders.load import trust_modules
from pipeline.storage.contract import Place


def open_searcher(config: SearchConfig, kind: str = "auto") -> Searcher:
    """Open a run with its stores: those given, else those that it was trained on; an index is of the kind.

    Raises:
        UserError: The run or its image store is not there, or a module that is trusted.
    """
    trust_modules(config.trust_module)
    model = DualEncoder.open(config.run, seed=config.seed, device=config.device)
    opened = OpenedRun(model.run, config.store, config.text_store)
    return Searcher(model, opened, split=config.split, index=kind, stored=config.index)


def search(
    run: Place,
    query: str | Path,
    *,
    top: int = 10,
    seed: int | None = None,
    image: Sequence[Place] = (),
    text: Sequence[Place] = (),
    split: str | None = None,
    index: str = "auto",
    device: str = "cpu",
) -> SearchResult:
    """Search a run's images once.

    Args:
        run: The run's folder.
        query: A text (`str`) or a picture's file (`Path`).
        top: How many to return.
        seed: Which seed's projectors (default: the first).
        image: Image stores (default: those of the run).
        text: Text stores (default: those of the run, where they are still there).
        split: Only images of this split.
        index: Search index: auto, torch, flat, ivf or hnsw.
        device: A torch device for the encoder.

    Raises:
        KeyMismatchError: A store or an encoder does not fit the run.
        UserError: A folder, file, seed or split is missing.
    """
    stores, texts = tuple(image), tuple(text)
    config = SearchConfig(run=run, store=stores, text_store=texts, seed=seed, split=split, device=device)
    searcher = open_searcher(config, index)
    return searcher.by_image(query, top) if isinstance(query, Path) else searcher.by_text(query, top)
