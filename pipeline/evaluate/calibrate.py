"""Confidence of first answers: softmax of cosine over temperature, against whether the answer was right.

Twice for every run and direction. First with the run's own temperature: learned or set in training, or, for a closed
form, fitted on validation pairs when it was made (runs of older versions may have none; then a stated default divides
their scores). Then scaled: with the temperature at which the right answers of the validation rows are most likely, in
that direction (arXiv 1706.04599), so that all runs are treated alike. No test row is ever looked at for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.evaluate.data import TestPairs, ZeroShotSet, class_vectors, run_features
from pipeline.evaluate.queries import IMAGE_RETRIEVAL, TEXT_RETRIEVAL
from pipeline.metrics.calibration import fit_temperature, reliability
from pipeline.projectors.run_record import AlignedRun
from pipeline.store.samples import Pairs, join

SCALED = "scaled"
BINS = 15
ROWS = 500
"""Validation images that a temperature is fitted on, at most, evenly over the split."""
BOUNDS = (0.005, 2.0)
"""Of a fitted temperature: a handful of rows, all right or all wrong, would ask for 0 or infinity."""
Answers: TypeAlias = tuple[NDArray[np.float64], NDArray[np.bool_]]
"""Confidence of each query's first answer [Q], and whether it was right [Q]; a tie is not right."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far stated confidence is from what came true, in one direction; mean over seeds."""

    ece: float
    """Expected calibration error, a fraction."""
    mean_max_probability: float
    """Mean confidence."""
    accuracy: float
    """Share of first answers that were right."""
    temperature: float
    """Temperature that the scores were divided by (mean over seeds)."""
    temperature_source: str
    """learned, fixed, validation (fitted there when the run was made), own (an older run does not say how), default (it
    has none), or scaled (fitted on validation rows by this evaluation)."""
    bins: tuple[tuple[float, float, int], ...]
    """(mean confidence, accuracy, answers) of each bin that holds answers, all seeds together."""
    scaled: "Calibration | None" = None
    """The same after temperature scaling on validation rows; None where there are none."""


def validation_pairs(run: AlignedRun, data: TestPairs) -> TestPairs | None:
    """Return pairs of the run's validation split; None where it is the evaluated split, or holds less than two images.

    Of many images only some are taken, evenly over the split, with all their captions.
    """
    split = str(run.config.get("validation_split", "val"))
    found = join(data.image.samples, data.text.samples, split)
    if split == data.split or len(found.image_rows) < 2:
        return None
    kept = evenly(len(found.image_rows), ROWS)
    place = np.full(len(found.image_rows), -1)
    place[kept] = np.arange(len(kept))
    owner = place[found.caption_image]
    pairs = Pairs(found.image_rows[kept], found.caption_rows[owner >= 0], owner[owner >= 0])
    return TestPairs(data.image, data.text, pairs, split)


def retrieval_temperatures(run: AlignedRun, data: TestPairs | None) -> list[dict[str, float]]:
    """Return direction → fitted temperature for each seed; empty mappings without validation pairs."""
    if data is None:
        return [{} for _ in run.seeds]
    image_features = run_features(run, data.image, data.pairs.image_rows, constant_allowed=True)
    text_features = run_features(run, data.text, data.pairs.caption_rows, constant_allowed=True)
    owner = data.pairs.caption_image
    captions = torch.from_numpy(np.argsort(owner, kind="stable"))
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(data.captions_of)]))
    found = []
    for seed in run.seeds:
        scores = run.encode("text", text_features, seed) @ run.encode("image", image_features, seed).T
        low, high = BOUNDS
        found.append(
            {
                IMAGE_RETRIEVAL: fit_temperature(scores, torch.from_numpy(owner), low=low, high=high),
                TEXT_RETRIEVAL: fit_temperature(scores.T, captions, offsets, low=low, high=high),
            }
        )
    return found


def zero_shot_temperatures(run: AlignedRun, data: ZeroShotSet) -> list[float]:
    """Return the fitted temperature for each seed; nothing where no labelled row of the validation split is left."""
    rows = data.of_split(str(run.config.get("validation_split", "val")))
    if rows is None:
        return []
    kept = evenly(len(rows.rows), ROWS)
    features = run_features(run, data.image, rows.rows[kept], constant_allowed=True)
    target = torch.from_numpy(rows.target[kept])
    found = []
    for seed in run.seeds:
        scores = run.encode("image", features, seed) @ class_vectors(run, data, seed).T
        found.append(fit_temperature(scores, target, low=BOUNDS[0], high=BOUNDS[1]))
    return found


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """Return at most so many positions of `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def calibrate(
    answers: Sequence[Sequence[Answers]], temperatures: Sequence[tuple[float, str]], fitted: Sequence[float]
) -> Calibration:
    """Return the calibration of S seeds' answers, and what it is after scaling where temperatures were fitted.

    Args:
        answers: Of each seed, those at its own temperature and, where one was fitted, those at the fitted one.
        temperatures: Each seed's own temperature and where it comes from.
        fitted: Each seed's fitted temperature; empty where there is none.
    """
    own = _calibration([each[0] for each in answers], temperatures)
    if not fitted:
        return own
    return replace(own, scaled=_calibration([each[1] for each in answers], [(value, SCALED) for value in fitted]))


def _calibration(by_seed: Sequence[Answers], temperatures: Sequence[tuple[float, str]]) -> Calibration:
    """Return the calibration of S seeds' answers: numbers are means over seeds, bins hold all of them."""
    confidence, hit = (np.concatenate([pair[side] for pair in by_seed]) for side in (0, 1))
    bins = reliability(confidence, hit, bins=BINS)
    return Calibration(
        ece=float(np.mean([reliability(*pair, bins=BINS).error for pair in by_seed])),
        mean_max_probability=float(confidence.mean()),
        accuracy=float(hit.mean()),
        temperature=float(np.mean([value for value, _ in temperatures])),
        temperature_source=" and ".join(dict.fromkeys(source for _, source in temperatures)),
        bins=tuple(
            (float(bins.confidence[at]), float(bins.accuracy[at]), int(bins.count[at]))
            for at in np.flatnonzero(bins.count)
        ),
    )
