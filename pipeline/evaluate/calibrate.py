"""Confidence of first answers: softmax of cosine over temperature, against whether the answer was right.

The temperature is the run's own: learned or set in training, or, for a closed form, fitted on validation pairs when it
was made. Runs of older versions may have none; then a stated default divides their scores, and their calibration speaks
of that default as well.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.result import Calibration
from pipeline.metrics.calibration import reliability

DEFAULT_TEMPERATURE = 0.07
DEFAULT, OWN = "default", "own"
BINS = 15

Answers = tuple[NDArray[np.float64], NDArray[np.bool_]]
"""Confidence of each query's first answer [Q], and whether it was right [Q]; a tie is not right."""


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
