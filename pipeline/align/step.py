"""What changes in a training step: projectors, objective and optimiser together. Used by `train` and `lr_finder`."""

import torch
from torch import Tensor, nn

from pipeline.align.objective import Batch, Moment, Objective
from pipeline.align.optimiser import make_optimiser, set_rate
from pipeline.align.recipe import Recipe
from pipeline.projectors.base import Projector


class Stepper:
    """Takes steps: forward, backward, clipping, AdamW, τ back between its bounds.

    Args:
        recipe: Objective and optimiser.
        projectors: Image and text projectors; trained in place.
        device: Where all of it happens.
    """

    def __init__(self, recipe: Recipe, projectors: tuple[Projector, Projector], device: torch.device) -> None:
        options = recipe.training
        self.image, self.text = projectors
        self.objective = Objective(recipe).to(device)
        self.modules: list[nn.Module] = [self.image, self.text, self.objective]
        self._clip = options.clip
        self._parameters = [parameter for module in self.modules for parameter in module.parameters()]
        self._optimiser = make_optimiser(self._parameters, betas=options.betas, weight_decay=options.weight_decay)

    def take(self, batch: Batch, moment: Moment, rate: float) -> dict[str, Tensor | float]:
        """Take a step with a learning rate; return the terms of the loss before it (see `Objective`)."""
        loss, terms = self.objective.forward(self.image, self.text, batch, moment)
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self._clip:
            nn.utils.clip_grad_norm_(self._parameters, self._clip)
        set_rate(self._optimiser, rate)
        self._optimiser.step()
        self.objective.loss.temperature.clamp()
        return terms

    @property
    def temperature(self) -> float:
        """τ as it is now."""
        return float(self.objective.loss.temperature().item())
