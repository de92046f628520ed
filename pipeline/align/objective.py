"""One training step's maths: the slots put together. Used by `pipeline.align.train`, and by hand in a notebook.

batch → (mix) → (perturb) → project → similarity → (targets T) → CE per direction → (direction weights) → + λ·structure
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.align.losses import make_loss
from pipeline.align.losses.augmentation import allowed_after_mixing, draw_coefficient, mix_halves, perturb
from pipeline.align.losses.directions import DirectionWeights
from pipeline.align.losses.structure import mean_of_modalities, structure_term, structure_weight
from pipeline.align.losses.targets import Targets, distinct_images, intra_modal_targets, smoothed_targets
from pipeline.align.recipe import ObjectiveOptions


class Batch(NamedTuple):
    """N pairs: frozen features of both sides."""

    image: Tensor
    """[N, D₁]."""
    text: Tensor
    """[N, D₂]."""
    image_ids: Tensor | None = None
    """[N] integers, needed only where an image can occur more than once."""


class StepContext(NamedTuple):
    """Where in training a step is, and where its random numbers come from."""

    step: int
    """0, 1, …"""
    total_steps: int
    """Steps planned."""
    generator: torch.Generator
    """On the features' device: the noise."""
    cpu_generator: torch.Generator
    """On the CPU: the mixing coefficient."""


class _Prepared(NamedTuple):
    image: Tensor
    text: Tensor
    allowed: Tensor | None
    clean: bool


class Objective(nn.Module):
    """The loss of a step, with its terms.

    Holds what is learned or remembered beside the projectors: τ, SigLIP's bias, the direction averages.

    Args:
        options: What is put into each slot.

    Raises:
        UnknownNameError: No such loss or direction schedule.
    """

    def __init__(self, options: ObjectiveOptions) -> None:
        super().__init__()
        self.options = options
        self.loss = make_loss(options.loss, options.temperature)
        self.directions = DirectionWeights(options.direction)

    def forward(
        self, image_projector: nn.Module, text_projector: nn.Module, batch: Batch, context: StepContext
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Return the loss and its terms, detached and not yet brought to the host.

        Args:
            image_projector: [N, D₁] → [N, d], rows of length one.
            text_projector: [N, D₂] → [N, d], rows of length one.
            batch: N ≥ 2 pairs (4 with mixing).
            context: Step and generators.

        Returns:
            The scalar to minimise, and loss, loss_i2t, loss_t2i, lambda_i2t, lambda_t2i, temperature, and, with
            STRUCTURE on, structure, structure_weight, diagonal_features, diagonal_embeddings.
        """
        ready = self._prepare(batch, context)
        image_Nd, text_Nd = image_projector(ready.image), text_projector(ready.text)
        similarity_NN = image_Nd @ text_Nd.T
        targets = self._targets(ready, similarity_NN, context)
        losses = self.loss(similarity_NN, targets, ready.allowed)
        weights = self.directions(similarity_NN, self.loss.temperature(), ready.allowed)
        total: Tensor = weights.i2t * losses.i2t + weights.t2i * losses.t2i
        terms: dict[str, Tensor | float] = {
            "loss_i2t": losses.i2t.detach(),
            "loss_t2i": losses.t2i.detach(),
            "lambda_i2t": weights.i2t,
            "lambda_t2i": weights.t2i,
            "temperature": self.loss.temperature().detach(),
        }
        if self.options.structure.weight > 0:
            if not ready.clean:
                image_Nd, text_Nd = image_projector(batch.image), text_projector(batch.text)
            total = total + self._structure(batch, image_Nd, text_Nd, context, terms)
        terms["loss"] = total.detach()
        return total, terms

    def _prepare(self, batch: Batch, context: StepContext) -> _Prepared:
        """Mix and perturb, in training only."""
        mix, noise = self.options.mix, self.options.perturbation
        image, text = batch.image, batch.text
        allowed = None if batch.image_ids is None else distinct_images(batch.image_ids)
        if not self.training:
            return _Prepared(image, text, allowed, clean=True)
        if mix.enabled:
            coefficient = draw_coefficient(mix, context.cpu_generator)
            image, text = mix_halves(image, coefficient), mix_halves(text, coefficient)
            allowed = None if allowed is None else allowed_after_mixing(allowed)
        image, text = perturb(image, noise, context.generator), perturb(text, noise, context.generator)
        return _Prepared(image, text, allowed, clean=not mix.enabled and noise.sigma == 0)

    def _targets(self, ready: _Prepared, similarity_NN: Tensor, context: StepContext) -> Targets:
        if self.options.soft_targets.weight > 0:
            return intra_modal_targets(ready.image, ready.text, self.options.soft_targets)
        progress = context.step / max(1, context.total_steps - 1)
        return smoothed_targets(self.options.smoothing, similarity_NN, progress)

    def _structure(
        self, batch: Batch, image_Nd: Tensor, text_Nd: Tensor, context: StepContext, terms: dict[str, Tensor | float]
    ) -> Tensor:
        """Return λ(t)·½(R_S of images + R_S of texts), on the clean batch, and note its terms."""
        options = self.options.structure
        weight = structure_weight(options, context.step, context.total_steps)
        image, text = structure_term(batch.image, image_Nd, options), structure_term(batch.text, text_Nd, options)
        both = mean_of_modalities(image, text)
        terms["structure"] = both.value.detach()
        terms["structure_weight"] = weight
        terms["diagonal_features"] = both.diagonal_features
        terms["diagonal_embeddings"] = both.diagonal_embeddings
        return weight * both.value
