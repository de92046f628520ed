"""The projectors that training starts from: random ones of the recipe's kind, or linear ones filled by ridge CCA."""

import torch

from pipeline.align.closed_form import solve
from pipeline.align.recipe import Recipe
from pipeline.align.tensors import PairTensors
from pipeline.projectors.base import Projector
from pipeline.projectors.table import build_projector


def starting_projectors(
    train: PairTensors, validation: PairTensors, recipe: Recipe, blocks: tuple[list[int], list[int]], seed: int
) -> tuple[Projector, Projector]:
    """Return an image and a text projector on the data's device, input statistics taken from training pairs.

    Args:
        train: Training pairs.
        validation: Validation pairs; they choose CCA's ridge strength.
        recipe: Kind, width and start.
        blocks: Widths of the concatenated layers of each side.
        seed: Decides random weights; the global random state is left as it was.

    Raises:
        UnknownNameError: No such projector.
        UserError: The projector does not take these settings.
    """
    if recipe.start == "cca":
        found = solve("cca", train, validation, recipe, blocks)
        return found.image, found.text
    kinds = recipe.projectors
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        d = _shared_width(recipe, blocks)
        image = _random(kinds[0], recipe, blocks[0], d)
        text = _random(kinds[1], recipe, blocks[1], d)
    image, text = image.to(train.device), text.to(train.device)
    image.fit_input(train.image)
    text.fit_input(train.text)
    return image, text


def _shared_width(recipe: Recipe, blocks: tuple[list[int], list[int]]) -> int:
    """Return d: a side that is left as it is decides it."""
    kept = [sum(widths) for kind, widths in zip(recipe.projectors, blocks, strict=True) if kind == "identity"]
    return kept[0] if kept else recipe.dim


def _random(kind: str, recipe: Recipe, blocks: list[int], d: int) -> Projector:
    own = {"normalise_input": recipe.normalise_input, "blocks": blocks, "d": d}
    extra = {} if kind == "identity" else recipe.projector_settings
    return build_projector(kind, {"d_in": sum(blocks), **own, **extra}, where="align settings: projector_settings")
