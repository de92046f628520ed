"""From several runs to an order, intervals and paired differences.

Runs are ordered by the mean of both retrieval directions at the smallest cut-off. An interval says how far a number
would move with other test images; how far it moves with another seed is the standard deviation beside it.

Whoever looks at many runs finds a best one by luck: what is said to win or to beat must hold for all pairs of runs at
once (single-step maximum of the studentised bootstrap differences, Westfall and Young 1993).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.queries import IMAGE_RETRIEVAL, TEXT_RETRIEVAL, Measure
from pipeline.evaluate.single import RunResult
from pipeline.metrics.bootstrap import interval, p_value, simultaneous_factor

BASELINE = "info_nce"
MEAN = "mean_recall"
"""The headline's name among the measures of a difference."""


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


@dataclass(frozen=True)
class Leaderboard:
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
    _factors: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def lead(self) -> RunResult:
        """The best run."""
        return self.runs[0]

    @property
    def baseline(self) -> RunResult | None:
        """The best run of the plain contrastive baseline, if there is one."""
        return next((run for run in self.runs if run.method == BASELINE), None)

    @property
    def best_trained(self) -> RunResult | None:
        """The best run of gradient descent, if there is one."""
        return next((run for run in self.runs if run.trained), None)

    @property
    def best_closed(self) -> RunResult | None:
        """The best run without training, if there is one."""
        return next((run for run in self.runs if not run.trained), None)

    def value(self, run: RunResult, measure: str = MEAN) -> float:
        """Return a run's mean over seeds on a measure, the headline unless said otherwise."""
        return float(np.mean([run.mean(name) for name in self._names(measure)]))

    def interval(self, run: RunResult, measure: str = MEAN) -> tuple[float, float]:
        """Return the bootstrap interval of a run's mean over seeds."""
        return interval(self._drawn(run, measure), self.confidence)

    def gap(self, run: RunResult, other: RunResult, measure: str = MEAN) -> Difference:
        """Return the paired difference of two runs on a measure."""
        drawn = self._drawn(run, measure) - self._drawn(other, measure)
        low, high = interval(drawn, self.confidence)
        value = self.value(run, measure) - self.value(other, measure)
        return Difference(
            run=run.name, against=other.name, measure=measure, value=value, low=low, high=high, p_value=p_value(drawn)
        )

    def ranking(self, measure: str = MEAN) -> list[RunResult]:
        """Return the runs, best first on a measure; among equals the order of the headline stays."""
        return sorted(self.runs, key=lambda run: -self.value(run, measure))

    def seed_error(self, run: RunResult, other: RunResult, measure: str = MEAN) -> float:
        """Return the standard error over seeds of the difference of two runs; a single seed counts as 0."""
        parts = [np.mean([each.values[name] for name in self._names(measure)], axis=0) for each in (run, other)]
        return float(np.sqrt(sum(part.var(ddof=1) / len(part) for part in parts if len(part) > 1)))

    def margin(self, run: RunResult, other: RunResult, measure: str = MEAN) -> float:
        """Return how far two runs may differ by luck in the test images, all pairs of runs being looked at."""
        if measure not in self._factors:
            replicates = np.stack([self._drawn(each, measure) for each in self.runs])
            self._factors[measure] = simultaneous_factor(replicates, self.confidence)
        drawn = self._drawn(run, measure) - self._drawn(other, measure)
        return self._factors[measure] * float(drawn.std())

    def apart(self, run: RunResult, other: RunResult, measure: str = MEAN) -> bool:
        """Whether a run is ahead of another beyond the noise of test images, all pairs of runs being looked at."""
        gap = self.gap(run, other, measure)
        return gap.low > 0 and gap.value > self.margin(run, other, measure)

    def settled(self, run: RunResult, other: RunResult, measure: str = MEAN) -> bool:
        """Whether a run is ahead of another beyond both that noise and twice the error over seeds."""
        ahead = self.gap(run, other, measure).value > 2 * self.seed_error(run, other, measure)
        return ahead and self.apart(run, other, measure)

    def rivals(self, measure: str = MEAN) -> list[RunResult]:
        """Return the runs over which the best one's lead on a measure is not significant."""
        best, *others = self.ranking(measure)
        return [run for run in others if not self.settled(best, run, measure)]

    def differences(self) -> list[Difference]:
        """Return the differences of every run against the baseline and against the best closed form, headline first."""
        rivals = {rival.name: rival for rival in (self.baseline, self.best_closed) if rival is not None}
        measures = (MEAN, *(measure.name for measure in self.measures))
        pairs = [(run, rival) for rival in rivals.values() for run in self.runs if run.name != rival.name]
        return [self.gap(run, rival, name) for run, rival in pairs for name in measures]

    def _names(self, measure: str) -> tuple[str, ...]:
        return headline_names(self.k) if measure == MEAN else (measure,)

    def _drawn(self, run: RunResult, measure: str) -> NDArray[np.float64]:
        """Return the bootstrap replicates of a measure [B]."""
        names = self._names(measure)
        return np.asarray(np.mean([run.replicates[name] for name in names], axis=0), dtype=np.float64)


def headline_names(k: int) -> tuple[str, str]:
    """Return the two measures that the headline is the mean of."""
    return f"{TEXT_RETRIEVAL}_recall@{k}", f"{IMAGE_RETRIEVAL}_recall@{k}"


def rank_runs(runs: Sequence[RunResult], measures: Mapping[Measure, float], confidence: float) -> Leaderboard:
    """Order runs, best first, names breaking ties.

    Args:
        runs: The runs.
        measures: Measure → what random embeddings reach.
        confidence: Share of the bootstrap inside an interval.
    """
    k = min(measure.k for measure in measures if measure.direction == IMAGE_RETRIEVAL)
    chance = {measure.name: value for measure, value in measures.items()}
    board = Leaderboard(tuple(sorted(runs, key=lambda run: run.name)), tuple(measures), chance, k, confidence)
    return replace(board, runs=tuple(board.ranking()))
