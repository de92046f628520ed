"""A learning rate for a recipe and its training pairs: a short run whose rate rises until the loss turns up.

    found = find_learning_rate(train_data, recipe, (image_projector, text_projector), seed=1)
    recipe = with_rate(recipe, found.rate)

`training.learning_rate: auto` asks for it before each seed's training.

The learning-rate range test (arXiv 1506.01186), on training pairs alone; the projectors stay as they were.
"""

import copy
import math
from dataclasses import dataclass

import torch

from pipeline.align.objective import Moment
from pipeline.align.recipe import Recipe
from pipeline.align.step import Stepper
from pipeline.align.tensors import PairTensors
from pipeline.align.train import batches
from pipeline.errors import PipelineError, UserError
from pipeline.projectors.base import Projector

DIVERGED = 1.5
"""The run ends when the smoothed loss is this many times as far above its lowest as its start was."""


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
    data: PairTensors,
    recipe: Recipe,
    projectors: tuple[Projector, Projector],
    *,
    seed: int,
    lowest: float = 1e-5,
    highest: float = 1.0,
    steps: int = 80,
    smoothing: float = 0.8,
) -> FoundRate:
    """Run a ramp of rates over training batches and suggest one.

    Args:
        data: Training pairs on the device; validation pairs are not asked.
        recipe: Objective, batch size and optimiser; its own rate and schedule play no part.
        projectors: Where training would start; copies are trained.
        seed: Decides batches, captions and noise.
        lowest: First rate.
        highest: Last rate, reached exponentially.
        steps: Steps, at most; the run ends early when the loss runs away.
        smoothing: Weight of the past in the moving average, [0, 1).

    Raises:
        UserError: An argument is impossible.
        PipelineError: The loss is not finite from the start, or never falls.
    """
    _check(lowest, highest, steps, smoothing)
    cuda = [data.device] if data.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        rows = _ramp(data, recipe, copy.deepcopy(projectors), seed, (lowest, highest), steps, smoothing)
    return _suggestion(rows)


def _check(lowest: float, highest: float, steps: int, smoothing: float) -> None:
    checks = {
        "rates with 0 < lowest < highest": (0 < lowest < highest < math.inf, f"{lowest} and {highest}"),
        "10 steps or more": (steps >= 10, str(steps)),
        "smoothing in [0, 1)": (0 <= smoothing < 1, str(smoothing)),
    }
    for expected, (holds, found) in checks.items():
        if not holds:
            raise UserError(expected=expected, found=found, where="learning-rate finder")


def _ramp(
    data: PairTensors,
    recipe: Recipe,
    projectors: tuple[Projector, Projector],
    seed: int,
    rates: tuple[float, float],
    steps: int,
    smoothing: float,
) -> list[RateRow]:
    stepper = Stepper(recipe, projectors, data.device)
    for module in stepper.modules:
        module.train()
    generators = torch.Generator(data.device).manual_seed(seed), torch.Generator().manual_seed(seed)
    rows: list[RateRow] = []
    average = 0.0
    # STRUCTURE's weight and the smoothing schedules are looked at in the middle of a run, where they are at work
    for step, (_, batch) in enumerate(batches(data, recipe, steps, generators[0])):
        rate = rates[0] * (rates[1] / rates[0]) ** (step / (steps - 1))
        loss = float(stepper.take(batch, Moment(steps // 2, steps, *generators), rate)["loss"])
        average = smoothing * average + (1 - smoothing) * loss
        smoothed = average / (1 - smoothing ** (step + 1))
        if not math.isfinite(loss):
            break
        rows.append(RateRow(rate=rate, loss=loss, smoothed=smoothed))
        if _has_diverged(rows):
            break
    return rows


def _has_diverged(rows: list[RateRow]) -> bool:
    low = min(row.smoothed for row in rows)
    drop = rows[0].smoothed - low
    return drop > 0 and rows[-1].smoothed > low + DIVERGED * drop


def _suggestion(rows: list[RateRow]) -> FoundRate:
    lowest = min(range(len(rows)), key=lambda row: rows[row].smoothed, default=0)
    if lowest < 2:
        raise PipelineError(
            expected="a loss that falls as the learning rate rises",
            found=f"{len(rows)} steps with a finite loss, the first of them as low as any",
            where="learning-rate finder",
            remedy="set training.learning_rate to a number, or look at the features and the start",
        )
    falls = [rows[row + 1].smoothed - rows[row - 1].smoothed for row in range(1, lowest)]
    steepest = 1 + min(range(len(falls)), key=falls.__getitem__)
    return FoundRate(rate=rows[steepest].rate, lowest_loss_rate=rows[lowest].rate, rows=rows)
