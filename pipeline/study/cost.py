"""What a cell will cost, in seconds of one core: for the dry run, the order of work and the bar that shows progress.

Rough on purpose: the constants are of one machine, and as cells end the rest is scaled by what they really took.
"""

from dataclasses import dataclass

from pipeline.align.config import AlignConfig
from pipeline.align.recipe import Recipe
from pipeline.align.train import planned_steps
from pipeline.store.side import Side
from pipeline.study.bench import Workbench
from pipeline.study.cells import Cell
from pipeline.study.choice import takes_work
from pipeline.study.config import SweepConfig

FLOPS = 4e10
"""Multiplications a second of one core in a product of matrices."""
STEP = 1.5e-3
"""Seconds of a training step that are not products of matrices."""
EARLY = 0.45
"""Share of the planned steps after which training stops, as a rule."""
SPARSE = 4.0
"""Cost of ASIF's representations, most of which is sorting, against the products that they begin with."""
HUBS = 2.5e-3
"""Seconds of the hubness correction for each image of its bank."""
FACTORS = {"linear": 1.0, "residual_mlp": 11.0, "residual_low_rank": 1.4, "identity": 0.1}
"""Cost of a projector's products against a linear map's."""


@dataclass(frozen=True)
class Sizes:
    """What a sweep's cells have in common."""

    widths: tuple[int, int]
    """Widths of the last layers."""
    train: int
    """Training images."""
    captions: float
    """Captions of an image."""
    validation: int
    """Validation images."""
    test: tuple[int, int]
    """Images and captions that are measured."""
    classes: int
    """Images to classify."""


def sizes_of(bench: Workbench) -> Sizes:
    """Look at the stores' manifests and splits; no feature is read."""
    train, test = bench.splits.train, bench.test
    return Sizes(
        widths=(_last(bench.sides[0]), _last(bench.sides[1])),
        train=len(train),
        captions=len(train.caption_rows) / max(len(train), 1),
        validation=len(bench.splits.validation),
        test=(0, 0) if test is None else (len(test.pairs.image_rows), len(test.pairs.caption_rows)),
        classes=sum(len(data.rows) for data in bench.class_sets),
    )


def _last(side: Side) -> int:
    return sum(store.layers[-1].width for store in side.stores)


def seconds_of(cell: Cell, config: SweepConfig, sizes: Sizes) -> float:
    """Return the expected core-seconds of a cell."""
    recipe = cell.config(config).recipe()
    images = min(cell.pairs or sizes.train, sizes.train)
    captions = images * min(cell.captions or sizes.captions, sizes.captions)
    width = int(sum(sizes.widths) * _layers(cell.config(config)))
    fit = _closed(recipe, captions, sizes, width) if not recipe.trained else _trained(recipe, images, sizes, width)
    if recipe.hubness.neighbours:
        fit += HUBS * min(images, recipe.hubness.bank)
    if recipe.trained and recipe.start != "random":
        fit += _closed(recipe, captions, sizes, width)
    return fit + _measured(recipe, images, sizes, width)


def _layers(config: AlignConfig) -> float:
    """Return how much wider than the last layers the chosen ones may be."""
    if config.layer_expression == "stack":
        return config.stack
    return 1.5 if takes_work(config.layer_expression) and config.layer_expression != "pair" else 1


def _closed(recipe: Recipe, captions: float, sizes: Sizes, width: int) -> float:
    if recipe.algorithm == "asif":
        return SPARSE * _validated(recipe, sizes, width, captions)
    solve = (captions * width**2 / 2 + 3 * width**3) / FLOPS
    return 0.05 + solve + 2 * _validated(recipe, sizes, width, recipe.dim)


def _trained(recipe: Recipe, images: int, sizes: Sizes, width: int) -> float:
    batch = min(recipe.training.batch_size, images)
    maps = 3 * batch * width * recipe.dim * sum(FACTORS.get(kind, 2.0) for kind in recipe.projectors) / 2
    pairs = 3 * batch**2 * recipe.dim
    structure = 4 * batch**2 * width if recipe.structure.weight else 0
    step = STEP + (maps + pairs + structure) / FLOPS + 12 * batch**2 * 1e-9
    checks = recipe.training.validations * _validated(recipe, sizes, width, recipe.dim)
    return EARLY * (planned_steps(images, recipe.training) * step + checks)


def _validated(recipe: Recipe, sizes: Sizes, width: int, dim: float) -> float:
    images = min(sizes.validation, recipe.training.validation_images)
    return images * (1 + sizes.captions) * (width / 2 + images) * dim / FLOPS + 0.01


def _measured(recipe: Recipe, images: int, sizes: Sizes, width: int) -> float:
    dim = SPARSE * images if recipe.algorithm == "asif" else recipe.dim
    items = sum(sizes.test) + sizes.classes
    return 0.2 + (items * width / 2 * dim + sizes.test[0] * sizes.test[1] * dim) / FLOPS
