"""Pseudo-pairs of images and texts that belong to nobody, and the rule that says whether they help.

links, told = refine(data, pool, recipe, ridge)      # links is None where the pool does not help

A few rounds of: embed images and texts that belong to nobody, let each image take its nearest texts under CSLS and each
text its nearest image, count such pairs a little, and fit again on all. It is what aligns two vocabularies from a small
dictionary (iterative refinement with CSLS, arXiv 1710.04087), with weights in place of a dictionary: our choice.
How many rounds, and with what ridge, is cross-validated inside the pairs: a part of them is held out, and its images
and captions have to find each other. Where that gains nothing beyond its noise, the pool is left alone.

Rounds and folds work on the principal axes of both sides, on which a fit takes a tenth of a second.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.align.pairs import PairFeatures
from pipeline.align.pool import Pool, evenly
from pipeline.align.recipe import Recipe
from pipeline.projectors.base import InputNormalisation, unit_rows
from pipeline.projectors.closed_form import cca
from pipeline.projectors.csls import nearest_mean
from pipeline.projectors.moments import Links, PairStatistics, eigh, gram

ROUNDS = (1, 2, 4)
"""Numbers of rounds that are tried."""
SOFTER = 3.0
"""The ridge is tried as it is and divided by this: with more pairs, less of it is needed."""
NEAREST = 3
"""Texts that an image takes."""
MUTUAL, ONE_SIDED, TEXTS_OWN = 0.3, 0.09, 0.1
"""Weights against a true pair: each is the other's nearest; among the image's nearest; the text's nearest alone."""
NEIGHBOURS = 10
"""K of CSLS between the pools."""
AXES = 400
"""Principal axes of a side that rounds and folds work on."""
FOLDS = 3
ERRORS = 2
"""Standard errors that a gain has to exceed: the best of several trials gains one by luck too often."""
FOLD_IMAGES, FOLD_TEXTS = 1500, 3000
"""Rows of the pool that a fold works with, at most."""
BLOCK = 2048
"""Images whose scores with all texts are held at once."""


@dataclass(frozen=True)
class _Reduced:
    """Pairs, pool and, in a fold, what is held out, on the principal axes of all; the rows lie in this order.

    Args:
        image: [n + U + held, R].
        text: [P + V + held, R′].
        owner: Image row of each of the pairs' captions [P].
        images: n.
        pooled: U and V.
        widths: D and E, which the ridge is measured in.
    """

    image: Tensor
    text: Tensor
    owner: Tensor
    images: int
    pooled: tuple[int, int]
    widths: tuple[int, int]

    @property
    def true(self) -> Links:
        """The pairs, each with weight 1."""
        count, device = len(self.owner), self.image.device
        return Links(torch.arange(count, device=device), self.owner, torch.ones(count, device=device))

    def known(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings of pairs and pool."""
        return image[: self.images + self.pooled[0]], text[: len(self.owner) + self.pooled[1]]


def refine(
    data: PairFeatures, pool: Pool, recipe: Recipe, ridge: float
) -> tuple[Links | None, dict[str, float | dict[str, float]]]:
    """Return true and pseudo-pairs to fit on, None where the pool does not help, and what the folds said.

    Rows of the pairs' images and texts come first in the links, then the pool's. Told are `rounds` (0: the pool is left
    alone), `ridge`, the `scores` of all trials in reciprocal rank of held-out pairs, the `gain` in it and its `error`.

    Args:
        data: Training pairs.
        pool: Unpaired images and texts.
        recipe: A recipe whose closed form is CCA.
        ridge: The ridge of the supervised fit.
    """
    everything, fit = _reduce(data, pool, recipe), _Fit(recipe, data)
    trials: dict[tuple[int, float], list[Tensor]] = {}
    for reduced, owner in _folds(everything, data):
        for trial, hits in _trials(reduced, fit, ridge, owner):
            trials.setdefault(trial, []).append(hits)
    scores = {trial: torch.cat(hits) for trial, hits in trials.items()}
    means = {trial: float(hits.mean()) for trial, hits in scores.items()}
    told: dict[str, float | dict[str, float]] = {
        "scores": {f"{rounds} rounds, ridge {each:g}": mean for (rounds, each), mean in means.items()}
    }
    if not scores:
        return None, {"rounds": 0, **told}
    best = max(means, key=means.__getitem__)
    gains = scores[best] - scores[0, ridge]
    gain, error = float(gains.mean()), float(gains.std(correction=0)) / max(1, len(gains) - 1) ** 0.5
    if gain <= ERRORS * error:
        return None, {"rounds": 0, "gain": gain, "error": error, **told}
    *_, (links, _) = _rounds(everything, fit, ridge, best[1], best[0])
    return links, {"rounds": best[0], "ridge": best[1], "gain": gain, "error": error, **told}


def closed_form_options(recipe: Recipe, data: PairFeatures) -> dict[str, Any]:
    """Return CCA's power and ratio of ridges; the ratio counts the true pairs alone."""
    options = {name: value for name, value in recipe.closed_form.items() if name in ("power", "text_ratio")}
    if options.get("text_ratio", 1.0) is None:
        options["text_ratio"] = (len(data) / len(data.text)) ** 0.5
    return options


@dataclass(frozen=True)
class _Fit:
    """CCA as the recipe says, on reduced features."""

    recipe: Recipe
    data: PairFeatures

    def __call__(self, reduced: _Reduced, links: Links, ridge: float) -> tuple[Tensor, Tensor]:
        """Return unit embeddings of all images and of all texts, float32."""
        statistics = PairStatistics.weighted(reduced.image, reduced.text, links)
        options = closed_form_options(self.recipe, self.data)
        image, text = (
            rows.shape[1] / width for rows, width in zip((reduced.image, reduced.text), reduced.widths, strict=True)
        )
        options["text_ratio"] = options.get("text_ratio", 1.0) * text / image
        pair = cca(statistics, self.recipe.dim, ridge=ridge * image, **options)
        found = (reduced.image, statistics.image, pair.image_matrix), (reduced.text, statistics.text, pair.text_matrix)
        embedded = [
            unit_rows((rows - side.mean.to(rows)) @ (matrix * pair.weights).to(rows)) for rows, side, matrix in found
        ]
        return embedded[0], embedded[1]


def _reduce(data: PairFeatures, pool: Pool, recipe: Recipe) -> _Reduced:
    sides = []
    for rows, more, blocks in zip((data.image, data.text), (pool.image, pool.text), data.widths, strict=True):
        whole = torch.cat([rows, more])
        normalise = InputNormalisation(whole.shape[1], recipe.normalise_input, blocks).to(whole.device)
        normalise.fit(whole)
        prepared = normalise(whole)
        centred = prepared - prepared.mean(dim=0)
        _, axes = eigh(gram(centred).double(), AXES)
        sides.append(centred @ axes.to(centred))
    widths = data.image.shape[1], data.text.shape[1]
    pooled = len(pool.image), len(pool.text)
    return _Reduced(sides[0], sides[1], data.caption_image, len(data), pooled, widths)


def _rounds(
    reduced: _Reduced, fit: _Fit, first: float, ridge: float, rounds: int
) -> Iterator[tuple[Links, tuple[Tensor, Tensor]]]:
    """Yield the pairs of each round and the embeddings that were fitted on them."""
    true, captions = reduced.true, len(reduced.owner)
    image, text = fit(reduced, true, first)
    for _ in range(rounds):
        known = reduced.known(image, text)
        found = pseudo_pairs(known[0][reduced.images :], known[1][captions:], captions / reduced.images)
        links = Links(
            torch.cat([true.text, found.text + captions]),
            torch.cat([true.image, found.image + reduced.images]),
            torch.cat([true.weight, found.weight]),
        )
        image, text = fit(reduced, links, ridge)
        yield links, (image, text)


def pseudo_pairs(image_UD: Tensor, text_VD: Tensor, weight: float = 1.0) -> Links:
    """Pair unit embeddings of U images and V texts that belong to nobody.

    Each image takes its `NEAREST` texts by CSLS within the pools, and each text its nearest image where that has not
    taken it. Where each is the other's nearest a pair counts `MUTUAL`, else `ONE_SIDED`, or `TEXTS_OWN` for the text's.

    Args:
        image_UD: Images.
        text_VD: Texts.
        weight: What the captions of a true image count together; the texts that an image takes share as much.
    """
    taken = min(NEAREST, len(text_VD))
    image_r, text_r = _near(image_UD, text_VD), _near(text_VD, image_UD)
    best_score = torch.full_like(text_r, -torch.inf)
    best_image = torch.zeros(len(text_VD), dtype=torch.int64, device=text_VD.device)
    nearest = []
    for start in range(0, len(image_UD), BLOCK):
        part = slice(start, start + BLOCK)
        scores = 2 * image_UD[part] @ text_VD.T - image_r[part, None] - text_r
        nearest.append(scores.topk(taken, dim=1).indices)
        high, at = scores.max(dim=0)
        best_image = torch.where(high > best_score, at + start, best_image)
        best_score = torch.maximum(high, best_score)
    text = torch.cat(nearest).flatten()
    image = torch.arange(len(image_UD), device=text.device).repeat_interleave(taken)
    each_others = best_image[text] == image
    own = torch.ones(len(text_VD), dtype=torch.bool, device=text.device)
    own[text[each_others]] = False
    alone = own.nonzero().flatten()
    weights = torch.where(each_others, MUTUAL, ONE_SIDED) * (weight / taken)
    return Links(
        torch.cat([text, alone]),
        torch.cat([image, best_image[alone]]),
        torch.cat([weights, weights.new_full((len(alone),), TEXTS_OWN)]),
    )


def _near(items: Tensor, bank: Tensor) -> Tensor:
    k = min(NEIGHBOURS, len(bank))
    return torch.cat([nearest_mean(block, bank, k) for block in torch.split(items, BLOCK)])


def _folds(everything: _Reduced, data: PairFeatures) -> Iterator[tuple[_Reduced, Tensor]]:
    """Yield each fold: most of the pairs, a part of the pool, the held-out pairs; and whose the held captions are."""
    order = np.random.default_rng(0).permutation(len(data))
    device, owner = everything.image.device, everything.owner.cpu().numpy()
    image_pool = everything.images + evenly(everything.pooled[0], FOLD_IMAGES)
    text_pool = len(owner) + evenly(everything.pooled[1], FOLD_TEXTS)
    for fold in range(FOLDS):
        held = np.isin(np.arange(len(data)), order[fold::FOLDS])
        if held.all() or not held.any() or (~held).sum() < 3:
            continue
        place = np.where(held, np.cumsum(held), np.cumsum(~held)) - 1
        rows = np.flatnonzero(~held), image_pool, np.flatnonzero(held)
        texts = np.flatnonzero(~held[owner]), text_pool, np.flatnonzero(held[owner])
        image, text = (torch.from_numpy(np.concatenate(each)).to(device) for each in (rows, texts))
        reduced = _Reduced(
            everything.image[image],
            everything.text[text],
            torch.from_numpy(place[owner[texts[0]]]).to(device),
            len(rows[0]),
            (len(image_pool), len(text_pool)),
            everything.widths,
        )
        yield reduced, torch.from_numpy(place[owner[texts[2]]]).to(device)


def _trials(reduced: _Reduced, fit: _Fit, ridge: float, owner: Tensor) -> Iterator[tuple[tuple[int, float], Tensor]]:
    """Yield (rounds, ridge) and the reciprocal rank of each held-out image [H] after so many rounds."""
    yield (0, ridge), _reciprocal(reduced, *fit(reduced, reduced.true, ridge), owner)
    for each in (ridge, ridge / SOFTER):
        for number, (_, embedded) in enumerate(_rounds(reduced, fit, ridge, each, max(ROUNDS)), start=1):
            if number in ROUNDS:
                yield (number, each), _reciprocal(reduced, *embedded, owner)


def _reciprocal(reduced: _Reduced, image: Tensor, text: Tensor, owner: Tensor) -> Tensor:
    """Return the mean reciprocal rank of each held-out image and its captions [H] among the held-out ones, both ways.

    The pool is in the banks of CSLS and not in the galleries: pictures of another kind are told from the pairs' by
    any fit that has seen them, and would make it look better than it is.
    """
    known_image, known_text = reduced.known(image, text)
    images, texts = image[len(known_image) :], text[len(known_text) :]
    image_r, text_r = _near(images, known_text), _near(texts, known_image)
    scores = 2 * images @ texts.T - image_r[:, None] - text_r
    held, places = len(images), torch.arange(len(texts), device=owner.device)
    match = scores[owner, places]
    text_ranks = (scores >= match).sum(dim=0)
    best = torch.full((held,), -torch.inf, device=scores.device).scatter_reduce(0, owner, match, "amax")
    own = torch.arange(held, device=owner.device)[:, None] == owner
    image_ranks = 1 + (scores.masked_fill(own, -torch.inf) >= best[:, None]).sum(dim=1)
    counts = torch.bincount(owner, minlength=held).clamp_min(1)
    by_text = torch.zeros(held, device=scores.device).index_add_(0, owner, 1 / text_ranks) / counts
    return (by_text + 1 / image_ranks) / 2
