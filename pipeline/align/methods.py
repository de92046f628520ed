"""The methods by name: presets of a recipe, plain data. `pipeline align --method NAME` takes one; a line adds one.

A `*_published` preset follows the paper's own numbers where it gives any (docs of each slot say which); the short names
are the same ideas with settings that suit a few thousand pairs. Nothing here was chosen on a test split.

recipe = make_recipe("structure", {"training": {"epochs": 40}, "dim": 256})
"""

from collections.abc import Mapping
from typing import Any

from pipeline.align.recipe import Recipe
from pipeline.config import build
from pipeline.errors import UnknownNameError

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
