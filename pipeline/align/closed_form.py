"""Projectors without training, and the start that training can take from them.

Thin: `pipeline.projectors.closed_form` does the algebra; here validation pairs choose the ridge strength and the
temperature that turns cosines into probabilities (nothing else depends on it).
"""

import time
from typing import Any

from pipeline.align.hubness import without_hubs
from pipeline.align.recipe import Recipe
from pipeline.align.tensors import PairTensors
from pipeline.align.train import Trained
from pipeline.align.validation import selection_score, validate, validation_temperature
from pipeline.projectors.base import Projector
from pipeline.projectors.closed_form import WITH_RIDGE, ClosedFormFit, InputOptions, fit_closed_form

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def fit(train: PairTensors, validation: PairTensors, recipe: Recipe, blocks: tuple[list[int], list[int]]) -> Trained:
    """Fit the recipe's closed form on all captions of the training images.

    Args:
        train: Training pairs.
        validation: Validation pairs; they choose the ridge strength out of `closed_form.ridges`, and the temperature.
        recipe: Its `algorithm` names the closed form.
        blocks: Widths of the concatenated layers of each side.

    Raises:
        UserError: The closed form cannot be fitted or does not know an option.
    """
    start = time.perf_counter()
    found = solve(recipe.algorithm, train, validation, recipe, blocks)
    rows: list[dict[str, Any]] = [
        {"step": 0, "ridge": ridge, "val_score": score} for ridge, score in found.scores.items()
    ]
    image, text = without_hubs(found.image, found.text, train, recipe.hubness)
    metrics = validate(image, text, validation)
    small = validation.head(recipe.training.validation_images)
    chosen = {} if found.ridge is None else {"ridge": found.ridge}
    rows.append({"step": 0, **chosen, **{f"val_{name}": value for name, value in metrics.items()}})
    return Trained(
        image=image,
        text=text,
        validation=metrics,
        steps=0,
        seconds=time.perf_counter() - start,
        history=rows,
        temperature=validation_temperature(image, text, small),
        temperature_source="validation",
    )


def solve(
    name: str, train: PairTensors, validation: PairTensors, recipe: Recipe, blocks: tuple[list[int], list[int]]
) -> ClosedFormFit:
    """Return a closed form's projectors, the ridge strength chosen by the mean recall on validation pairs."""
    options = dict(recipe.closed_form)
    climb = options.pop("climb", False) is True
    ridges = tuple(options.pop("ridges", RIDGES if name in WITH_RIDGE else (1.0,)))
    small = validation.head(recipe.training.validation_images)

    def score(image: Projector, text: Projector) -> float:
        return selection_score(validate(image, text, small))

    return fit_closed_form(
        name,
        train.image,
        train.text,
        train.caption_image,
        d=recipe.dim,
        ridges=ridges,
        score=score,
        climb=climb,
        inputs=InputOptions(normalise_input=recipe.normalise_input, image_blocks=blocks[0], text_blocks=blocks[1]),
        options=options,
    )
