"""Confidence of first answers: softmax of cosine over temperature, against whether the answer was right.

Twice for every run and direction. First with the run's own temperature: learned or set in training, or, for a closed
form, fitted on validation pairs when it was made (runs of older versions may have none; then a stated default divides
their scores). Then scaled: with the temperature at which the right answers of the validation rows are most likely, in
that direction (arXiv 1706.04599), so that all runs are treated alike. No test row is ever looked at for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.evaluate.data import TestPairs, run_features
from pipeline.evaluate.queries import IMAGE_RETRIEVAL, TEXT_RETRIEVAL
from pipeline.evaluate.result import Calibration
from pipeline.evaluate.zero_shot import Answers, ZeroShotSet, class_vectors
from pipeline.metrics.calibration import fit_temperature, reliability
from pipeline.projectors.run_record import AlignedRun
from pipeline.store.join import Pairs, join

DEFAULT_TEMPERATURE = 0.07
DEFAULT, OWN, SCALED = "default", "own", "scaled"
BINS = 15
ROWS = 500
"""Validation images that a temperature is fitted on, at most, evenly over the split."""
BOUNDS = (0.005, 2.0)
"""Of a fitted temperature: a handful of rows, all right or all wrong, would ask for 0 or infinity."""


def run_temperature(record: Mapping[str, Any], seed: int) -> tuple[float, str]:
    """Return the temperature of a run's seed and where it comes from: learned, fixed, validation, own or default.

    Looked up in the seed's entry of run.json, then in the run's.
    """
    entries = [entry for entry in record.get("seeds", []) if isinstance(entry, dict) and entry.get("seed") == seed]
    for place in (*entries, record):
        value = place.get("temperature")
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
            return float(value), str(place.get("temperature_source", OWN))
    return DEFAULT_TEMPERATURE, DEFAULT


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


def zero_shot_temperatures(run: AlignedRun, data: ZeroShotSet) -> list[float | None]:
    """Return the fitted temperature for each seed; None where no labelled row of the validation split is left."""
    rows = data.of_split(str(run.config.get("validation_split", "val")))
    if rows is None:
        return [None for _ in run.seeds]
    kept = evenly(len(rows.rows), ROWS)
    features = run_features(run, data.image, rows.rows[kept], constant_allowed=True)
    target = torch.from_numpy(rows.target[kept])
    found: list[float | None] = []
    for seed in run.seeds:
        scores = run.encode("image", features, seed) @ class_vectors(run, data, seed).T
        found.append(fit_temperature(scores, target, low=BOUNDS[0], high=BOUNDS[1]))
    return found


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """Return at most so many positions of `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def calibration(
    own: Sequence[Answers],
    temperatures: Sequence[tuple[float, str]],
    scaled: Sequence[Answers],
    fitted: Sequence[float],
) -> Calibration:
    """Return the calibration of S seeds' answers, and what it is after scaling where temperatures were fitted."""
    first = summarise(own, temperatures)
    if not fitted:
        return first
    return replace(first, scaled=summarise(scaled, [(value, SCALED) for value in fitted]))


def summarise(by_seed: Sequence[Answers], temperatures: Sequence[tuple[float, str]]) -> Calibration:
    """Return the calibration of S seeds' answers: numbers are means over seeds, bins hold all of them."""
    confidence, hit = (np.concatenate([pair[side] for pair in by_seed]) for side in (0, 1))
    bins = reliability(confidence, hit, bins=BINS)
    held = np.flatnonzero(bins.count)
    return Calibration(
        ece=float(np.mean([reliability(*pair, bins=BINS).error for pair in by_seed])),
        mean_max_probability=float(confidence.mean()),
        accuracy=float(hit.mean()),
        temperature=float(np.mean([value for value, _ in temperatures])),
        temperature_source=" and ".join(dict.fromkeys(source for _, source in temperatures)),
        bins=tuple((float(bins.confidence[at]), float(bins.accuracy[at]), int(bins.count[at])) for at in held),
    )
