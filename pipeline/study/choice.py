"""Layers that were chosen, kept beside a sweep's cells: what one worker chose, the others read.

`layers/<digest>/<expression>.json`; the scores of all pairs of layers lie beside it as `layer_pairs.json`.
"""

import json
import re
from pathlib import Path

from pipeline.align.config import AlignConfig
from pipeline.errors import UserError
from pipeline.files import write_atomically
from pipeline.projectors.table import read_json
from pipeline.store.side import LayerRef

Layers = tuple[tuple[LayerRef, ...], tuple[LayerRef, ...]]
"""Image layers and text layers."""


SCORED = ("pair", "stack")
"""Expressions that the scores of all pairs of layers decide."""


def takes_work(expression: str) -> bool:
    """Whether features must be looked at to know what an expression of layers means."""
    return expression in SCORED or "grow" in expression or "spread" in expression


def choice_path(folder: Path, config: AlignConfig) -> Path:
    """Return the file of what an expression meant for one choice of training data."""
    slug = re.sub(r"[^A-Za-z0-9.=-]", "_", config.layer_expression).lstrip(".")
    return folder / f"{slug or '_'}-{config.stack}.json"


def known_choice(path: Path, digest: str) -> Layers | None:
    """Return the layers that were chosen for the same features and training data, or None."""
    if not path.is_file():
        return None
    try:
        data = read_json(path, "chosen layers")
    except UserError:
        return None
    if data.get("digest") != digest:
        return None
    return _layers(data["image"]), _layers(data["text"])


def save_choice(path: Path, digest: str, layers: Layers) -> None:
    """Write chosen layers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"digest": digest, "image": layers[0], "text": layers[1]}
    write_atomically(path, (json.dumps(data) + "\n").encode())


def _layers(values: list[tuple[int, str]]) -> tuple[LayerRef, ...]:
    return tuple(LayerRef(store, name) for store, name in values)
