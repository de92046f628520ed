"""Gradient descent on one seed: everything on the device once, no Python per sample, the best weights kept.

trained = train(train_data, validation_data, recipe, (image_projector, text_projector), seed=1)

`training.learning_rate: auto` lets `find_learning_rate` find a rate on a seed's training pairs before it trains.
"""

import copy
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.align.fit import Trained, quick_recalls, selection_score, validate
from pipeline.align.objective import Batch, Objective, StepContext
from pipeline.align.pairs import PairFeatures
from pipeline.align.recipe import Recipe, TrainingOptions
from pipeline.errors import PipelineError, UserError
from pipeline.projectors.base import Projector

FUSED_ON = ("cpu", "cuda")
"""Devices on which torch makes an AdamW step of all parameters in one kernel: on a CPU a third of the time."""
MAX_ROWS = 200
"""Rows of a history, about: the steps of a longer run are averaged."""
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


class Generators(NamedTuple):
    """The random numbers of a seed."""

    device: torch.Generator
    """Batches, captions and noise, on the features' device."""
    cpu: torch.Generator
    """Mixing coefficients."""


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[Generators]:
    """Give a run its random numbers; the global ones, which dropout takes, start at the seed inside and are restored.

    Args:
        seed: The seed.
        device: Where the features are.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield Generators(torch.Generator(device).manual_seed(seed), torch.Generator().manual_seed(seed))


def train(
    train_data: PairFeatures,
    validation_data: PairFeatures,
    recipe: Recipe,
    projectors: tuple[Projector, Projector],
    *,
    seed: int,
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

    Raises:
        UserError: The recipe's learning rate is still to be found (`pipeline.align.fit`).
        PipelineError: The loss is no longer finite.
    """
    if recipe.finds_rate:
        where, expected = "align settings: training.learning_rate", "a learning rate that was found before"
        raise UserError(expected=expected, found="auto", where=where)
    start, options = time.perf_counter(), recipe.training
    total = planned_steps(len(train_data), options)
    stepper, history, best = Stepper(recipe, projectors, train_data.device), History(total), _Best()
    checks = set(_validation_steps(total, options.validations))
    small = validation_data.head(options.validation_images)
    step = 0
    with seeded(seed, train_data.device) as generators:
        for step, (epoch, batch) in enumerate(batches(train_data, recipe, total, generators.device), start=1):
            rate = learning_rate(step - 1, total, options)
            history.add(step, epoch, rate, stepper.take(batch, StepContext(step - 1, total, *generators), rate))
            if step in checks:
                _check_finite(history.last(), step)
                metrics = quick_recalls(stepper.image, stepper.text, small)
                history.validated(metrics)
                best.offer(selection_score(metrics), stepper)
                if options.patience and best.since >= options.patience:
                    break
    best.restore(stepper)
    return Trained(
        image=stepper.image,
        text=stepper.text,
        validation=validate(stepper.image, stepper.text, validation_data),
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


def batches(data: PairFeatures, recipe: Recipe, total: int, generator: torch.Generator) -> Iterator[tuple[int, Batch]]:
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


class Stepper:
    """What changes in a step, in training mode: forward, backward, clipping, AdamW, τ back between its bounds.

    Args:
        recipe: Objective and optimiser.
        projectors: Image and text projectors; trained in place.
        device: Where all of it happens.
    """

    def __init__(self, recipe: Recipe, projectors: tuple[Projector, Projector], device: torch.device) -> None:
        options = recipe.training
        self.image, self.text = projectors
        self.objective = Objective(recipe).to(device)
        self.modules: list[nn.Module] = [self.image.train(), self.text.train(), self.objective.train()]
        self._clip = options.clip
        self._parameters = [parameter for module in self.modules for parameter in module.parameters()]
        self._optimiser = make_optimiser(self._parameters, betas=options.betas, weight_decay=options.weight_decay)

    def take(self, batch: Batch, context: StepContext, rate: float) -> dict[str, Tensor | float]:
        """Take a step with a learning rate; return the terms of the loss before it (see `Objective`)."""
        loss, terms = self.objective.forward(self.image, self.text, batch, context)
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self._clip:
            nn.utils.clip_grad_norm_(self._parameters, self._clip)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.step()
        self.objective.loss.temperature.clamp()
        return terms

    @property
    def temperature(self) -> float:
        """τ as it is now."""
        return float(self.objective.loss.temperature().item())


def make_optimiser(
    parameters: Iterable[nn.Parameter], *, betas: Sequence[float], weight_decay: float
) -> torch.optim.AdamW:
    """Return torch's AdamW (arXiv 1711.05101) over all that is learned; vectors and scalars are not decayed.

    Args:
        parameters: What is learned; those that want no gradient are left out.
        betas: β₁ and β₂.
        weight_decay: Decay of parameters with two axes or more.
    """
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in learned if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in learned if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type in FUSED_ON for parameter in learned)
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=(betas[0], betas[1]), fused=fused)


@dataclass
class _Best:
    """The best weights so far."""

    score: float = -math.inf
    state: list[dict[str, Tensor]] = field(default_factory=list)
    temperature: float = math.nan
    since: int = 0

    def offer(self, score: float, stepper: Stepper) -> None:
        """Keep the weights as they are now if no earlier ones scored as high."""
        self.since += 1
        if score > self.score:
            self.score, self.since, self.temperature = score, 0, stepper.temperature
            states = [module.state_dict() for module in stepper.modules]
            self.state = [{name: value.clone() for name, value in state.items()} for state in states]

    def restore(self, stepper: Stepper) -> None:
        """Put the best weights back; training is over."""
        for module, state in zip(stepper.modules, self.state, strict=True):
            module.load_state_dict(state)
            module.eval()


class History:
    """Collects a step's terms without waiting for the device, and averages them over the steps of a row.

    A row of history.jsonl: step, epoch, lr, loss, loss_i2t, loss_t2i, lambda_i2t, lambda_t2i, temperature, with
    STRUCTURE also structure, structure_weight, diagonal_features, diagonal_embeddings; at validated steps val_<metric>
    beside them.

    Args:
        total_steps: Steps planned; at most about `MAX_ROWS` rows are made of them.
    """

    def __init__(self, total_steps: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self._every = max(1, total_steps // MAX_ROWS)
        self._waiting: list[dict[str, Tensor | float]] = []
        self._head: dict[str, Any] = {}

    def add(self, step: int, epoch: int, rate: float, terms: dict[str, Tensor | float]) -> None:
        """Take one step's terms."""
        self._head = {"step": step, "epoch": epoch, "lr": rate}
        self._waiting.append(terms)
        if step == 1 or step % self._every == 0:
            self._flush()

    def last(self) -> dict[str, Any]:
        """Return the row that the last step is in."""
        if self._waiting:
            self._flush()
        return self.rows[-1]

    def validated(self, metrics: dict[str, float]) -> None:
        """Add validation metrics to the last step's row."""
        row = self.last()
        row |= {f"val_{name}": value for name, value in metrics.items()}

    def _flush(self) -> None:
        names = self._waiting[0]
        means = {name: _mean([terms[name] for terms in self._waiting]) for name in names}
        self.rows.append({**self._head, **means})
        self._waiting = []


def _mean(values: list[Tensor | float]) -> float:
    return float(torch.stack([torch.as_tensor(value, dtype=torch.float32) for value in values]).mean())


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
