"""What an evaluation finds: ranks of every query, and the numbers that they turn into.

The numbers are recall@k both ways, acc1, acc5 and mean_per_class_recall, named as CLIP_benchmark names them. Every one
is a ratio of sums over images (or the mean of such ratios over classes), so that one bootstrap serves all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.bootstrap import Bootstrap

IMAGE_RETRIEVAL = "image_retrieval"  # text → image
TEXT_RETRIEVAL = "text_retrieval"  # image → text
RETRIEVAL = (TEXT_RETRIEVAL, IMAGE_RETRIEVAL)
ZERO_SHOT = "zero_shot"
CURVE = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100)
Floats = NDArray[np.float64]
Ranks = NDArray[np.int64]


def zero_shot_direction(name: str) -> str:
    """Return the direction of a zero-shot set; the main data set has no name."""
    return f"{ZERO_SHOT}:{name}" if name else ZERO_SHOT


def set_prefix(direction: str) -> str:
    """Return what the metrics of a zero-shot direction start with: the set's name and a slash, or nothing."""
    name = direction.removeprefix(ZERO_SHOT).removeprefix(":")
    return f"{name}/" if name else ""


@dataclass(frozen=True, kw_only=True)
class QueryRanks:
    """Ranks of one run in one direction: Q queries, S seeds."""

    direction: str
    """`image_retrieval`, `text_retrieval`, `zero_shot` or `zero_shot:<name>`."""
    ids: list[str]
    """Q query ids: a caption's, an image's."""
    image_ids: list[str]
    """Q images that the queries belong to: the captions of one image are drawn together by the bootstrap."""
    labels: list[str]
    """Q true classes; empty texts outside zero-shot."""
    seeds: tuple[int, ...]
    """S seeds of training."""
    ranks: Ranks
    """[S, Q], 1 is best; ties count against the query."""

    def take(self, rows: Sequence[int]) -> "QueryRanks":
        """Return the ranks of some of the queries, in this order."""
        ids, image_ids, labels = ([column[row] for row in rows] for column in (self.ids, self.image_ids, self.labels))
        return replace(self, ids=ids, image_ids=image_ids, labels=labels, ranks=self.ranks[:, list(rows)])


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of a direction: the share of queries with rank ≤ k, or the mean of that share over classes."""

    name: str
    """Key in metrics.json."""
    direction: str
    """Whose ranks it counts."""
    k: int
    """Cut-off."""
    macro: bool = False
    """Mean over classes instead of over queries."""


def measures_of(direction: str, ks: Sequence[int], classes: int = 0) -> list[Measure]:
    """Return the measures of a direction; acc5 only where there are five classes or more."""
    if direction in RETRIEVAL:
        return [Measure(name=f"{direction}_recall@{k}", direction=direction, k=k) for k in sorted(set(ks))]
    prefix = set_prefix(direction)
    found = [Measure(name=f"{prefix}acc1", direction=direction, k=1)]
    if classes >= 5:
        found.append(Measure(name=f"{prefix}acc5", direction=direction, k=5))
    return [*found, Measure(name=f"{prefix}mean_per_class_recall", direction=direction, k=1, macro=True)]


def value_by_seed(measure: Measure, queries: QueryRanks) -> Floats:
    """Return the measure for each seed [S]."""
    hits = queries.ranks <= measure.k
    if not measure.macro:
        return np.asarray(hits.mean(1), dtype=np.float64)
    labels = np.asarray(queries.labels)
    by_class = [hits[:, labels == label].mean(1) for label in sorted(set(queries.labels))]
    return np.asarray(np.mean(by_class, axis=0), dtype=np.float64)


def sums_by_cluster(
    measure: Measure, queries: QueryRanks, clusters: NDArray[np.int64], count: int
) -> tuple[Floats, Floats]:
    """Return hits (mean over seeds) and queries, summed over each cluster.

    Args:
        measure: What is counted.
        queries: Q ranks of S seeds.
        clusters: [Q] position of each query's image among M images.
        count: M.

    Returns:
        hits [M, K] and queries [M, K]; K is 1, or the number of classes of a macro measure.
    """
    hits = (queries.ranks <= measure.k).mean(0)
    columns, width = np.zeros(len(hits), dtype=np.int64), 1
    if measure.macro:
        names, columns = np.unique(np.asarray(queries.labels), return_inverse=True)
        width = len(names)
    numerator, denominator = np.zeros((count, width)), np.zeros((count, width))
    np.add.at(numerator, (clusters, columns), hits)
    np.add.at(denominator, (clusters, columns), 1.0)
    return numerator, denominator


def resample(queries: QueryRanks, measures: Sequence[Measure], samples: int, seed: int) -> dict[str, Floats]:
    """Return measure → bootstrap replicates [B]; directions over the same images share their draws."""
    names, clusters = np.unique(np.asarray(queries.image_ids), return_inverse=True)
    sums = [sums_by_cluster(measure, queries, clusters, len(names)) for measure in measures]
    drawn = Bootstrap(images=len(names), samples=samples, seed=seed).replicates(sums)
    return {measure.name: row for measure, row in zip(measures, drawn, strict=True)}


def chance_level(measure: Measure, captions: NDArray[np.int64], classes: int = 0) -> float:
    """Return what random embeddings reach on average.

    Args:
        measure: What is counted.
        captions: [M] number of captions of each image in the gallery.
        classes: C classes.
    """
    if measure.direction != TEXT_RETRIEVAL:
        return min(1.0, measure.k / max(len(captions) if measure.direction == IMAGE_RETRIEVAL else classes, 1))
    total = int(captions.sum())
    missed = np.ones(len(captions))
    for drawn in range(min(measure.k, total)):
        missed *= np.clip(total - captions - drawn, 0, None) / (total - drawn)
    return float(1 - missed.mean())


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
class Answered:
    """What a run answered in one direction, all seeds."""

    queries: QueryRanks
    calibration: Calibration
    precision: Floats | None = None
    """Mean average precision [S], in retrieval."""
    csls: Ranks | None = None
    """Ranks [S, Q] under CSLS, in retrieval where it was asked for."""
    confusion: Ranks | None = None
    """Counts [C, C] of class taken for class, all seeds together, in zero-shot."""

    def ranking(self) -> dict[str, float]:
        """Return mean and median rank and mean average precision, means over seeds; nothing outside retrieval."""
        if self.precision is None:
            return {}
        ranks = self.queries.ranks
        median = float(np.median(ranks, axis=1).mean())
        return {"mean_rank": float(ranks.mean()), "median_rank": median, "mAP": float(self.precision.mean())}

    def recall_curve(self, largest: int = CURVE[-1]) -> dict[int, float]:
        """Return k → recall@k up to a cut-off, mean over seeds."""
        return {k: float((self.queries.ranks <= k).mean()) for k in CURVE if k <= largest}


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run, evaluated on everything."""

    name: str
    """How it is called in tables: its method, or its folder where two runs share the method."""
    method: str
    address: str
    """Where the run lies."""
    seeds: tuple[int, ...]
    trained: bool
    """Whether gradient steps were made; otherwise it is a closed form."""
    answers: Mapping[str, Answered]
    """Direction → what was answered there."""
    values: Mapping[str, Floats]
    """Measure → value for each seed [S]."""
    replicates: Mapping[str, Floats]
    """Measure → bootstrap replicates of the mean over seeds [B]."""
    history: Mapping[int, list[dict[str, float]]] = field(default_factory=dict)
    """Seed → numbers of each logged step."""
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

    def under_csls(self, measure: Measure) -> float | None:
        """Return a measure of retrieval under CSLS, mean over seeds; None where CSLS was not asked for."""
        ranks = self.answers[measure.direction].csls
        return None if ranks is None else float((ranks <= measure.k).mean())

    @property
    def training_images(self) -> int | None:
        """How many images it was trained on; None where its record does not say."""
        pairs = self.record.get("pairs")
        found = pairs.get("training_images") if isinstance(pairs, Mapping) else None
        return found if isinstance(found, int) else None
