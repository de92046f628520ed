"""Confidence of first answers: softmax of cosine over temperature, against whether the answer was right.

The temperature is the run's own where it has one. A closed form has none; its scores are divided by a stated default,
so its calibration says something about that default as well.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.evaluate.result import Calibration

DEFAULT_TEMPERATURE = 0.07
BINS = 15
BLOCK_FLOATS = 2**24

Answers = tuple[NDArray[np.float64], NDArray[np.bool_]]


def run_temperature(record: Mapping[str, Any], seed: int) -> tuple[float, bool]:
    """Return the temperature of a run's seed and whether it is its own.

    Looked up in the seed's entry of run.json, then in the run's.
    """
    entries = [entry for entry in record.get("seeds", []) if isinstance(entry, dict) and entry.get("seed") == seed]
    for place in (*entries, record):
        value = place.get("temperature")
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
            return float(value), True
    return DEFAULT_TEMPERATURE, False


def answers(
    query_QD: Tensor, gallery_GD: Tensor, owner_G: Tensor, expected_Q: Tensor, temperature: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the confidence of each query's first answer [Q] and whether it was right [Q].

    Args:
        query_QD: Q unit vectors.
        gallery_GD: G unit vectors.
        owner_G: What each gallery item stands for.
        expected_Q: What each query asks for; an answer is right if its owner is that.
        temperature: What cosine is divided by.
    """
    confidence, hit = [], []
    step = max(1, BLOCK_FLOATS // len(gallery_GD))
    for start in range(0, len(query_QD), step):
        part = slice(start, start + step)
        best = torch.softmax(query_QD[part] @ gallery_GD.T / temperature, dim=1).max(dim=1)
        confidence.append(best.values)
        hit.append(owner_G[best.indices] == expected_Q[part])
    return torch.cat(confidence).double().numpy(), torch.cat(hit).numpy()


def summarise(by_seed: Sequence[Answers], temperatures: Sequence[tuple[float, bool]]) -> Calibration:
    """Return the calibration of S seeds' answers: numbers are means over seeds, bins hold all of them."""
    confidence = np.concatenate([pair[0] for pair in by_seed])
    hit = np.concatenate([pair[1] for pair in by_seed])
    return Calibration(
        ece=float(np.mean([_error(_bins(*pair)) for pair in by_seed])),
        mean_max_probability=float(confidence.mean()),
        accuracy=float(hit.mean()),
        temperature=float(np.mean([value for value, _ in temperatures])),
        own_temperature=all(own for _, own in temperatures),
        bins=tuple(_bins(confidence, hit)),
    )


def _bins(confidence: NDArray[np.float64], hit: NDArray[np.bool_]) -> list[tuple[float, float, int]]:
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    held = [place == index for index in range(BINS)]
    return [(float(confidence[at].mean()), float(hit[at].mean()), int(at.sum())) for at in held if at.any()]


def _error(bins: Sequence[tuple[float, float, int]]) -> float:
    total = sum(count for _, _, count in bins)
    return sum(count / total * abs(accuracy - confidence) for confidence, accuracy, count in bins)
