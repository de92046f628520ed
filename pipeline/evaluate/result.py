"""What evaluating one run gives: ranks of every query, numbers by seed, bootstrap replicates, calibration, logs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.queries import QueryRanks

Floats = NDArray[np.float64]


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


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run, evaluated on everything."""

    name: str
    """How it is called in tables: its method, or its folder where two runs share the method."""
    method: str
    path: Path
    seeds: tuple[int, ...]
    trained: bool
    """Whether gradient steps were made; otherwise it is a closed form."""
    queries: Mapping[str, QueryRanks]
    """Direction → ranks."""
    values: Mapping[str, Floats]
    """Measure → value for each seed [S]."""
    replicates: Mapping[str, Floats]
    """Measure → bootstrap replicates of the mean over seeds [B]."""
    calibration: Mapping[str, Calibration]
    """Direction → calibration."""
    precision: Mapping[str, Floats]
    """Direction of retrieval → mean average precision for each seed [S]."""
    csls: Mapping[str, NDArray[np.int64]]
    """Direction of retrieval → ranks [S, Q] under CSLS; empty where it was not asked for."""
    confusion: Mapping[str, NDArray[np.int64]]
    """Zero-shot direction → counts [C, C], all seeds together."""
    history: Mapping[int, list[dict[str, Any]]] = field(default_factory=dict)
    """Seed → logged steps."""
    layer_pairs: Mapping[str, Any] | None = None
    """Scores of the layer pairs, where layers were chosen by them."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """run.json."""

    def mean(self, measure: str) -> float:
        """Return a measure's mean over seeds."""
        return float(self.values[measure].mean())

    def deviation(self, measure: str) -> float | None:
        """Return a measure's sample standard deviation over seeds; None for one seed."""
        values = self.values[measure]
        return float(values.std(ddof=1)) if len(values) > 1 else None
