"""The cells of a sweep: what each one is, its file, and the digest of all that its result depends on."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from pipeline.align.config import AlignConfig
from pipeline.align.run import REVISION as ALIGN_REVISION
from pipeline.align.run import side_digest
from pipeline.errors import UserError
from pipeline.files import spaced_json_digest
from pipeline.storage.contract import Place
from pipeline.store.views import Side
from pipeline.sweep.config import SweepConfig

REVISION = 1
"""Raised whenever the same projectors would be measured otherwise: cells of older code are then redone."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of one seed."""

    row: str
    """Name of the method in the tables."""
    pairs: int | None
    """Training images; None is all."""
    captions: int | None
    """Captions of each; None is all."""
    layers: str
    """As the sweep says it; a row with layers of its own stands with the first of the sweep's."""
    swapped: float
    """Share of the training images that got another's captions."""
    seed: int
    """The seed."""

    @property
    def name(self) -> str:
        """Its file's name, without ending: `cca/n1000-c5-auto-seed1`."""
        swapped = f"-swap{100 * self.swapped:g}" if self.swapped else ""
        return (
            f"{_slug(self.row)}/n{self.pairs or 'all'}-c{self.captions or 'all'}-{_slug(self.layers)}{swapped}"
            f"-seed{self.seed}"
        )

    def config(self, sweep: SweepConfig) -> AlignConfig:
        """Return the `align` settings that the cell is a seed of."""
        return sweep.align(self.row, self.pairs, self.captions, self.layers)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=-]", "_", text).lstrip(".") or "_"


def cells_of(config: SweepConfig) -> list[Cell]:
    """Return every cell, those that share layers and data side by side.

    Raises:
        UserError: Two cells would share a file.
    """
    lists = (config.layers, config.captions, config.pairs, config.swapped, config.methods, config.seeds)
    cells = dict.fromkeys(
        Cell(
            row=row,
            pairs=pairs,
            captions=captions,
            layers=config.layers[0] if config.methods[row].layers else layers,
            swapped=swapped,
            seed=seed,
        )
        for layers, captions, pairs, swapped, row, seed in product(*lists)
    )
    seen: dict[str, Cell] = {}
    for cell in cells:
        if seen.setdefault(cell.name.lower(), cell) is not cell:
            found = f"two that are both written as {cell.name}"
            raise UserError(expected="methods and layers of different names", found=found, where="sweep")
    return list(cells)


class Digests:
    """Digests of cells; the stores are looked at once.

    Args:
        config: The sweep.
        sides: Its opened image and text sides.
    """

    def __init__(self, config: SweepConfig, sides: tuple[Side, Side]) -> None:
        self._config = config
        measured: list[Any] = []
        if config.split is not None:
            measured = [config.split, list(config.corruption.image_noise), *_measured_stores(config)]
        features = [side_digest(side, side.layers()) for side in sides]
        self._shared = spaced_json_digest([REVISION, ALIGN_REVISION, features, measured])

    def of(self, cell: Cell) -> str:
        """Return the digest of all that a cell's result depends on."""
        align = cell.config(self._config)
        names = ("layers", "layer_metric", "stack", "train_split", "validation_split")
        settings = {name: getattr(align, name) for name in names}
        recipe = dataclasses.asdict(align.recipe())
        drawn = [cell.pairs, cell.captions, cell.swapped, cell.seed, align.seeds[0]]
        return spaced_json_digest([self._shared, settings, recipe, drawn])


def _measured_stores(config: SweepConfig) -> Iterator[list[Any]]:
    """Yield what the result depends on beside the two sides: zero-shot sets and changed captions."""
    for each in config.classes:
        yield [each.name, each.split, *_stores("image", each.image), *_stores("text", each.classes)]
    for name, paths in config.corruption.texts.items():
        yield [name, *_stores("text", paths)]


def _stores(modality: str, paths: tuple[Place, ...]) -> Iterator[Any]:
    side = Side.open(modality, paths)
    yield side_digest(side, side.layers())
