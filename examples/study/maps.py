"""Maps: test images and captions of the shared space laid out in the plane by t-SNE, before training and after.

Before means random linear projectors, the start of the baseline. The points are kept beside the results, so that a page
made again does not train again.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples.study.config import GridSweep, Maps, StudyConfig
from examples.study.figures import Cloud
from pipeline.align.fit import Trained, initial_projectors
from pipeline.errors import MissingExtraError, UserError
from pipeline.files import write_atomically
from pipeline.parallel import one_thread
from pipeline.sweep.bench import AlignedCell, Workbench, embed, first_captions
from pipeline.sweep.cells import Cell, Digests

BEFORE = "before training"
FOLDER = "maps"


def make_maps(config: StudyConfig, parts: Sequence[GridSweep], out: Path) -> dict[str, Cloud]:
    """Return a map for each row that the study asks for, and one before training; none where it asks for none.

    Raises:
        UserError: The stores cannot be used.
        MissingExtraError: scikit-learn is not installed.
    """
    part = next((part for part in parts if config.maps is not None and part.grid == config.maps.grid), None)
    if config.maps is None or part is None:
        return {}
    bench = Workbench(part.sweep)
    digests = Digests(part.sweep, bench.sides)
    found: dict[str, Cloud] = {}
    with one_thread():
        for row in (BEFORE, *config.maps.methods):
            cell = _cell(config, part, config.baseline if row == BEFORE else row)
            path = out / FOLDER / f"{row.replace(' ', '_')}.json"
            key = f"{digests.of(cell)} {config.maps.points}"
            known = _known(path, key)
            found[row] = known or _save(path, key, _map(bench, cell, row == BEFORE, config.maps))
    return found


def _cell(config: StudyConfig, part: GridSweep, row: str) -> Cell:
    maps, sweep = config.maps, part.sweep
    return Cell(
        row=row,
        pairs=maps.pairs if maps else None,
        captions=maps.captions if maps else None,
        layers=config.methods[row].layers or sweep.layers[0],
        swapped=0.0,
        seed=sweep.seeds[0],
    )


def _map(bench: Workbench, cell: Cell, untrained: bool, maps: Maps) -> Cloud:
    aligned = _start(bench, cell) if untrained else bench.align(cell)
    features = bench.features(aligned.layers).test
    if bench.test is None or features is None:
        raise UserError(expected="a split to measure on", found="none", where="maps")
    image, text = (embed(aligned, side, part) for side, part in zip(("image", "text"), features, strict=True))
    first = first_captions(torch.from_numpy(bench.test.pairs.caption_image), len(image))
    count = min(maps.points, len(image))
    placed = _plane(torch.cat([image[:count], text[first[:count]]]))
    return Cloud(placed[:count], placed[count:])


def _start(bench: Workbench, cell: Cell) -> AlignedCell:
    layers = bench.layers(cell)
    features = bench.features(layers)
    recipe = cell.config(bench.config).recipe()
    data = features.train.pick(bench.drawn(cell))
    image, text = initial_projectors(data, features.validation, recipe, cell.seed)
    return AlignedCell(cell, layers, Trained(image=image, text=text, validation={}, steps=0, seconds=0.0))


def _plane(embeddings_ND: Tensor) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    try:
        from sklearn.manifold import TSNE
    except ModuleNotFoundError as error:
        raise MissingExtraError("scikit-learn", "pip install scikit-learn", "maps in the plane") from error
    perplexity = min(30.0, (len(embeddings_ND) - 1) / 3)
    layout = TSNE(metric="cosine", init="pca", perplexity=perplexity, random_state=0)
    return np.asarray(layout.fit_transform(embeddings_ND.numpy()), dtype=np.float64)


def _known(path: Path, key: str) -> Cloud | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Cloud(np.array(data["image"]), np.array(data["text"])) if data["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save(path: Path, key: str, cloud: Cloud) -> Cloud:
    path.parent.mkdir(parents=True, exist_ok=True)
    cloud = Cloud(np.round(cloud.image, 2), np.round(cloud.text, 2))  # what a later page will read
    data = {"key": key, "image": cloud.image.tolist(), "text": cloud.text.tolist()}
    write_atomically(path, (json.dumps(data) + "\n").encode())
    return cloud
