"""Gradient descent on one seed: everything on the device once, no Python per sample, the best weights kept.

trained = train(train_data, validation_data, recipe, (image_projector, text_projector), seed=1)
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.align.history import History
from pipeline.align.objective import Batch, Moment
from pipeline.align.recipe import Recipe, TrainingOptions
from pipeline.align.step import Stepper
from pipeline.align.tensors import PairTensors
from pipeline.align.validation import quick_recalls, selection_score, validate
from pipeline.errors import PipelineError, UserError
from pipeline.projectors.base import Projector


@dataclass(frozen=True)
class Trained:
    """What one seed gives."""

    image: Projector
    text: Projector
    validation: dict[str, float]
    """Retrieval metrics of the best weights on all validation pairs."""
    steps: int
    """Steps that were taken; 0 for a closed form."""
    seconds: float
    """Wall time."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """A row each logged step, see `pipeline.align.history`."""
    temperature: float | None = None
    """τ at the best step; of a closed form, the one fitted on validation pairs."""
    temperature_source: Literal["learned", "fixed", "validation"] = "learned"
    """Where it comes from."""
    learning_rate: float | None = None
    """Peak of the schedule; None for a closed form."""


@dataclass
class _Best:
    """The best weights so far."""

    score: float = -math.inf
    state: list[dict[str, Tensor]] = field(default_factory=list)
    temperature: float = math.nan
    since: int = 0

    def offer(self, score: float, modules: list[nn.Module], temperature: float) -> None:
        if score > self.score:
            self.score, self.since, self.temperature = score, 0, temperature
            self.state = [{name: value.clone() for name, value in m.state_dict().items()} for m in modules]
        else:
            self.since += 1


def train(
    train_data: PairTensors,
    validation_data: PairTensors,
    recipe: Recipe,
    projectors: tuple[Projector, Projector],
    *,
    seed: int,
    tick: Callable[[int, int], None] = lambda step, total: None,
) -> Trained:
    """Train a pair of projectors.

    Same seed, same data, same device and number of threads: the same weights, bit for bit on a CPU. The global random
    state is as before afterwards.

    Args:
        train_data: Training pairs on the device.
        validation_data: Validation pairs on the device.
        recipe: Objective and optimiser.
        projectors: Image and text projectors on the device; they are trained in place.
        seed: Decides batches, captions, noise and dropout.
        tick: Is told (steps done, steps planned) at each validation.

    Raises:
        UserError: The recipe's learning rate is still to be found (`pipeline.align.lr_finder`).
        PipelineError: The loss is no longer finite.
    """
    if recipe.finds_rate:
        raise UserError(
            expected="a learning rate that was found before",
            found="auto",
            where="align settings: training.learning_rate",
        )
    start = time.perf_counter()
    cuda = [train_data.device] if train_data.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        return _train(train_data, validation_data, recipe, projectors, seed, tick, start)


def _train(
    data: PairTensors,
    validation_data: PairTensors,
    recipe: Recipe,
    projectors: tuple[Projector, Projector],
    seed: int,
    tick: Callable[[int, int], None],
    start: float,
) -> Trained:
    options = recipe.training
    image, text = projectors
    stepper = Stepper(recipe, projectors, data.device)
    total = planned_steps(len(data), options)
    checks = set(_validation_steps(total, options.validations))
    small = validation_data.head(options.validation_images)
    generators = (torch.Generator(data.device).manual_seed(seed), torch.Generator().manual_seed(seed))
    history, best, step = History(total), _Best(), 0
    for module in stepper.modules:
        module.train()
    for step, (epoch, batch) in enumerate(batches(data, recipe, total, generators[0]), start=1):
        rate = learning_rate(step - 1, total, options)
        history.add(step, epoch, rate, stepper.take(batch, Moment(step - 1, total, *generators), rate))
        if step in checks:
            _check_finite(history.last(), step)
            metrics = quick_recalls(image, text, small)
            history.validated(metrics)
            best.offer(selection_score(metrics), stepper.modules, stepper.temperature)
            tick(step, total)
            if options.patience and best.since >= options.patience:
                break
    for module, state in zip(stepper.modules, best.state, strict=True):
        module.load_state_dict(state)
        module.eval()
    return Trained(
        image=image,
        text=text,
        validation=validate(image, text, validation_data),
        steps=step,
        seconds=time.perf_counter() - start,
        history=history.rows,
        temperature=best.temperature,
        temperature_source="learned" if recipe.temperature.learned else "fixed",
        learning_rate=float(options.learning_rate),
    )


def planned_steps(images: int, options: TrainingOptions) -> int:
    """Return the number of steps of a whole run."""
    steps = max(options.epochs * batches_per_epoch(images, options.batch_size), options.min_steps, 1)
    return steps if options.max_steps is None else min(steps, options.max_steps)


def batches_per_epoch(pairs: int, batch_size: int, least: int = 2) -> int:
    """Return ⌈pairs / batch size⌉, or fewer where a batch would hold less than `least` pairs."""
    return max(1, min(-(-pairs // batch_size), pairs // least))


def learning_rate(step: int, total: int, options: TrainingOptions) -> float:
    """Return the rate of step 0, 1, …: linear warm-up, then half a cosine down to 0."""
    peak, warm_up = float(options.learning_rate), options.warm_up * total
    if step < warm_up:
        return peak * (step + 1) / (math.floor(warm_up) + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1.0, total - warm_up)))


def _validation_steps(total: int, count: int) -> list[int]:
    count = min(count, total)
    return [math.ceil(total * (number + 1) / count) for number in range(count)]


def batches(data: PairTensors, recipe: Recipe, total: int, generator: torch.Generator) -> Iterator[tuple[int, Batch]]:
    """Yield (epoch, batch) until `total` batches are out; each epoch is one permutation on the device."""
    epoch = done = 0
    size, least = recipe.training.batch_size, 4 if recipe.mix.enabled else 2
    while done < total:
        epoch += 1
        images, captions = data.epoch(recipe.captions, generator)
        parts = batches_per_epoch(len(images), size, least)
        for some, texts in zip(images.tensor_split(parts), captions.tensor_split(parts), strict=True):
            if done == total:
                return
            done += 1
            ids = some if recipe.captions == "all" else None
            yield epoch, Batch(data.image[some], data.text[texts], ids)


def _check_finite(row: dict[str, Any], step: int) -> None:
    if not math.isfinite(row["loss"]):
        raise PipelineError(
            expected="a finite loss",
            found=str(row["loss"]),
            where=f"step {step}",
            remedy="lower training.learning_rate, or set training.clip",
        )
