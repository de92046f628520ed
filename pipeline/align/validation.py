"""Validation pairs: recall, which stops training and picks the weights, and a temperature for what has none."""

import torch
from torch import Tensor

from pipeline.align.tensors import PairTensors
from pipeline.metrics.calibration import fit_temperature
from pipeline.metrics.retrieval import retrieval_metrics
from pipeline.projectors.base import Projector

CUTS = (1, 5, 10)
TEMPERATURES = (0.01, 1.0)
"""Bounds of a fitted temperature: a handful of pairs, all right or all wrong, would ask for 0 or infinity."""


def validate(image: Projector, text: Projector, data: PairTensors) -> dict[str, float]:
    """Return recall@1/5/10 of both directions (see `pipeline.metrics.retrieval`), without touching training state.

    Cut-offs above the number of validation images are left out.
    """
    embedded = _embed(image, text, data)
    cuts = [k for k in CUTS if k <= len(data)]
    return dict(retrieval_metrics(*embedded, data.caption_image, ks=cuts).metrics)


def validation_temperature(image: Projector, text: Projector, data: PairTensors) -> float:
    """Return the temperature at which the softmax of captions over images is most likely right on validation pairs."""
    images, captions = _embed(image, text, data)
    low, high = TEMPERATURES
    return fit_temperature(captions @ images.T, data.caption_image, low=low, high=high)


def _embed(image: Projector, text: Projector, data: PairTensors) -> tuple[Tensor, Tensor]:
    states = [(module, module.training) for module in (image, text)]
    for module, _ in states:
        module.eval()
    with torch.no_grad():
        embedded = image(data.image), text(data.text)
    for module, was_training in states:
        module.train(was_training)
    return embedded


def selection_score(metrics: dict[str, float]) -> float:
    """Return the mean of all recalls, both directions and all cut-offs: the number that training is stopped by."""
    recalls = [value for name, value in metrics.items() if "_recall@" in name]
    return sum(recalls) / len(recalls)
