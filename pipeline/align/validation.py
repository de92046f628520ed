"""Validation pairs: recall, which stops training and picks the weights, and a temperature for what has none."""

import torch
from torch import Tensor

from pipeline.align.pairs import PairFeatures
from pipeline.metrics.calibration import fit_temperature
from pipeline.metrics.retrieval import retrieval_metrics
from pipeline.projectors.base import Projector

CUTS = (1, 5, 10)
MOST_SCORES = 1 << 25
"""Scores that are held at once between steps: 128 MiB."""
TEMPERATURES = (0.01, 1.0)
"""Bounds of a fitted temperature: a handful of pairs, all right or all wrong, would ask for 0 or infinity."""


def validate(image: Projector, text: Projector, data: PairFeatures) -> dict[str, float]:
    """Return recall@1/5/10 of both directions (see `pipeline.metrics.retrieval`), without touching training state.

    Cut-offs above the number of validation images are left out.
    """
    embedded = _embed(image, text, data)
    cuts = [k for k in CUTS if k <= len(data)]
    return dict(retrieval_metrics(*embedded, data.caption_image, ks=cuts).metrics)


def quick_recalls(image: Projector, text: Projector, data: PairFeatures) -> dict[str, float]:
    """Return the recalls of `validate` for the many looks that training takes: float32 scores, half the time.

    Ties count against the match, as there; a pair whose scores differ by less than float32 tells apart may be a tie in
    one and none in the other. What is too large for one matrix, or not finite, is left to `validate`.
    """
    images, captions = _embed(image, text, data)
    if len(images) * len(captions) > MOST_SCORES:
        return validate(image, text, data)
    scores_MP = images @ captions.T
    if not bool(torch.isfinite(scores_MP.sum())):
        return validate(image, text, data)
    owner_P, places_P = data.caption_image, torch.arange(len(captions), device=data.device)
    match_P = scores_MP[owner_P, places_P]
    text_ranks = (scores_MP >= match_P).sum(dim=0)
    best_M = torch.full_like(scores_MP[:, 0], -torch.inf).scatter_reduce_(0, owner_P, match_P, "amax")
    scores_MP[owner_P, places_P] = -torch.inf
    image_ranks = (scores_MP >= best_M[:, None]).sum(dim=1) + 1
    return {
        f"{name}_recall@{k}": (ranks <= k).double().mean().item()
        for name, ranks in (("image_retrieval", text_ranks), ("text_retrieval", image_ranks))
        for k in CUTS
        if k <= len(data)
    }


def validation_temperature(image: Projector, text: Projector, data: PairFeatures) -> float:
    """Return the temperature at which the softmax of captions over images is most likely right on validation pairs."""
    images, captions = _embed(image, text, data)
    low, high = TEMPERATURES
    return fit_temperature(captions @ images.T, data.caption_image, low=low, high=high)


def _embed(image: Projector, text: Projector, data: PairFeatures) -> tuple[Tensor, Tensor]:
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
