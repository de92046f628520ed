"""From several runs to an order, intervals and paired differences.

Runs are ordered by the mean of both retrieval directions at the smallest cut-off. An interval says how far a number
would move with other test images; how far it moves with another seed is the standard deviation beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.measures import Measure
from pipeline.evaluate.queries import IMAGE_RETRIEVAL, TEXT_RETRIEVAL
from pipeline.evaluate.resampling import interval, p_value
from pipeline.evaluate.result import RunResult

BASELINE = "info_nce"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much better a run is than another on one measure, query by query."""

    run: str
    against: str
    measure: str
    value: float
    low: float
    high: float
    p_value: float

    @property
    def real(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0

    @property
    def better(self) -> bool:
        """Whether the run is better and the interval leaves zero out."""
        return self.low > 0


@dataclass(frozen=True)
class Summary:
    """All runs of an evaluation, best first.

    Args:
        runs: The runs.
        measures: What was measured, in the order of the tables.
        chance: Measure → what random embeddings reach.
        k: Cut-off of the headline.
        confidence: Share of the bootstrap inside an interval.
    """

    runs: tuple[RunResult, ...]
    measures: tuple[Measure, ...]
    chance: dict[str, float]
    k: int
    confidence: float

    @property
    def lead(self) -> RunResult:
        """The best run."""
        return self.runs[0]

    @property
    def baseline(self) -> RunResult | None:
        """The best run of the plain contrastive baseline, if there is one."""
        return next((run for run in self.runs if run.method == BASELINE), None)

    @property
    def best_closed(self) -> RunResult | None:
        """The best run without training, if there is one."""
        return next((run for run in self.runs if not run.trained), None)

    def interval(self, run: RunResult, measure: str) -> tuple[float, float]:
        """Return the bootstrap interval of a run's mean over seeds."""
        return interval(run.replicates[measure], self.confidence)

    def headline(self, run: RunResult) -> tuple[float, float, float]:
        """Return the mean of both directions at the smallest cut-off, with its interval."""
        return headline(run, self.k), *interval(headline_replicates(run, self.k), self.confidence)

    def against(self, run: RunResult, other: RunResult) -> list[Difference]:
        """Return the paired differences of two runs, the headline first."""
        found = [self._difference(run, other, "mean_recall", headline(run, self.k) - headline(other, self.k))]
        return found + [
            self._difference(run, other, measure.name, run.mean(measure.name) - other.mean(measure.name))
            for measure in self.measures
        ]

    def gap(self, run: RunResult, other: RunResult) -> Difference:
        """Return the paired difference of two runs on the headline."""
        return self.against(run, other)[0]

    def seed_error(self, run: RunResult, other: RunResult) -> float:
        """Return the standard error over seeds of the difference of two runs' headlines; a single seed counts as 0."""
        parts = [np.mean([each.values[name] for name in headline_names(self.k)], axis=0) for each in (run, other)]
        return float(np.sqrt(sum(part.var(ddof=1) / len(part) for part in parts if len(part) > 1)))

    def settled(self, run: RunResult, other: RunResult) -> bool:
        """Whether a run is ahead of another beyond both the noise of test images and twice the error over seeds."""
        gap = self.gap(run, other)
        return gap.better and gap.value > 2 * self.seed_error(run, other)

    def differences(self) -> list[Difference]:
        """Return the differences of every run against the baseline and against the best closed form."""
        rivals = {rival.name: rival for rival in (self.baseline, self.best_closed) if rival is not None}
        pairs = [(run, rival) for rival in rivals.values() for run in self.runs if run.name != rival.name]
        return [each for run, rival in pairs for each in self.against(run, rival)]

    def _difference(self, run: RunResult, other: RunResult, measure: str, value: float) -> Difference:
        if measure == "mean_recall":
            drawn = headline_replicates(run, self.k) - headline_replicates(other, self.k)
        else:
            drawn = run.replicates[measure] - other.replicates[measure]
        low, high = interval(drawn, self.confidence)
        return Difference(
            run=run.name, against=other.name, measure=measure, value=value, low=low, high=high, p_value=p_value(drawn)
        )


def headline_names(k: int) -> tuple[str, str]:
    """Return the two measures that the headline is the mean of."""
    return f"{TEXT_RETRIEVAL}_recall@{k}", f"{IMAGE_RETRIEVAL}_recall@{k}"


def headline(run: RunResult, k: int) -> float:
    """Return the mean of both directions."""
    return float(np.mean([run.mean(name) for name in headline_names(k)]))


def headline_replicates(run: RunResult, k: int) -> NDArray[np.float64]:
    """Return the bootstrap replicates of the headline [B]."""
    return np.asarray(np.mean([run.replicates[name] for name in headline_names(k)], axis=0), dtype=np.float64)


def summarise_runs(
    runs: Sequence[RunResult], measures: Sequence[Measure], chance: dict[str, float], confidence: float
) -> Summary:
    """Order runs, best first, names breaking ties."""
    k = min(measure.k for measure in measures if measure.direction == IMAGE_RETRIEVAL)
    ordered = sorted(runs, key=lambda run: (-headline(run, k), run.name))
    return Summary(tuple(ordered), tuple(measures), chance, k, confidence)
