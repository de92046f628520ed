"""Projectors without training: a closed form, or what training starts from; and what validation pairs say of a pair.

trained = fit_untrained(recipe, train_data, validation_data)

Validation pairs give the recall, which stops training and picks the weights, and a temperature for what has none.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.align.pairs import PairFeatures
from pipeline.align.pool import Pool, evenly
from pipeline.align.recipe import HubnessOptions, Recipe
from pipeline.align.unpaired import closed_form_options, refine
from pipeline.metrics.calibration import fit_temperature
from pipeline.metrics.retrieval import retrieval_metrics
from pipeline.projectors.base import Inputs, Projector, unit_rows
from pipeline.projectors.closed_form import WITH_RIDGE, ClosedFormFit, fit_closed_form
from pipeline.projectors.csls import with_csls
from pipeline.projectors.moments import Links
from pipeline.projectors.run_record import build_projector

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
CUTS = (1, 5, 10)
MOST_SCORES = 1 << 25
"""Scores that are held at once between steps: 128 MiB."""
TEMPERATURES = (0.01, 1.0)
"""Bounds of a fitted temperature: a handful of pairs, all right or all wrong, would ask for 0 or infinity."""


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
    """A row each logged step, see `History`."""
    temperature: float | None = None
    """τ at the best step; of a closed form, the one fitted on validation pairs."""
    temperature_source: Literal["learned", "fixed", "validation"] = "learned"
    """Where it comes from."""
    learning_rate: float | None = None
    """Peak of the schedule; None for a closed form."""
    unpaired: dict[str, Any] | None = None
    """What cross-validation said of images and texts without a partner (`pipeline.align.unpaired.refine`)."""


def fit_untrained(recipe: Recipe, data: PairFeatures, validation: PairFeatures, pool: Pool | None = None) -> Trained:
    """Fit the recipe's closed form on all captions of the training images, with CSLS where it is asked for.

    Args:
        recipe: Closed form, its options, CSLS.
        data: Training pairs.
        validation: Validation pairs; they choose the ridge of the pairs alone, and the temperature.
        pool: Images and texts without a partner, for CCA.

    Raises:
        UserError: It cannot be made of these pairs.
    """
    start = time.perf_counter()
    found = _solve(recipe.algorithm, data, validation, recipe)
    told: dict[str, Any] | None = None
    if pool is not None and found.ridge is not None:
        links, told = refine(data, pool, recipe, found.ridge)
        told = {"images": len(pool.image), "texts": len(pool.text), "rows": pool.about, **told}
        if links is not None:
            found = replace(_solve_linked(data, pool, links, told["ridge"], recipe), scores=found.scores)
            data = _with_pool(data, pool)
    image, text = corrected(found.image, found.text, data, recipe.hubness)
    about = measured(image, text, validation, recipe)
    rows: list[dict[str, Any]] = [
        {"step": 0, "ridge": ridge, "val_score": score} for ridge, score in found.scores.items()
    ]
    chosen = {} if found.ridge is None else {"ridge": found.ridge}
    rows.append({"step": 0, **chosen, **{f"val_{name}": value for name, value in about["validation"].items()}})
    seconds = time.perf_counter() - start
    return Trained(image=image, text=text, steps=0, seconds=seconds, history=rows, unpaired=told, **about)


def _solve_linked(data: PairFeatures, pool: Pool, links: Links, ridge: float, recipe: Recipe) -> ClosedFormFit:
    """Fit CCA on weighted pairs of the training rows and the pool's."""
    image, text = (Inputs(normalise_input=recipe.normalise_input, blocks=widths) for widths in data.widths)
    return fit_closed_form(
        "cca",
        torch.cat([data.image, pool.image]),
        torch.cat([data.text, pool.text]),
        links,
        d=recipe.dim,
        ridges=(ridge,),
        inputs=(image, text),
        options=closed_form_options(recipe, data),
    )


def _with_pool(data: PairFeatures, pool: Pool) -> PairFeatures:
    """Return pairs and pool as items of the banks of CSLS, in which nothing asks who belongs to whom.

    Images and texts are thinned to the same number: a bank's row is an image, and one text or the mean of its captions.
    """
    count = min(len(pool.image), len(pool.text))
    image, text = (rows[evenly(len(rows), count)] for rows in (pool.image, pool.text))
    starts = data.starts[-1] + torch.arange(1, count + 1, device=data.device)
    return PairFeatures(
        torch.cat([data.image, image]), torch.cat([data.text, text]), torch.cat([data.starts, starts]), data.blocks
    )


def _solve(name: str, data: PairFeatures, validation: PairFeatures, recipe: Recipe) -> ClosedFormFit:
    """Return a closed form's projectors, the ridge strength chosen by the mean recall on validation pairs."""
    options = dict(recipe.closed_form)
    climb = options.pop("climb", False) is True
    ridges = tuple(options.pop("ridges", RIDGES if name in WITH_RIDGE else (1.0,)))
    some = validation.head(recipe.training.validation_images)
    image, text = (Inputs(normalise_input=recipe.normalise_input, blocks=widths) for widths in data.widths)
    return fit_closed_form(
        name,
        data.image,
        data.text,
        data.caption_image,
        d=recipe.dim,
        ridges=ridges,
        score=lambda image, text: selection_score(validate(image, text, some)),
        climb=climb,
        inputs=(image, text),
        options=options,
    )


def measured(image: Projector, text: Projector, validation: PairFeatures, recipe: Recipe) -> dict[str, Any]:
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
