"""A learning rate for a recipe and its training pairs: a short run whose rate rises until the loss turns up.

    found = find_learning_rate(train_data, recipe, (image_projector, text_projector), seed=1)
    recipe = with_rate(recipe, found.rate)

`training.learning_rate: auto` asks for it before each seed's training.

The learning-rate range test (arXiv 1506.01186), on training pairs alone; the projectors stay as they were.
"""

import copy
import math
from dataclasses import dataclass

from pipeline.align.objective import StepContext
from pipeline.align.pairs import PairFeatures
from pipeline.align.recipe import Recipe
from pipeline.align.train import Generators, Stepper, batches, seeded
from pipeline.errors import PipelineError, UserError
from pipeline.projectors.base import Projector

DIVERGED = 1.5
"""The run ends when the smoothed loss is this many times as far above its lowest as its start was."""
NOISE = 0.1
"""Share of the first loss that a fall has to be, to say how far is far: batches of few pairs differ by less."""


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
    with seeded(seed, data.device) as generators:
        rates = [lowest * (highest / lowest) ** (step / (steps - 1)) for step in range(steps)]
        return _suggestion(_ramp(data, recipe, copy.deepcopy(projectors), rates, smoothing, generators))


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
    data: PairFeatures,
    recipe: Recipe,
    projectors: tuple[Projector, Projector],
    rates: list[float],
    smoothing: float,
    generators: Generators,
) -> list[RateRow]:
    stepper, rows, average = Stepper(recipe, projectors, data.device), list[RateRow](), 0.0
    # STRUCTURE's weight and the smoothing schedules are looked at in the middle of a run, where they are at work
    context = StepContext(len(rates) // 2, len(rates), *generators)
    for rate, (_, batch) in zip(rates, batches(data, recipe, len(rates), generators.device), strict=True):
        loss = float(stepper.take(batch, context, rate)["loss"])
        average = smoothing * average + (1 - smoothing) * loss
        if not math.isfinite(loss):
            break
        rows.append(RateRow(rate=rate, loss=loss, smoothed=average / (1 - smoothing ** (len(rows) + 1))))
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
