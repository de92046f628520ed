"""A workbench: a sweep's stores opened once, features read once for all cells that share layers.

bench = Workbench(config); made = bench.make(cell); metrics, ranks = measure(bench, made)
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.align.config import AlignConfig
from pipeline.align.layer_choice import choose_layers
from pipeline.align.pairs import Drawn, Splits, draw, split_pairs
from pipeline.align.resume import known_scores, layers_digest, save_scores
from pipeline.align.run import make_seed
from pipeline.align.tensors import PairTensors
from pipeline.align.train import Trained
from pipeline.evaluate.data import TestPairs, pairs_of_split
from pipeline.evaluate.zero_shot import ZeroShotSet, zero_shot_set
from pipeline.progress import silent
from pipeline.runtime import resolve_device
from pipeline.store.side import LayerRef, Side
from pipeline.study.cells import Cell
from pipeline.study.choice import Layers, choice_path, known_choice, save_choice, takes_work
from pipeline.study.config import SweepConfig
from pipeline.study.corrupt import swap_captions

KEPT = 2  # sets of layers whose features stay in memory


@dataclass(frozen=True)
class Made:
    """A cell's projectors and where they come from."""

    cell: Cell
    layers: Layers
    trained: Trained


class Workbench:
    """Everything that the cells of a sweep share.

    Args:
        config: The sweep.

    Raises:
        UserError: A store cannot be used, or there are too few pairs.
    """

    def __init__(self, config: SweepConfig) -> None:
        self.config = config
        self.sides = (Side.open("image", config.image), Side.open("text", config.text))
        row = next(iter(config.methods))
        any_cell = config.align(row, config.pairs[0], config.captions[0], config.layers[0])
        self.splits: Splits = split_pairs(*self.sides, any_cell, silent)
        self.device = resolve_device(config.device)
        self._features: OrderedDict[Layers, _Features] = OrderedDict()
        self._chosen: dict[Path, Layers] = {}

    @cached_property
    def test(self) -> TestPairs | None:
        """The pairs that cells are measured on; None where only validation is."""
        return None if self.config.split is None else pairs_of_split(*self.sides, self.config.split)

    @cached_property
    def class_sets(self) -> list[ZeroShotSet]:
        """The zero-shot sets."""
        if self.config.split is None:
            return []
        return [
            zero_shot_set(each.name, Side.open("image", each.image), Side.open("text", each.classes), each.split)
            for each in self.config.classes
        ]

    @cached_property
    def changed_texts(self) -> dict[str, Side]:
        """Stores of changed captions by name."""
        return {name: Side.open("text", paths) for name, paths in self.config.corruption.texts.items()}

    def make(self, cell: Cell) -> Made:
        """Return a cell's projectors.

        Raises:
            PipelineError: They cannot be made of these pairs.
        """
        layers = self.layers(cell)
        features = self.features(layers)
        data = features.train.pick(self.drawn(cell))
        blocks = (self.sides[0].widths(layers[0]), self.sides[1].widths(layers[1]))
        recipe = cell.config(self.config).recipe()
        return Made(cell, layers, make_seed(recipe, data, features.validation, blocks, cell.seed))

    def drawn(self, cell: Cell, seed: int | None = None) -> Drawn:
        """Return the training data of a cell, or what another seed would draw there."""
        seed = cell.seed if seed is None else seed
        found = draw(*self.sides, self.splits.train, cell.config(self.config), seed)
        return swap_captions(found, cell.swapped, seed) if cell.swapped else found

    def layers(self, cell: Cell) -> Layers:
        """Return the layers of a cell; chosen by the first seed's data, once for all methods that want the same."""
        config = cell.config(self.config)
        digest = layers_digest(*self.sides, config)
        name = f"{digest[:16]}{f'-swap{100 * cell.swapped:g}' if cell.swapped else ''}"
        path = choice_path(self.config.out / "layers" / name, config)
        if path not in self._chosen:
            known = known_choice(path, digest)
            self._chosen[path] = self._choose(cell, config, path, digest) if known is None else known
        return self._chosen[path]

    def _choose(self, cell: Cell, config: AlignConfig, path: Path, digest: str) -> Layers:
        known = known_scores(path.parent, digest)
        pairs = self.splits.train.pick(self.drawn(cell, config.seeds[0]))
        chosen = choose_layers(*self.sides, pairs, config, silent, known, self.splits.validation)
        if chosen.scores is not None and known is None:
            save_scores(path.parent, digest, chosen.scores)
        if takes_work(config.layer_expression):
            save_choice(path, digest, (chosen.image, chosen.text))
        return chosen.image, chosen.text

    def features(self, layers: Layers) -> "_Features":
        """Return the features of layers, read once; the least recently used are forgotten."""
        if layers not in self._features:
            while len(self._features) >= KEPT:
                self._features.popitem(last=False)
            self._features[layers] = _Features(self, layers)
        self._features.move_to_end(layers)
        return self._features[layers]

    def agreement(self) -> list[float]:
        """Return how far each measured caption [P] says what the other captions of its image say.

        It is the mean cosine of the frozen text embeddings (last layers, centred) to those others, 0 where there is
        none; no method decides it. A caption that agrees little is matched weakly with its image.
        """
        data = self.test
        if data is None:
            return []
        last = [LayerRef(index, store.layers[-1].name) for index, store in enumerate(data.text.stores)]
        features = data.text.read(last, data.pairs.caption_rows, constant_allowed=True).double()
        unit = torch.nn.functional.normalize(features - features.mean(dim=0), dim=1)
        owner = torch.from_numpy(data.pairs.caption_image)
        total = torch.zeros(len(data.pairs.image_rows), unit.shape[1], dtype=torch.float64).index_add_(0, owner, unit)
        others = torch.bincount(owner)[owner] - 1
        cosine = ((total[owner] - unit) * unit).sum(dim=1) / others.clamp(min=1)
        return [float(value) for value in cosine]

    def labels(self, layers: Layers) -> dict[str, list[str]]:
        """Return the layers' names, each side."""
        return {
            side.modality: [side.label(layer) for layer in chosen]
            for side, chosen in zip(self.sides, layers, strict=True)
        }


class _Features:
    """The features of one choice of layers; each part is read when it is first asked for."""

    def __init__(self, bench: Workbench, layers: Layers) -> None:
        self._bench, self._layers = bench, layers

    def prefetch(self) -> None:
        """Read everything now, so that no cell's time holds it."""
        _ = (self.train, self.validation, self.test, self.classes, self.changed)

    @cached_property
    def train(self) -> PairTensors:
        """All training pairs."""
        return PairTensors.read(self._bench.sides, self._layers, self._bench.splits.train, self._bench.device)

    @cached_property
    def validation(self) -> PairTensors:
        """All validation pairs."""
        return PairTensors.read(self._bench.sides, self._layers, self._bench.splits.validation, self._bench.device)

    @cached_property
    def test(self) -> tuple[Tensor, Tensor]:
        """Images [M, D₁] and captions [P, D₂] of the measured split, on the CPU."""
        data = self._bench.test
        if data is None:
            return torch.empty(0, 0), torch.empty(0, 0)
        image = data.image.read(self._layers[0], data.pairs.image_rows)
        return image, data.text.read(self._layers[1], data.pairs.caption_rows)

    @cached_property
    def classes(self) -> list[tuple[Tensor, Tensor, NDArray[np.int64]]]:
        """Of each zero-shot set: images [N, D₁], prompts [Q, D₂], class of each prompt [Q]."""
        return [self._class_set(data) for data in self._bench.class_sets]

    def _class_set(self, data: ZeroShotSet) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
        names = data.prompts.samples.label
        rows = np.array([row for row, label in enumerate(names) if label], dtype=np.int64)
        known = {label: index for index, label in enumerate(data.classes)}
        owner = np.array([known[names[row]] for row in rows], dtype=np.int64)
        return data.image.read(self._layers[0], data.rows), data.prompts.read(self._layers[1], rows), owner

    @cached_property
    def changed(self) -> dict[str, tuple[Tensor, NDArray[np.int64]]]:
        """Of each store of changed captions: features [Q, D₂] and the test caption that each was [Q]."""
        data = self._bench.test
        if data is None:
            return {}
        place = {name: at for at, name in enumerate(data.caption_ids)}
        found = {}
        for name, side in self._bench.changed_texts.items():
            kept = [(row, place[id_]) for row, id_ in enumerate(side.samples.sample_id) if id_ in place]
            rows, captions = (np.array(part, dtype=np.int64) for part in zip(*kept, strict=True))
            found[name] = (side.read(self._layers[1], rows), captions)
        return found
