"""A workbench: stores opened once, features read once for all cells that share layers; and what a cell is worth.

bench = Workbench(config); aligned = bench.align(cell); metrics, ranks = measure(bench, aligned)

Layers that had to be computed lie in `layers/<digest>/<expression>.json` beside the cells: what one worker chose, the
others read; the scores of all pairs of layers stand there as `layer_pairs.json`. What measures a cell is what
`pipeline evaluate` measures by, so that a cell and a report of the same run agree digit for digit.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.align.config import AlignConfig
from pipeline.align.fit import Trained
from pipeline.align.layer_choice import choose_layers
from pipeline.align.pairs import Layers, PairFeatures, PairSet, Splits, draw, split_pairs
from pipeline.align.run import fit_seed, known_scores, layers_digest, save_scores
from pipeline.errors import UserError
from pipeline.evaluate.data import TestPairs, ZeroShotSet, pairs_of_split, zero_shot_set
from pipeline.evaluate.results import IMAGE_RETRIEVAL, TEXT_RETRIEVAL, zero_shot_direction
from pipeline.files import read_json, write_atomically
from pipeline.layers import LayerRef
from pipeline.metrics.calibration import TopProbabilities, confidences, reliability
from pipeline.metrics.classification import classifier, zero_shot_metrics
from pipeline.metrics.retrieval import cross_ranks, ranks
from pipeline.metrics.similarity import continuity, modality_gap, trustworthiness
from pipeline.projectors.base import Task, embed_blocks
from pipeline.runtime import resolve_device
from pipeline.store.views import Rows, Side
from pipeline.sweep.cells import Cell
from pipeline.sweep.config import SweepConfig

KEPT = 2  # sets of layers whose features stay in memory
SCORED = ("pair", "stack")
"""Expressions that the scores of all pairs of layers decide."""
Ranks = NDArray[np.int64]
Measured = tuple[dict[str, float], dict[str, Ranks]]
"""Metrics by name, and direction → ranks of all queries."""

CUTS = (1, 5, 10)
NEIGHBOURS = 5
GEOMETRY_ROWS = 500


@dataclass(frozen=True)
class AlignedCell:
    """A cell's projectors and the layers that they take."""

    cell: Cell
    layers: Layers
    trained: Trained


@dataclass(frozen=True, kw_only=True)
class Features:
    """The features of one choice of layers: train and validation on the device, the others on the CPU."""

    train: PairFeatures
    """All training pairs."""
    validation: PairFeatures
    """All validation pairs."""
    test: tuple[Tensor, Tensor] | None
    """Images [M, D₁] and captions [P, D₂] of the measured split, where there is one."""
    classes: list[tuple[Tensor, Tensor, Rows]]
    """Of each zero-shot set: images [N, D₁], prompts [Q, D₂], class of each prompt [Q]."""
    changed: dict[str, tuple[Tensor, Rows]]
    """Of each store of changed captions: features [Q, D₂] and the test caption that each was [Q]."""


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
        self.splits: Splits = split_pairs(*self.sides, any_cell)
        self.device = resolve_device(config.device)
        self._features: OrderedDict[Layers, Features] = OrderedDict()
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

    def align(self, cell: Cell) -> AlignedCell:
        """Return a cell's projectors.

        Raises:
            PipelineError: They cannot be made of these pairs.
        """
        layers = self.layers(cell)
        features = self.features(layers)
        data = features.train.pick(self.drawn(cell))
        recipe = cell.config(self.config).recipe()
        return AlignedCell(cell, layers, fit_seed(recipe, data, features.validation, cell.seed))

    def drawn(self, cell: Cell, seed: int | None = None) -> PairSet:
        """Return the training data of a cell, or what another seed would draw there."""
        seed = cell.seed if seed is None else seed
        found = draw(*self.sides, self.splits.train, cell.config(self.config), seed)
        return swap_captions(found, cell.swapped, seed) if cell.swapped else found

    def layers(self, cell: Cell) -> Layers:
        """Return the layers of a cell; chosen by the first seed's data, once for all methods that want the same."""
        config = cell.config(self.config)
        digest = layers_digest(*self.sides, config)
        folder = f"{digest[:16]}{f'-swap{100 * cell.swapped:g}' if cell.swapped else ''}"
        path = self.config.out / "layers" / folder / _choice_file(config)
        if path not in self._chosen:
            self._chosen[path] = _known_choice(path, digest) or self._choose(cell, config, path, digest)
        return self._chosen[path]

    def _choose(self, cell: Cell, config: AlignConfig, path: Path, digest: str) -> Layers:
        known = known_scores(path.parent, digest)
        pairs = self.splits.train.pick(self.drawn(cell, config.seeds[0]))
        chosen = choose_layers(self.sides, pairs, self.splits.validation, config, known=known)
        if chosen.scores is not None and known is None:
            save_scores(path.parent, digest, chosen.scores)
        if takes_work(config.layer_expression):
            path.parent.mkdir(parents=True, exist_ok=True)
            data = {"digest": digest, "image": chosen.image, "text": chosen.text}
            write_atomically(path, (json.dumps(data) + "\n").encode())
        return chosen.image, chosen.text

    def features(self, layers: Layers) -> Features:
        """Return the features of layers, read once; the least recently used are forgotten."""
        if layers not in self._features:
            while len(self._features) >= KEPT:
                self._features.popitem(last=False)
            self._features[layers] = self._read(layers)
        self._features.move_to_end(layers)
        return self._features[layers]

    def _read(self, layers: Layers) -> Features:
        test = self.test
        return Features(
            train=PairFeatures.read(self.sides, layers, self.splits.train, self.device),
            validation=PairFeatures.read(self.sides, layers, self.splits.validation, self.device),
            test=None
            if test is None
            else (
                test.image.read(layers[0], test.pairs.image_rows),
                test.text.read(layers[1], test.pairs.caption_rows),
            ),
            classes=[_classes(data, layers) for data in self.class_sets],
            changed={name: _changed(side, layers, test) for name, side in self.changed_texts.items() if test},
        )

    def labels(self, layers: Layers) -> dict[str, list[str]]:
        """Return the layers' names, each side."""
        return {
            side.modality: [side.label(layer) for layer in chosen]
            for side, chosen in zip(self.sides, layers, strict=True)
        }


def _classes(data: ZeroShotSet, layers: Layers) -> tuple[Tensor, Tensor, Rows]:
    rows, owner = data.prompt_rows
    return data.image.read(layers[0], data.rows), data.prompts.read(layers[1], rows), owner


def _changed(side: Side, layers: Layers, test: TestPairs) -> tuple[Tensor, Rows]:
    place = {name: at for at, name in enumerate(test.caption_ids)}
    kept = [(row, place[id_]) for row, id_ in enumerate(side.samples.sample_id) if id_ in place]
    rows, captions = (np.array(part, dtype=np.int64) for part in zip(*kept, strict=True))
    return side.read(layers[1], rows), captions


def swap_captions(drawn: PairSet, share: float, seed: int) -> PairSet:
    """Give a share of the drawn images the captions of another of them.

    The images are drawn by seed, a smaller share is a part of a larger one, and each gets the captions of the next in
    a random circle, so that none keeps its own (one image alone is left as it is).

    Args:
        drawn: Training data.
        share: Share of the m images, 0 to 1.
        seed: Draws the images.
    """
    images = len(drawn)
    circle = np.random.default_rng((seed, 2)).permutation(images)[: round(share * images)]
    if len(circle) < 2:
        return drawn
    source = np.arange(images)
    source[circle] = np.roll(circle, 1)
    moved = drawn.take(source)
    return PairSet(drawn.image_rows, moved.caption_rows, moved.starts)


def takes_work(expression: str) -> bool:
    """Whether features must be looked at to know what an expression of layers means."""
    return expression in SCORED or "grow" in expression or "spread" in expression


def _choice_file(config: AlignConfig) -> str:
    slug = re.sub(r"[^A-Za-z0-9.=-]", "_", config.layer_expression).lstrip(".")
    return f"{slug or '_'}-{config.stack}.json"


def _known_choice(path: Path, digest: str) -> Layers | None:
    """Return the layers that were chosen for the same features and training data, or None."""
    try:
        data = read_json(path, "chosen layers") if path.is_file() else {}
    except UserError:
        return None
    return (_layers(data["image"]), _layers(data["text"])) if data.get("digest") == digest else None


def _layers(values: list[tuple[int, str]]) -> tuple[LayerRef, ...]:
    return tuple(LayerRef(store, name) for store, name in values)


def measure(bench: Workbench, aligned: AlignedCell) -> Measured:
    """Measure a cell on the sweep's split; nothing where it has none.

    Returns:
        Metrics as fractions (`text_retrieval_recall@1`, `mean_recall`, `<set>/acc1`, ...; what is broken at test time
        after `noise 0.5: ` and the like), and direction → ranks of all queries.

    Raises:
        UserError: Embeddings are not finite.
    """
    features = bench.features(aligned.layers)
    if bench.test is None or features.test is None:
        return {}, {}
    owner = torch.from_numpy(bench.test.pairs.caption_image)
    image, text = (embed(aligned, side, part) for side, part in zip(("image", "text"), features.test, strict=True))
    temperature = aligned.trained.temperature or 1.0
    metrics, found = _retrieval(image, text, owner, temperature)
    metrics["modality_gap"] = modality_gap(image, text)
    metrics |= _geometry(features.test, (image, text), first_captions(owner, len(image)))
    for data, (pictures, prompts, classes) in zip(bench.class_sets, features.classes, strict=True):
        embedded = embed(aligned, "image", pictures, "classification")
        weights = classifier(embed(aligned, "text", prompts, "classification"), classes, len(data.classes))
        result = zero_shot_metrics(embedded, weights, data.target)
        scale = aligned.trained.image.cosine_scale("classification")
        sure = confidences(embedded, weights, data.target, scale * temperature)
        own = result.metrics | _calibration(sure.top, sure.correct)
        metrics |= {f"{data.name}/{name}": value for name, value in own.items()}
        found[zero_shot_direction(data.name)] = result.ranks
    for name, broken in _corrupted(bench, aligned, features.test[0], (image, text), owner):
        metrics |= {f"{name}: {metric}": value for metric, value in recalls(broken).items()}
        found |= {f"{name}: {direction}": held for direction, held in broken.items()}
    return metrics, found


def embed(aligned: AlignedCell, modality: str, features_ND: Tensor, task: Task = "retrieval") -> Tensor:
    """Return unit-length embeddings [N, d] on the CPU.

    Raises:
        UserError: One is not finite.
    """
    projector = (aligned.trained.image if modality == "image" else aligned.trained.text).eval()
    return embed_blocks(projector, features_ND, task=task, where=f"{aligned.cell.name}, {modality} side")


def recalls(by_direction: Mapping[str, Ranks]) -> dict[str, float]:
    """Return recall@1/5/10 and the median rank of each direction of retrieval, and the mean of all recalls."""
    found: dict[str, float] = {}
    for direction, held in by_direction.items():
        found |= {f"{direction}_recall@{k}": float((held <= k).mean()) for k in CUTS}
    mean = sum(found.values()) / len(found)
    medians = {f"{direction}_median_rank": float(np.median(held)) for direction, held in by_direction.items()}
    return {**found, **medians, "mean_recall": mean}


def first_captions(owner_P: Tensor, images: int) -> Tensor:
    """Return the position [M] of the first caption of each of M images."""
    first = torch.full((images,), len(owner_P), dtype=torch.int64)
    return first.scatter_reduce_(0, owner_P, torch.arange(len(owner_P)), "amin")


def add_noise(features_ND: Tensor, sigma: float, seed: int) -> Tensor:
    """Return features with Gaussian noise of σ·‖x‖/√D a coordinate: at σ = 1 it is as long as the row itself."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(features_ND.shape, generator=generator)
    scale: Tensor = torch.linalg.vector_norm(features_ND, dim=1, keepdim=True) * (sigma / features_ND.shape[1] ** 0.5)
    return features_ND + noise * scale


def _retrieval(image: Tensor, text: Tensor, owner: Tensor, temperature: float) -> Measured:
    top = TopProbabilities(len(image), len(text), temperature)
    image_ranks, text_ranks = cross_ranks(image, text, owner, watch=top.watch)
    found = {TEXT_RETRIEVAL: image_ranks, IMAGE_RETRIEVAL: text_ranks}
    metrics = recalls(found)
    for direction, sure in ((TEXT_RETRIEVAL, top.by_row), (IMAGE_RETRIEVAL, top.by_column)):
        calibration = _calibration(sure, found[direction] == 1)
        metrics |= {f"{direction}_{name}": value for name, value in calibration.items()}
    return metrics, found


def _calibration(sure: NDArray[np.float64], right: NDArray[np.bool_]) -> dict[str, float]:
    return {
        "ece": reliability(sure, right).error,
        "mean_max_probability": float(sure.mean()),
        "over_confidence": float(sure.mean() - right.mean()),
    }


def _geometry(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], first: Tensor) -> dict[str, float]:
    """Return trustworthiness and continuity of both sides, on the first images and the first caption of each."""
    chosen = torch.arange(len(first))[:GEOMETRY_ROWS], first[:GEOMETRY_ROWS]
    k = min(NEIGHBOURS, (len(chosen[0]) - 1) // 2)
    found: dict[str, float] = {}
    if k >= 1:
        for modality, rows, frozen, aligned in zip(("image", "text"), chosen, before, after, strict=True):
            found[f"{modality}_trustworthiness"] = trustworthiness(frozen[rows], aligned[rows], k)
            found[f"{modality}_continuity"] = continuity(frozen[rows], aligned[rows], k)
    return found


def _corrupted(
    bench: Workbench, aligned: AlignedCell, frozen: Tensor, clean: tuple[Tensor, Tensor], owner: Tensor
) -> Iterator[tuple[str, dict[str, Ranks]]]:
    """Yield what was broken, and the ranks then; changed captions come with the same queries unchanged (`, clean`)."""
    image, text = clean
    for sigma in bench.config.corruption.image_noise:
        noisy = embed(aligned, "image", add_noise(frozen, sigma, seed=aligned.cell.seed))
        by_image, by_text = cross_ranks(noisy, text, owner)
        yield f"noise {sigma:g}", {TEXT_RETRIEVAL: by_image, IMAGE_RETRIEVAL: by_text}
    for name, (changed, captions) in bench.features(aligned.layers).changed.items():
        targets = owner[torch.from_numpy(captions)]
        yield name, {IMAGE_RETRIEVAL: ranks(embed(aligned, "text", changed), image, targets)}
        yield f"{name}, clean", {IMAGE_RETRIEVAL: ranks(text[torch.from_numpy(captions)], image, targets)}
