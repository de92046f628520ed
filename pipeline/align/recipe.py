"""A recipe: everything that a method says about how projectors are made; and the methods by name, presets of it.

recipe = make_recipe("structure", {"training": {"epochs": 40}, "dim": 256})

Frozen dataclasses that check themselves, no torch: one for each slot of a training step (the modules of
`pipeline.align.losses`), one for the optimiser, and `Recipe`, which holds them all. `METHODS` is plain data.
`pipeline align --method NAME` takes one; a line adds one. A `*_published` preset follows the paper's own numbers where
it gives any (docs of each slot say which); the short names are the same ideas with settings that suit a few thousand
pairs. Nothing here was chosen on a test split.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pipeline.config import build
from pipeline.errors import UnknownNameError, UserError

AUTO = "auto"
"""A learning rate that is found before training."""


def require(holds: bool, field: str, expected: str, found: object) -> None:
    """Complain about a field of the align settings unless a condition holds.

    Raises:
        UserError: The condition does not hold.
    """
    if not holds:
        raise UserError(expected=f"{field} {expected}", found=str(found), where="align settings")


@dataclass(frozen=True, kw_only=True)
class TemperatureOptions:
    """The temperature τ that divides the cosine similarities."""

    initial: float = 0.07
    """Value at the start (or always, where it is not learned)."""
    learned: bool = True
    """Whether τ is a parameter."""
    form: Literal["raw", "log"] = "log"
    """What is learned: τ itself (FuseMix) or ln τ (CLIP, SigLIP)."""
    minimum: float = 0.001
    """Lower clamp, applied to the parameter after each step."""
    maximum: float = 0.5
    """Upper clamp."""

    def __post_init__(self) -> None:
        """Check the options."""
        require(0 < self.minimum <= self.maximum < math.inf, "temperature.minimum", "in (0, maximum]", self.minimum)
        inside = self.minimum <= self.initial <= self.maximum
        require(inside, "temperature.initial", f"in [{self.minimum}, {self.maximum}]", self.initial)


@dataclass(frozen=True, kw_only=True)
class MixOptions:
    """FuseMix: latent mixing of the two halves of a batch."""

    enabled: bool = False
    """Whether batches are mixed."""
    alpha: float = 1.0
    """Both parameters of the Beta distribution that the coefficient is drawn from."""

    def __post_init__(self) -> None:
        """Check the options."""
        require(0 < self.alpha < math.inf, "mix.alpha", "above 0", self.alpha)


@dataclass(frozen=True, kw_only=True)
class PerturbationOptions:
    """Random perturbation of the features, in training only."""

    sigma: float = 0.0
    """Strength of the noise; 0 switches it off."""
    mode: Literal["relative", "absolute"] = "relative"
    """`relative`: σ·‖x‖/√D a coordinate; `absolute`: σ a coordinate."""

    def __post_init__(self) -> None:
        """Check the options."""
        require(0 <= self.sigma < math.inf, "perturbation.sigma", "at least 0", self.sigma)


@dataclass(frozen=True, kw_only=True)
class SmoothingOptions:
    """Embedding smoothing: part of each target's mass is spread over the batch."""

    alpha: float = 0.0
    """Share of the mass that is spread; 0 switches it off. For `per_sample` the largest share."""
    schedule: Literal["fixed", "cosine", "per_sample"] = "fixed"
    """`cosine` lets α fall to 0 over training; `per_sample` spreads more where the pair matches less."""

    def __post_init__(self) -> None:
        """Check the options."""
        require(0 <= self.alpha < 1, "smoothing.alpha", "in [0, 1)", self.alpha)


@dataclass(frozen=True, kw_only=True)
class SoftTargetOptions:
    """Targets from the similarity inside each modality's frozen features."""

    weight: float = 0.0
    """Share of each target's mass that follows the intra-modal similarity; 0 switches it off."""
    temperature: float = 0.2
    """Temperature of the intra-modal softmax; at 0.05 nearly all of a row's mass stays on the pair itself."""
    centre: bool = True
    """Whether the batch mean is taken off before the similarities."""

    def __post_init__(self) -> None:
        """Check the options."""
        require(0 <= self.weight <= 1, "soft_targets.weight", "in [0, 1]", self.weight)
        require(0 < self.temperature < math.inf, "soft_targets.temperature", "above 0", self.temperature)


@dataclass(frozen=True, kw_only=True)
class DirectionOptions:
    """How the two directions of the loss are weighted during training."""

    schedule: str = "fixed"
    """A name of `pipeline.align.losses.directions.SIGNALS`: fixed, entropy, cosine_spread, variance."""
    gamma: float = 1.0
    """Exponent of the variance signal; −1 turns the direction round, 0 is the fixed baseline."""
    beta: float = 0.9
    """Weight of the past in the moving average of the signal."""
    total: float = 1.0
    """K: what the two weights sum to."""
    minimum: float = 0.1
    """Smallest weight that a direction can get."""
    epsilon: float | None = None
    """Added to the signal before the power; None takes the signal's own (1e-8; cosine_spread 0.01)."""

    def __post_init__(self) -> None:
        """Check the options."""
        require(0 <= self.beta < 1, "direction.beta", "in [0, 1)", self.beta)
        require(0 < self.total < math.inf, "direction.total", "above 0", self.total)
        require(0 <= self.minimum <= self.total / 2, "direction.minimum", "in [0, total/2]", self.minimum)
        require(math.isfinite(self.gamma), "direction.gamma", "finite", self.gamma)
        require(self.epsilon is None or self.epsilon > 0, "direction.epsilon", "above 0", self.epsilon)


@dataclass(frozen=True, kw_only=True)
class StructureOptions:
    """STRUCTURE: keep each modality's neighbourhoods while aligning."""

    weight: float = 0.0
    """λ₀; 0 switches the regulariser off, bit for bit."""
    levels: int = 1
    """L: powers of the neighbourhood matrix that are compared."""
    temperature: float = 0.05
    """τ_s of the neighbourhood softmax; not learned."""
    form: Literal["js", "as_coded"] = "js"
    """`js`: Jensen-Shannon, bounded by ln 2; `as_coded`: KL of the mean to both, unbounded."""
    centre_first: bool = False
    """Centre before normalising (translation invariant) instead of after (as published)."""
    mask_diagonal: bool = False
    """Leave self-similarity out of the neighbourhoods."""
    warm_up: float = 0.1
    """Share of all steps over which λ rises from 0 to λ₀."""
    warm_up_steps: int | None = None
    """The same as a number of steps (as published: 1000); wins over `warm_up`."""

    def __post_init__(self) -> None:
        """Check the options."""
        require(0 <= self.weight < math.inf, "structure.weight", "at least 0", self.weight)
        require(self.levels >= 1, "structure.levels", "at least 1", self.levels)
        require(0 < self.temperature < math.inf, "structure.temperature", "above 0", self.temperature)
        require(0 <= self.warm_up <= 1, "structure.warm_up", "in [0, 1]", self.warm_up)
        steps = self.warm_up_steps
        require(steps is None or steps >= 0, "structure.warm_up_steps", "at least 0", steps)


@dataclass(frozen=True, kw_only=True)
class HubnessOptions:
    """CSLS: items that are near to everything are moved away, see `pipeline.projectors.csls`."""

    neighbours: int = 0
    """k nearest training embeddings of the other side that say how near an item is to everything; 0: no correction."""
    weight: float = 0.5
    """How much of it is taken off a score, for the image and for the text; ½ is CSLS as published."""
    bank: int = 2000
    """Training images, and means of their captions, that are kept to look for neighbours in."""

    def __post_init__(self) -> None:
        """Check the options."""
        require(self.neighbours >= 0, "hubness.neighbours", "at least 0", self.neighbours)
        require(0 < self.weight < math.inf, "hubness.weight", "above 0", self.weight)
        require(self.bank >= 1, "hubness.bank", "at least 1", self.bank)


@dataclass(frozen=True, kw_only=True)
class ObjectiveOptions:
    """What is put into each slot of a step."""

    loss: str = "info_nce"
    """A name of `pipeline.align.losses.LOSSES`."""
    temperature: TemperatureOptions = field(default_factory=TemperatureOptions)
    """τ of the loss."""
    mix: MixOptions = field(default_factory=MixOptions)
    """FuseMix."""
    perturbation: PerturbationOptions = field(default_factory=PerturbationOptions)
    """Noise on the features."""
    smoothing: SmoothingOptions = field(default_factory=SmoothingOptions)
    """Embedding smoothing."""
    soft_targets: SoftTargetOptions = field(default_factory=SoftTargetOptions)
    """Targets from the frozen features; not together with smoothing."""
    direction: DirectionOptions = field(default_factory=DirectionOptions)
    """Weights of the two directions."""
    structure: StructureOptions = field(default_factory=StructureOptions)
    """STRUCTURE."""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.smoothing.alpha > 0 and self.soft_targets.weight > 0:
            raise UserError(
                expected="either smoothing or soft targets",
                found="both",
                where="align settings",
                remedy="set smoothing.alpha or soft_targets.weight to 0",
            )


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
    pairs before it trains (`pipeline.align.fit`)."""
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
        """Check the options."""
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
    """A name of `pipeline.projectors.run_record.PROJECTORS`, for both sides unless one of the next two says other."""
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
    """`one`: an epoch draws one caption an image; `all`: each caption is a pair, those of one image never negatives."""
    training: TrainingOptions = field(default_factory=TrainingOptions)
    """Optimiser and length."""
    hubness: HubnessOptions = field(default_factory=HubnessOptions)
    """A correction of the finished projectors."""
    layers: str = "pair"
    """What `--layers auto` means for this method: an expression as in `AlignConfig.layers`."""

    def __post_init__(self) -> None:
        """Check the options."""
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
    def takes_unpaired(self) -> bool:
        """Whether images and texts without a partner can help: in CCA alone."""
        return self.algorithm == "cca"

    @property
    def trained(self) -> bool:
        """Whether there is gradient descent."""
        return self.algorithm == "train"


def with_rate(recipe: Recipe, rate: float) -> Recipe:
    """Return a recipe with another peak of its learning rate."""
    return replace(recipe, training=replace(recipe.training, learning_rate=rate))


_FUSEMIX: dict[str, Any] = {
    "projector": "residual_mlp",
    "mix": {"enabled": True},
    "temperature": {"form": "raw", "initial": 0.07, "minimum": 0.001, "maximum": 0.5},
}
_FUSEMIX_PUBLISHED: dict[str, Any] = {
    **_FUSEMIX,
    "dim": 512,
    "training": {"betas": [0.9, 0.999], "weight_decay": 0.1},
}
_SMOOTHING: dict[str, Any] = {"alpha": 0.1}
_VARIANCE: dict[str, Any] = {"schedule": "variance"}
_STRUCTURE: dict[str, Any] = {"weight": 10.0}
_STRUCTURE_PUBLISHED: dict[str, Any] = {
    "dim": 512,
    "temperature": {"initial": 0.05, "learned": False},
    "training": {"betas": [0.9, 0.95], "weight_decay": 1e-4, "batch_size": 4096, "clip": 1.0},
}

METHODS: dict[str, dict[str, Any]] = {
    # baselines
    "info_nce": {},
    "info_nce_fixed": {"temperature": {"initial": 0.05, "learned": False}},
    "info_nce_mlp": {"projector": "residual_mlp"},
    "info_nce_low_rank": {"projector": "residual_low_rank"},
    "fusemix": _FUSEMIX,
    "siglip": {"loss": "siglip", "temperature": {"initial": 0.1}},
    "dcl": {"loss": "dcl"},
    "soft_targets": {"soft_targets": {"weight": 0.2}},
    "smoothing": {"smoothing": _SMOOTHING},
    # the image side is left as it is. LiT (arXiv 2111.07991) trains the text tower behind its map, here frozen as well;
    # ShareLock (arXiv 2410.07173) freezes both towers as we do, its text map is an MLP with batch norm, ours FuseMix's
    "lit": {"image_projector": "identity"},
    "sharelock": {"image_projector": "identity", "text_projector": "residual_mlp"},
    # the three papers, all three at once, and each two of them
    "modest_align": {"smoothing": _SMOOTHING, "perturbation": {"sigma": 0.1}},
    "variance_aware": {"direction": _VARIANCE},
    "entropy_schedule": {"direction": {"schedule": "entropy"}},
    "cosine_spread": {"direction": {"schedule": "cosine_spread"}},
    "structure": {"structure": _STRUCTURE},
    "combined": {
        "smoothing": _SMOOTHING,
        "perturbation": {"sigma": 0.1},
        "direction": _VARIANCE,
        "structure": _STRUCTURE,
    },
    "modest_variance": {"smoothing": _SMOOTHING, "perturbation": {"sigma": 0.1}, "direction": _VARIANCE},
    "modest_structure": {"smoothing": _SMOOTHING, "perturbation": {"sigma": 0.1}, "structure": _STRUCTURE},
    "variance_structure": {"direction": _VARIANCE, "structure": _STRUCTURE},
    # with the papers' own numbers
    "fusemix_published": _FUSEMIX_PUBLISHED,
    "modest_align_published": {
        **_FUSEMIX_PUBLISHED,
        "smoothing": _SMOOTHING,
        "perturbation": {"sigma": 0.01, "mode": "absolute"},
    },
    "variance_aware_published": {"direction": _VARIANCE},
    "structure_published": {**_STRUCTURE_PUBLISHED, "structure": {"weight": 10.0, "warm_up_steps": 1000}},
    "combined_published": {
        **_FUSEMIX_PUBLISHED,
        "smoothing": _SMOOTHING,
        "perturbation": {"sigma": 0.01, "mode": "absolute"},
        "direction": _VARIANCE,
        "structure": {"weight": 10.0, "warm_up_steps": 1000},
    },
    # no training
    "cca": {"algorithm": "cca"},
    "procrustes": {"algorithm": "procrustes"},
    "ridge": {"algorithm": "ridge"},
    "pls": {"algorithm": "pls"},
    "asif": {"algorithm": "asif"},
    # a closed form to start from, then a short training
    "cca_then_train": {
        "start": "cca",
        "smoothing": _SMOOTHING,
        "training": {"epochs": 10, "min_steps": 60},
    },
    # what won on validation images of Flickr8k at every number of training images from 250 to 6000
    "fewpairs": {
        "algorithm": "cca",
        "closed_form": {"text_ratio": None, "power": 0.75, "ridges": [0.1, 0.3, 1.0, 3.0, 10.0, 30.0], "climb": True},
        "hubness": {"neighbours": 10},
        "layers": "grow,spread",
    },
}


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
