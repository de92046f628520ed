"""A recipe: everything that a method says about how projectors are made. Presets are in `pipeline.align.methods`.

recipe = make_recipe("structure", {"training": {"epochs": 40}, "dim": 256})
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pipeline.align.methods import METHODS
from pipeline.align.options import HubnessOptions, ObjectiveOptions, require
from pipeline.config import build
from pipeline.errors import UnknownNameError

CLOSED_FORMS = ("cca", "procrustes", "ridge", "pls", "asif")
"""Algorithms that need no training."""

AUTO = "auto"
"""A learning rate that is found before training."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The optimiser and how long it runs."""

    epochs: int = 60
    """Passes over the training images; `max_steps` may end the run earlier."""
    max_steps: int | None = None
    """Upper limit of optimiser steps."""
    min_steps: int = 200
    """Few pairs make few steps an epoch: at least this many steps are planned (still below `max_steps`)."""
    batch_size: int = 512
    """Pairs in a batch; batches of an epoch are cut to nearly equal size, nothing is dropped."""
    learning_rate: float | Literal["auto"] = 1e-3
    """Peak of the schedule: linear warm-up, then half a cosine to 0. `auto`: each seed's own, found on its training
    pairs before it trains (`pipeline.align.lr_finder`)."""
    warm_up: float = 0.05
    """Share of all steps that warm up."""
    weight_decay: float = 1e-4
    """AdamW's decay, on matrices only."""
    betas: tuple[float, ...] = (0.9, 0.95)
    """AdamW's two betas."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 leaves it alone."""
    validations: int = 20
    """How often a run is validated, evenly spread over its steps."""
    validation_images: int = 500
    """Images of the validation split that these validations look at; the best weights' metrics come from all."""
    patience: int = 6
    """Validations without improvement that end a run; 0 never does."""

    def __post_init__(self) -> None:
        positive = ["epochs", "batch_size", "validations", "validation_images"]
        if self.learning_rate != AUTO:
            positive.append("learning_rate")
        for name in positive:
            require(0 < getattr(self, name) < math.inf, f"training.{name}", "above 0", getattr(self, name))
        for name in ("weight_decay", "clip", "patience", "min_steps"):
            require(0 <= getattr(self, name) < math.inf, f"training.{name}", "at least 0", getattr(self, name))
        require(self.batch_size >= 2, "training.batch_size", "at least 2", self.batch_size)
        require(self.validation_images >= 2, "training.validation_images", "at least 2", self.validation_images)
        require(self.max_steps is None or self.max_steps > 0, "training.max_steps", "above 0", self.max_steps)
        require(0 <= self.warm_up <= 1, "training.warm_up", "in [0, 1]", self.warm_up)
        fits = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(fits, "training.betas", "two numbers in [0, 1)", self.betas)


@dataclass(frozen=True, kw_only=True)
class Recipe(ObjectiveOptions):
    """How projectors are made from pairs; the slots of a training step are inherited."""

    algorithm: Literal["train", "cca", "procrustes", "ridge", "pls", "asif"] = "train"
    """Gradient descent, or one of the closed forms."""
    closed_form: dict[str, Any] = field(default_factory=dict)
    """Options of the closed form (of the start, where `start` is one)."""
    start: Literal["random", "cca"] = "random"
    """Where training starts: random projectors, or linear ones filled by ridge CCA."""
    projector: str = "linear"
    """A name of `pipeline.projectors.table.PROJECTORS`, for both sides unless one of the next two says otherwise."""
    image_projector: str | None = None
    """The image side's own projector: `identity` leaves it as it is (LiT, arXiv 2111.07991; ShareLock, 2410.07173)."""
    text_projector: str | None = None
    """The text side's own projector."""
    projector_settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the projectors beyond their widths; an identity gets none of them."""
    normalise_input: Literal["none", "unit", "standardise"] = "unit"
    """What a projector does to the raw features first; statistics come from training pairs."""
    dim: int = 256
    """Width d of the shared space; where a side is an identity, that side's own width counts instead."""
    captions: Literal["one", "all"] = "one"
    """`one`: an epoch draws one caption an image; `all`: each caption is a pair, captions of one image no strangers."""
    training: TrainingOptions = field(default_factory=TrainingOptions)
    """Optimiser and length."""
    hubness: HubnessOptions = field(default_factory=HubnessOptions)
    """A correction of the finished projectors."""
    layers: str = "pair"
    """What `--layers auto` means for this method: an expression as in `AlignConfig.layers`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.dim > 0, "dim", "above 0", self.dim)
        kinds = self.projectors
        linear = self.start == "random" or kinds == ("linear", "linear")
        require(linear, "projector", "linear where training starts from CCA", " and ".join(kinds))
        rate_is_found = self.trained or self.training.learning_rate != AUTO
        require(rate_is_found, "training.learning_rate", f"as a number: {self.algorithm} trains nothing", AUTO)
        trains = not self.trained or kinds != ("identity", "identity")
        require(self.layers.strip() != "auto", "layers", "of a method other than auto", self.layers)
        require(trains, "projector", "with something to train on one side at least", "identity on both")

    @property
    def finds_rate(self) -> bool:
        """Whether the learning rate is found before training."""
        return self.training.learning_rate == AUTO

    @property
    def projectors(self) -> tuple[str, str]:
        """Names of the image side's and of the text side's projector."""
        return self.image_projector or self.projector, self.text_projector or self.projector

    @property
    def trained(self) -> bool:
        """Whether there is gradient descent."""
        return self.algorithm == "train"


def with_rate(recipe: Recipe, rate: float) -> Recipe:
    """Return a recipe with another peak of its learning rate."""
    return replace(recipe, training=replace(recipe.training, learning_rate=rate))


def make_recipe(method: str, settings: Mapping[str, Any] | None = None, *, where: str = "align settings") -> Recipe:
    """Return a method's recipe with some settings changed.

    Args:
        method: A name of `METHODS`.
        settings: Changes, nested as the recipe is: {"structure": {"weight": 3.0}}.
        where: Where the changes came from, for the error.

    Raises:
        UnknownNameError: No such method; lists the known ones.
        UserError: Lists every unknown or impossible setting with its path.
    """
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS, "--method")
    return build(Recipe, merge(METHODS[method], settings or {}), where=where)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings with changes laid over them; neither argument is touched."""
    merged = dict(base)
    for name, value in changes.items():
        below = merged.get(name)
        merged[name] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
