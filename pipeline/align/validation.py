"""Recall on validation pairs: what stops training and picks the weights."""

import torch

from pipeline.align.tensors import PairTensors
from pipeline.metrics.retrieval import retrieval_metrics
from pipeline.projectors.base import Projector

CUTS = (1, 5, 10)


def validate(image: Projector, text: Projector, data: PairTensors) -> dict[str, float]:
    """Return recall@1/5/10 of both directions (see `pipeline.metrics.retrieval`), without touching training state.

    Cut-offs above the number of validation images are left out.
    """
    states = [(module, module.training) for module in (image, text)]
    for module, _ in states:
        module.eval()
    with torch.no_grad():
        embedded = image(data.image), text(data.text)
    for module, was_training in states:
        module.train(was_training)
    cuts = [k for k in CUTS if k <= len(data)]
    return dict(retrieval_metrics(*embedded, data.caption_image, ks=cuts).metrics)


def selection_score(metrics: dict[str, float]) -> float:
    """Return the mean of all recalls, both directions and all cut-offs: the number that training is stopped by."""
    recalls = [value for name, value in metrics.items() if "_recall@" in name]
    return sum(recalls) / len(recalls)
