"""Numbers of groups of cells and differences between them, with intervals; the page says nothing that is not from here.

A group is all seeds of one kind of cell. Differences of ranked measures are drawn again over test images and seeds
together (2000 draws, paired: the same images and seeds for both sides); other metrics are compared seed by seed.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from examples.study.config import GridSweep, StudyConfig
from pipeline.align.recipe import Recipe, make_recipe
from pipeline.errors import UserError
from pipeline.evaluate.results import IMAGE_RETRIEVAL, TEXT_RETRIEVAL, ZERO_SHOT
from pipeline.metrics.bootstrap import Bootstrap, interval
from pipeline.sweep.cells import QUERIES, Cell, Result, read_ranks, score_of
from pipeline.sweep.config import Method

Floats = NDArray[np.float64]
SAMPLES, CONFIDENCE, SEED = 2000, 0.95, 0
CUTS = (1, 5, 10)
WEAK = 1 / 3
"""Share of the test captions that count as weakly matched."""


class Counted(NamedTuple):
    """One recall: whose ranks, the cut-off, and whether weakly matched captions alone count."""

    direction: str
    k: int
    weak: bool = False


MEASURES: dict[str, tuple[Counted, ...]] = {
    "mean_recall": tuple(Counted(way, k) for way in (TEXT_RETRIEVAL, IMAGE_RETRIEVAL) for k in CUTS),
    "weak_third_mean_recall": tuple(Counted(IMAGE_RETRIEVAL, k, weak=True) for k in CUTS),
    **{f"{way}_recall@{k}": (Counted(way, k),) for way in (TEXT_RETRIEVAL, IMAGE_RETRIEVAL) for k in CUTS},
}
"""Measures that are counted from ranks; `<set>/acc1` is one as well."""


class Kind(NamedTuple):
    """What the cells of a group have in common."""

    grid: str
    encoders: str
    row: str
    pairs: int | None
    captions: int | None
    layers: str
    swapped: float


@dataclass(frozen=True)
class Group:
    """All seeds of one kind of cell."""

    kind: Kind
    out: Path
    """Folder of its sweep."""
    results: dict[int, Result]
    """Seed → result."""

    def values(self, metric: str) -> Floats:
        """Return a metric of each seed [S]; `val_mean_recall` is that of the validation pairs.

        Raises:
            UserError: A cell lacks it.
        """
        if metric == "val_mean_recall":
            return np.array([score_of(each) for each in self.results.values()])
        lacking = [each for each in self.results.values() if metric not in each["test"]]
        if lacking:
            known = ", ".join(sorted(lacking[0]["test"]))
            raise UserError(expected=f"a metric of the cells ({known})", found=repr(metric), where=str(self.out))
        return np.array([each["test"][metric] for each in self.results.values()])

    def hits(self, counted: Counted, seeds: Sequence[int]) -> tuple[Floats, Floats]:
        """Return hits [S, M] summed over each of M images, and queries of each [M]."""
        queries = read_queries(self.out)
        owner, kept = queries.owners(counted.direction), queries.kept(counted)
        count = int(owner.max()) + 1
        rows = [
            np.bincount(owner[kept], weights=self._ranks(seed)[counted.direction][kept] <= counted.k, minlength=count)
            for seed in seeds
        ]
        return np.stack(rows).astype(np.float64), np.bincount(owner[kept], minlength=count).astype(np.float64)

    def _ranks(self, seed: int) -> Mapping[str, NDArray[np.int64]]:
        return _ranks(self.out, Cell(**self.results[seed]["cell"]))


@lru_cache(maxsize=64)
def _ranks(out: Path, cell: Cell) -> Mapping[str, NDArray[np.int64]]:
    return read_ranks(out, cell)


@dataclass(frozen=True)
class Queries:
    """Which queries the ranks of a sweep belong to."""

    data: dict[str, Any]

    def owners(self, direction: str) -> NDArray[np.int64]:
        """Return the image of each query [Q]."""
        if direction == IMAGE_RETRIEVAL:
            return np.array(self.data["caption_image"], dtype=np.int64)
        if direction == TEXT_RETRIEVAL:
            return np.arange(len(self.data["images"]), dtype=np.int64)
        return np.arange(len(self.data["classes"][direction.partition(":")[2]]["labels"]), dtype=np.int64)

    def kept(self, counted: Counted) -> NDArray[np.bool_]:
        """Return which queries count [Q]: all, or the captions that agree least with the others of their image."""
        count = len(self.owners(counted.direction))
        if not counted.weak:
            return np.ones(count, dtype=np.bool_)
        order = np.argsort(np.array(self.data["agreement"]), kind="stable")
        kept = np.zeros(count, dtype=np.bool_)
        kept[order[: max(1, round(WEAK * count))]] = True
        return kept


@lru_cache(maxsize=32)
def read_queries(out: Path) -> Queries:
    """Read a sweep's queries.json.

    Raises:
        UserError: It is missing or damaged.
    """
    path = out / QUERIES
    try:
        return Queries(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(expected="the queries of a sweep", found=str(error), where=str(path)) from error


def groups_of(parts: Iterable[GridSweep]) -> list[Group]:
    """Return the groups of finished cells, in the order of the study."""
    found: dict[Kind, Group] = {}
    for each in parts:
        for result in each.results:
            cell = dict(result["cell"])
            seed = cell.pop("seed")
            kind = Kind(grid=each.grid, encoders=each.encoders, **cell)
            found.setdefault(kind, Group(kind, each.sweep.out, {})).results[seed] = result
    return list(found.values())


def select(groups: Iterable[Group], **wanted: Any) -> list[Group]:
    """Return the groups whose kind has these values."""
    return [group for group in groups if all(getattr(group.kind, name) == value for name, value in wanted.items())]


def closed_rows(config: StudyConfig) -> list[str]:
    """Return the rows that need no training; the proposed one is no rival of itself, whatever it is."""
    return [row for row in rows_that(config, lambda recipe, _: not recipe.trained) if row != config.proposed]


def best_closed(groups: Iterable[Group], kind: Kind, closed: Sequence[str]) -> Group | None:
    """Return the closed form that is best on validation among the groups that differ from a kind by the row alone."""
    rivals = [group for group in groups if group.kind.row in closed and group.kind._replace(row=kind.row) == kind]
    return max(rivals, key=lambda group: float(group.values("val_mean_recall").mean()), default=None)


def rows_that(config: StudyConfig, holds: Callable[[Recipe, Method], bool]) -> list[str]:
    """Return the rows whose recipe and settings are of some kind."""
    return [row for row, each in config.methods.items() if holds(make_recipe(each.method, each.settings), each)]


class Effect(NamedTuple):
    """A difference, fractions, with its interval."""

    value: float
    low: float
    high: float
    cells: int
    """Kinds of cells that it is the mean of."""
    ahead: int
    """Of these, how many have a positive difference."""

    @property
    def clear(self) -> int:
        """1 where the interval lies above 0, −1 below, 0 where it holds it."""
        return int(self.low > 0) - int(self.high < 0)


def counted_in(measure: str) -> tuple[Counted, ...]:
    """Return what a measure counts; nothing for a metric that no ranks give."""
    if measure in MEASURES:
        return MEASURES[measure]
    name, slash, rest = measure.rpartition("/")
    return (Counted(f"{ZERO_SHOT}:{name}", 1),) if slash and rest == "acc1" else ()


def difference(pairs: Sequence[tuple[Group, Group]], measure: str) -> Effect:
    """Return the mean over pairs of groups of (first − second), with a 95 % interval.

    Args:
        pairs: One or several pairs of groups that were measured on the same queries.
        measure: A name of `MEASURES`, `<set>/acc1`, or a metric of the cells.

    Raises:
        UserError: No pairs, no seed in common, or an unknown metric.
    """
    seeds = _shared_seeds(pairs)
    counted = counted_in(measure)
    if counted:
        return _by_queries(pairs, counted, seeds)
    table = np.stack([_by_seed(a, measure, seeds) - _by_seed(b, measure, seeds) for a, b in pairs])
    per_seed = table.mean(axis=0)
    error = float(per_seed.std(ddof=1)) / len(seeds) ** 0.5 if len(seeds) > 1 else float("inf")
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(seeds) - 1)) * error if len(seeds) > 1 else float("inf")
    value = float(per_seed.mean())
    return Effect(value, value - reach, value + reach, len(pairs), int((table.mean(axis=1) > 0).sum()))


def _shared_seeds(pairs: Sequence[tuple[Group, Group]]) -> list[int]:
    seeds = (
        [seed for seed in pairs[0][0].results if all(seed in g.results for pair in pairs for g in pair)]
        if pairs
        else []
    )
    if not seeds:
        raise UserError(expected="cells with a seed in common", found="none", where="study")
    return seeds


def _by_seed(group: Group, metric: str, seeds: Sequence[int]) -> Floats:
    values = dict(zip(group.results, group.values(metric), strict=True))
    return np.array([values[seed] for seed in seeds])


def _by_queries(pairs: Sequence[tuple[Group, Group]], counted: Sequence[Counted], seeds: Sequence[int]) -> Effect:
    values: list[float] = []
    replicates: list[Floats] = []
    images = 0
    for a, b in pairs:
        parts = [_part(a, b, each, seeds) for each in counted]
        values.append(float(np.mean([value for value, _, _ in parts])))
        replicates.append(np.mean([drawn for _, drawn, _ in parts], axis=0))
        images = parts[0][2]
    low, high = interval(np.mean(replicates, axis=0), CONFIDENCE, images, least=-1.0)
    return Effect(float(np.mean(values)), low, high, len(pairs), sum(value > 0 for value in values))


def _part(a: Group, b: Group, counted: Counted, seeds: Sequence[int]) -> tuple[float, Floats, int]:
    """Return one recall's difference, its draws [B], and how many images were drawn from."""
    (hits, queries), (others, _) = a.hits(counted, seeds), b.hits(counted, seeds)
    gap = hits - others
    value = float(gap.mean(axis=0).sum() / queries.sum())
    return value, np.concatenate(list(_draws(gap, queries))), len(queries)


def _draws(gap: Floats, queries: Floats) -> Iterator[Floats]:
    seeds = np.random.default_rng(SEED + 1)
    for images in Bootstrap(images=gap.shape[1], samples=SAMPLES, seed=SEED).weights():
        drawn = seeds.multinomial(len(gap), [1 / len(gap)] * len(gap), size=len(images)) / len(gap)
        yield ((drawn @ gap) * images).sum(axis=1) / (images @ queries)
