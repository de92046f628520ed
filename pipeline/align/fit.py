"""One seed's projectors: a closed form, or what training makes of initial ones; CSLS on top where it is asked for.

trained = fit_seed(recipe, train_data, validation_data, seed=1)

`training.learning_rate: auto` lets `find_learning_rate` find a rate on a seed's training pairs before it trains.
"""

import copy
import dataclasses
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.align.objective import StepContext
from pipeline.align.pairs import PairFeatures
from pipeline.align.recipe import HubnessOptions, Recipe, with_rate
from pipeline.align.train import Generators, Stepper, Trained, batches, seeded, train
from pipeline.align.validation import selection_score, validate, validation_temperature
from pipeline.errors import PipelineError
from pipeline.projectors.base import Projector, unit_rows
from pipeline.projectors.closed_form import WITH_RIDGE, ClosedFormFit, InputOptions, fit_closed_form
from pipeline.projectors.csls import with_csls
from pipeline.projectors.run_record import build_projector

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
LOWEST, HIGHEST = 1e-5, 1.0
"""Rates of the range test; it rises from the first to the last exponentially."""
STEPS = 80
"""Steps of the range test at most; it ends early when the loss runs away."""
SMOOTHING = 0.8
"""Weight of the past in the moving average of its losses."""
DIVERGED = 1.5
"""The run ends when the smoothed loss is this many times as far above its lowest as its start was."""
NOISE = 0.1
"""Share of the first loss that a fall has to be, to say how far is far: batches of few pairs differ by less."""


def fit_seed(recipe: Recipe, data: PairFeatures, validation: PairFeatures, seed: int) -> Trained:
    """Return one seed's projectors.

    Args:
        recipe: The method.
        data: Its training pairs.
        validation: Validation pairs: they choose a closed form's ridge strength, its temperature, and the best weights.
        seed: Decides random weights, batches and noise, and those of the search for a learning rate.

    Raises:
        UserError: The closed form or the initial projectors cannot be made of these pairs.
        PipelineError: The loss is no longer finite, or no learning rate was found.
    """
    if not recipe.trained:
        return _fit_closed_form(recipe, data, validation)
    projectors = initial_projectors(data, validation, recipe, seed)
    if recipe.finds_rate:
        recipe = with_rate(recipe, find_learning_rate(data, recipe, projectors, seed=seed).rate)
    trained = train(data, validation, recipe, projectors, seed=seed)
    if recipe.hubness.neighbours == 0:
        return trained
    image, text = corrected(trained.image, trained.text, data, recipe.hubness)
    return dataclasses.replace(trained, image=image, text=text, **_measured(image, text, validation, recipe))


def _fit_closed_form(recipe: Recipe, data: PairFeatures, validation: PairFeatures) -> Trained:
    """Fit the recipe's closed form on all captions of the training images."""
    start = time.perf_counter()
    found = _solve(recipe.algorithm, data, validation, recipe)
    image, text = corrected(found.image, found.text, data, recipe.hubness)
    measured = _measured(image, text, validation, recipe)
    rows: list[dict[str, Any]] = [
        {"step": 0, "ridge": ridge, "val_score": score} for ridge, score in found.scores.items()
    ]
    chosen = {} if found.ridge is None else {"ridge": found.ridge}
    rows.append({"step": 0, **chosen, **{f"val_{name}": value for name, value in measured["validation"].items()}})
    seconds = time.perf_counter() - start
    return Trained(image=image, text=text, steps=0, seconds=seconds, history=rows, **measured)


def _solve(name: str, data: PairFeatures, validation: PairFeatures, recipe: Recipe) -> ClosedFormFit:
    """Return a closed form's projectors, the ridge strength chosen by the mean recall on validation pairs."""
    options = dict(recipe.closed_form)
    climb = options.pop("climb", False) is True
    ridges = tuple(options.pop("ridges", RIDGES if name in WITH_RIDGE else (1.0,)))
    some = validation.head(recipe.training.validation_images)
    image_widths, text_widths = data.widths
    return fit_closed_form(
        name,
        data.image,
        data.text,
        data.caption_image,
        d=recipe.dim,
        ridges=ridges,
        score=lambda image, text: selection_score(validate(image, text, some)),
        climb=climb,
        inputs=InputOptions(normalise_input=recipe.normalise_input, image_blocks=image_widths, text_blocks=text_widths),
        options=options,
    )


def _measured(image: Projector, text: Projector, validation: PairFeatures, recipe: Recipe) -> dict[str, Any]:
    """Return what `Trained` holds of projectors whose temperature nothing learned."""
    some = validation.head(recipe.training.validation_images)
    return {
        "validation": validate(image, text, validation),
        "temperature": validation_temperature(image, text, some),
        "temperature_source": "validation",
    }


def initial_projectors(
    data: PairFeatures, validation: PairFeatures, recipe: Recipe, seed: int
) -> tuple[Projector, Projector]:
    """Return the projectors that training starts from: random ones of the recipe's kind, or linear ones by ridge CCA.

    Both are on the data's device, their input statistics taken from training pairs.

    Args:
        data: Training pairs.
        validation: Validation pairs; they choose CCA's ridge strength.
        recipe: Kind, width and start.
        seed: Decides random weights; the global random state is left as it was.

    Raises:
        UnknownNameError: No such projector.
        UserError: The projector does not take these settings.
    """
    if recipe.start == "cca":
        found = _solve("cca", data, validation, recipe)
        return found.image, found.text
    kinds, widths = recipe.projectors, data.widths
    kept = [sum(blocks) for kind, blocks in zip(kinds, widths, strict=True) if kind == "identity"]
    d = kept[0] if kept else recipe.dim  # a side that is left as it is decides the width of the shared space
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image, text = (_random(kind, recipe, blocks, d) for kind, blocks in zip(kinds, widths, strict=True))
    image, text = image.to(data.device), text.to(data.device)
    image.fit_input(data.image)
    text.fit_input(data.text)
    return image, text


def _random(kind: str, recipe: Recipe, blocks: list[int], d: int) -> Projector:
    own = {"normalise_input": recipe.normalise_input, "blocks": blocks, "d": d}
    extra = {} if kind == "identity" else recipe.projector_settings
    return build_projector(kind, {"d_in": sum(blocks), **own, **extra}, where="align settings: projector_settings")


@torch.no_grad()
def corrected(
    image: Projector, text: Projector, data: PairFeatures, options: HubnessOptions
) -> tuple[Projector, Projector]:
    """Return finished projectors wrapped in CSLS where `options.neighbours` is not 0; no weight changes.

    Args:
        image: Image projector, finished.
        text: Text projector, finished.
        data: Training pairs, where neighbours come from: a bank row of texts is the mean of an image's caption
            embeddings, of unit length.
        options: k, weight, size of the banks. Where there are more images the bank is drawn, always the same.
    """
    if options.neighbours == 0:
        return image, text
    image.eval(), text.eval()
    if len(data) > options.bank:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[: options.bank]
        data = data.take(np.sort(order.numpy()))
    images, captions = image(data.image), text(data.text)
    total = captions.new_zeros(len(data), captions.shape[1]).index_add_(0, data.caption_image, captions)
    banks = images, unit_rows(total)
    return with_csls(image, text, *banks, neighbours=options.neighbours, weight=options.weight)


@dataclass(frozen=True, kw_only=True)
class RateRow:
    """A step of the ramp."""

    rate: float
    """Learning rate of the step."""
    loss: float
    """Loss before the step."""
    smoothed: float
    """Moving average of the loss, corrected for its start."""


@dataclass(frozen=True, kw_only=True)
class FoundRate:
    """What the ramp says."""

    rate: float
    """Suggestion: where the smoothed loss falls fastest per factor of the rate, before it is lowest."""
    lowest_loss_rate: float
    """Where the smoothed loss is lowest: above it training would run away."""
    rows: list[RateRow]
    """The curve."""


def find_learning_rate(
    data: PairFeatures,
    recipe: Recipe,
    projectors: tuple[Projector, Projector],
    *,
    seed: int,
) -> FoundRate:
    """Run a ramp of rates over training batches and suggest one, where the loss falls before it turns up.

    The learning-rate range test (arXiv 1506.01186), on training pairs alone; the projectors stay as they were.

    Args:
        data: Training pairs on the device; validation pairs are not asked.
        recipe: Objective, batch size and optimiser; its own rate and schedule play no part.
        projectors: Where training would start; copies are trained.
        seed: Decides batches, captions and noise.

    Raises:
        PipelineError: The loss is not finite from the start, or never falls.
    """
    with seeded(seed, data.device) as generators:
        return _suggestion(_ramp(data, recipe, copy.deepcopy(projectors), generators))


def _ramp(
    data: PairFeatures,
    recipe: Recipe,
    projectors: tuple[Projector, Projector],
    generators: Generators,
) -> list[RateRow]:
    stepper, rows, average = Stepper(recipe, projectors, data.device), list[RateRow](), 0.0
    # STRUCTURE's weight and the smoothing schedules are looked at in the middle of a run, where they are at work
    context = StepContext(STEPS // 2, STEPS, *generators)
    for step, (_, batch) in enumerate(batches(data, recipe, STEPS, generators.device)):
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
        loss = float(stepper.take(batch, context, rate)["loss"])
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        if not math.isfinite(loss):
            break
        rows.append(RateRow(rate=rate, loss=loss, smoothed=average / (1 - SMOOTHING ** (step + 1))))
        if _has_diverged(rows):
            break
    return rows


def _has_diverged(rows: list[RateRow]) -> bool:
    start, low = rows[0].smoothed, min(row.smoothed for row in rows)
    return rows[-1].smoothed > low + DIVERGED * max(start - low, NOISE * abs(start))


def _suggestion(rows: list[RateRow]) -> FoundRate:
    lowest = min(range(len(rows)), key=lambda row: rows[row].smoothed, default=0)
    if lowest < 2:
        raise PipelineError(
            expected="a loss that falls as the learning rate rises",
            found=f"{len(rows)} steps with a finite loss, none of them lower than the first",
            where="learning-rate finder",
            remedy="set training.learning_rate to a number, or check the features and the initial projectors",
        )
    falls = [rows[row + 1].smoothed - rows[row - 1].smoothed for row in range(1, lowest)]
    steepest = 1 + min(range(len(falls)), key=falls.__getitem__)
    return FoundRate(rate=rows[steepest].rate, lowest_loss_rate=rows[lowest].rate, rows=rows)
