"""Runs side by side, best first, and what may be said of their differences.

Runs are ordered by the mean of both retrieval directions at the smallest cut-off. An interval says how far a number
would move with other test images; how far it moves with another seed is the standard deviation beside it.

What is tested is declared before anything is looked at: every run against each baseline, by default the closed forms
and plain InfoNCE, on that mean. A run beats a baseline of several runs if it beats each of them; so nobody has to say
which closed form is the best one, which only a look at the test split could tell. Such a conjunction needs no
correction (an intersection-union test, Berger 1982), the number of declared baselines does: by Bonferroni's method.
Holm's and Dunnett's have a little more power, but with them whether A beats B depends on what else stands beside them.
Here it depends on A, on B and on the number of baselines that were declared, present or not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pipeline.errors import UnknownNameError
from pipeline.evaluate.results import IMAGE_RETRIEVAL, TEXT_RETRIEVAL, Floats, Measure, RunResult
from pipeline.metrics.bootstrap import interval, p_value

PLAIN = "info_nce"
CLOSED_FORMS = ("cca", "procrustes", "ridge", "pls", "asif")
"""Methods without training that are older than the question."""
MEAN = "mean_recall"
"""The headline's name among the measures of a difference."""
Role = Literal["lead", "rival", "closed", "other"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much better a run is than another on one measure, query by query.

    Interval and p-value are corrected for the number of declared baselines.
    """

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


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One thing that every run was to be held against, declared before anything was looked at."""

    title: str
    """How it is called in sentences."""
    runs: tuple[RunResult, ...]
    """The runs that it means on this page, best first; none where none is there."""


def declare_baselines(names: Sequence[str], runs: Sequence[RunResult]) -> tuple[Baseline, ...]:
    """Return the baselines that names declare, or the default ones: the closed forms, and plain InfoNCE.

    Args:
        names: Names of runs, or of methods, which mean every run of that method.
        runs: The runs of the page, best first.

    Raises:
        UnknownNameError: No run has that name or method.
    """
    if not names:
        by_method = {"the closed forms": CLOSED_FORMS, f"plain {PLAIN}": (PLAIN,)}
        return tuple(
            Baseline(title=title, runs=tuple(run for run in runs if run.method in methods))
            for title, methods in by_method.items()
        )
    found = []
    for name in dict.fromkeys(names):
        meant = [run for run in runs if run.name == name] or [run for run in runs if run.method == name]
        if not meant:
            known = dict.fromkeys([*(run.name for run in runs), *(run.method for run in runs)])
            raise UnknownNameError("run to compare with", name, known, "--baseline")
        found.append(Baseline(title=name, runs=tuple(meant)))
    return tuple(found)


@dataclass(frozen=True)
class Leaderboard:
    """All runs of an evaluation, best first.

    Args:
        runs: The runs.
        measures: What was measured, in the order of the tables.
        chance: Measure → what random embeddings reach.
        k: Cut-off of the headline.
        confidence: Share of the bootstrap inside an interval.
        baselines: What every run is tested against, declared beforehand.
    """

    runs: tuple[RunResult, ...]
    measures: tuple[Measure, ...]
    chance: dict[str, float]
    k: int
    confidence: float
    baselines: tuple[Baseline, ...] = ()

    @property
    def names(self) -> list[str]:
        """The measures' names."""
        return [measure.name for measure in self.measures]

    @property
    def lead(self) -> RunResult:
        """The best run."""
        return self.runs[0]

    @property
    def baseline(self) -> RunResult | None:
        """The best run of the plain contrastive baseline, if there is one."""
        return next((run for run in self.runs if run.method == PLAIN), None)

    @property
    def best_trained(self) -> RunResult | None:
        """The best run of gradient descent, if there is one."""
        return next((run for run in self.runs if run.trained), None)

    @property
    def best_closed(self) -> RunResult | None:
        """The best run without training, if there is one."""
        return next((run for run in self.runs if not run.trained), None)

    def role(self, run: RunResult) -> Role:
        """Return the role that a run plays, which gives it its colour."""
        if run is self.lead:
            return "lead"
        if run is self.baseline:
            return "rival"
        return "closed" if run is (self.best_closed if self.lead.trained else self.best_trained) else "other"

    def value(self, run: RunResult, measure: str = MEAN) -> float:
        """Return a run's mean over seeds on a measure, the headline unless said otherwise."""
        return float(np.mean([run.mean(name) for name in self._names(measure)]))

    def interval(self, run: RunResult, measure: str = MEAN) -> tuple[float, float]:
        """Return the interval of a run's mean over seeds, for other test images."""
        return interval(self._drawn(run, measure), self.confidence, self.images(run, measure))

    @property
    def tests(self) -> int:
        """How many baselines were declared, present or not: what intervals and p of differences are corrected for."""
        return max(1, len(self.baselines))

    def gap(self, run: RunResult, other: RunResult, measure: str = MEAN) -> Difference:
        """Return the paired difference of two runs on a measure: it depends on these two and on `tests` alone."""
        drawn = self._drawn(run, measure) - self._drawn(other, measure)
        images = self.images(run, measure)
        low, high = interval(drawn, 1 - (1 - self.confidence) / self.tests, images, least=-1.0)
        return Difference(
            run=run.name,
            against=other.name,
            measure=measure,
            value=self.value(run, measure) - self.value(other, measure),
            low=low,
            high=high,
            p_value=min(1.0, self.tests * p_value(drawn, images)),
        )

    def images(self, run: RunResult, measure: str = MEAN) -> int:
        """Return how many images a measure's queries belong to."""
        directions = {MEAN: TEXT_RETRIEVAL} | {each.name: each.direction for each in self.measures}
        return len(set(run.answers[directions[measure]].queries.image_ids))

    def ranking(self, measure: str = MEAN) -> list[RunResult]:
        """Return the runs, best first on a measure; among equals the order of the headline stays."""
        return sorted(self.runs, key=lambda run: -self.value(run, measure))

    def seed_error(self, run: RunResult, other: RunResult, measure: str = MEAN) -> float:
        """Return the standard error over seeds of the difference of two runs; a single seed counts as 0."""
        parts = [np.mean([each.values[name] for name in self._names(measure)], axis=0) for each in (run, other)]
        return float(np.sqrt(sum(part.var(ddof=1) / len(part) for part in parts if len(part) > 1)))

    def apart(self, run: RunResult, other: RunResult, measure: str = MEAN) -> bool:
        """Whether a run is ahead of another beyond the noise of test images."""
        gap = self.gap(run, other, measure)
        return gap.low > 0 and gap.p_value <= 1 - self.confidence

    def settled(self, run: RunResult, other: RunResult, measure: str = MEAN) -> bool:
        """Whether a run is ahead of another beyond both that noise and twice the error over seeds."""
        ahead = self.gap(run, other, measure).value > 2 * self.seed_error(run, other, measure)
        return ahead and self.apart(run, other, measure)

    def held_against(self, run: RunResult) -> dict[str, list[RunResult]]:
        """Return baseline → its runs but for the run itself, best first; only baselines that are here."""
        found = {each.title: [other for other in each.runs if other is not run] for each in self.baselines}
        return {title: runs for title, runs in found.items() if runs}

    def not_beaten(self, run: RunResult) -> list[RunResult]:
        """Return the runs of all baselines that a run does not beat."""
        runs = (other for runs in self.held_against(run).values() for other in runs)
        return [other for other in runs if not self.settled(run, other)]

    def differences(self) -> list[Difference]:
        """Return the differences of every run against every run of a baseline, headline first."""
        rivals = {rival.name: rival for each in self.baselines for rival in each.runs}
        measures = (MEAN, *self.names)
        pairs = [(run, rival) for rival in rivals.values() for run in self.runs if run is not rival]
        return [self.gap(run, rival, name) for run, rival in pairs for name in measures]

    def _names(self, measure: str) -> tuple[str, ...]:
        return headline_names(self.k) if measure == MEAN else (measure,)

    def _drawn(self, run: RunResult, measure: str) -> Floats:
        """Return the bootstrap replicates of a measure [B]."""
        names = self._names(measure)
        return np.asarray(np.mean([run.replicates[name] for name in names], axis=0), dtype=np.float64)


def headline_names(k: int) -> tuple[str, str]:
    """Return the two measures that the headline is the mean of."""
    return f"{TEXT_RETRIEVAL}_recall@{k}", f"{IMAGE_RETRIEVAL}_recall@{k}"


def rank_runs(
    runs: Sequence[RunResult], measures: Mapping[Measure, float], confidence: float, baselines: Sequence[str] = ()
) -> Leaderboard:
    """Order runs, best first, names breaking ties.

    Args:
        runs: The runs.
        measures: Measure → what random embeddings reach.
        confidence: Share of the bootstrap inside an interval.
        baselines: Names of runs or methods that the others are tested against; the usual ones where not given.

    Raises:
        UnknownNameError: No run has the name or method of a baseline.
    """
    k = min(measure.k for measure in measures if measure.direction == IMAGE_RETRIEVAL)
    chance = {measure.name: value for measure, value in measures.items()}
    board = Leaderboard(tuple(sorted(runs, key=lambda run: run.name)), tuple(measures), chance, k, confidence)
    ranked = tuple(board.ranking())
    return replace(board, runs=ranked, baselines=declare_baselines(baselines, ranked))
