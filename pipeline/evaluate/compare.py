"""Two evaluations, query by query: `compare(a, b)` joins their per_query.parquet by query id and says what differs.

Run by `pipeline compare A B`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluate.output import OWN, read_queries
from pipeline.evaluate.results import QueryRanks, measures_of, resample, value_by_seed
from pipeline.metrics.bootstrap import interval, p_value
from pipeline.storage.contract import Place
from pipeline.storage.local import open_storage

Directions = dict[str, QueryRanks]


def compare(
    first: Place,
    second: Place,
    *,
    ks: Sequence[int] = (1, 5, 10),
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Compare two evaluations' folders.

    A folder with one run is compared with a folder with one run, whatever they are called; otherwise runs of the same
    name are compared. Only queries that both have count, and whole images are drawn.

    Args:
        first: Folder A.
        second: Folder B.
        ks: Cut-offs of recall@k.
        samples: Bootstrap samples.
        confidence: Share of the samples inside an interval.
        seed: Seed of the bootstrap.

    Returns:
        A row a run and metric: run, metric, a, b, difference (b − a), low, high, p_value, queries, left_out (queries
        that one of them lacks).

    Raises:
        UserError: A folder holds no table of queries, or the two share no run or no query.
    """
    folders = [open_storage(place) for place in (first, second)]
    left, right = (read_queries(folder.pull(OWN), str(folder)) for folder in folders)
    rows = []
    for name, a, b in _matched(left, right, f"{first} and {second}"):
        directions = [direction for direction in a if direction in b]
        if not directions:
            found = f"{', '.join(a)} and {', '.join(b)}"
            raise UserError(expected="a direction that both evaluated", found=found, where=f"{first} and {second}")
        for direction in directions:
            rows += _rows(name, a[direction], b[direction], ks, samples, confidence, seed)
    if not rows:
        raise UserError(
            expected="queries that both evaluations asked",
            found="no query id in common",
            where=f"{first} and {second}",
            remedy="evaluate both on the same split of the same data set",
        )
    return rows


def _matched(
    left: dict[str, Directions], right: dict[str, Directions], where: str
) -> list[tuple[str, Directions, Directions]]:
    if len(left) == len(right) == 1:
        (name, a), (other, b) = next(iter(left.items())), next(iter(right.items()))
        return [(name if name == other else f"{name} → {other}", a, b)]
    names = [name for name in left if name in right]
    if not names:
        found = f"{', '.join(left)} and {', '.join(right)}"
        raise UserError(expected="runs of the same name, or one run each", found=found, where=where)
    return [(name, left[name], right[name]) for name in names]


def _rows(
    name: str, a: QueryRanks, b: QueryRanks, ks: Sequence[int], samples: int, confidence: float, seed: int
) -> list[dict[str, Any]]:
    place = {query: index for index, query in enumerate(b.ids)}
    kept = [index for index, query in enumerate(a.ids) if query in place]
    if not kept:
        return []
    left_out = len(a.ids) + len(b.ids) - 2 * len(kept)
    a, b = a.take(kept), b.take([place[a.ids[index]] for index in kept])
    b = replace(b, image_ids=a.image_ids, labels=a.labels)
    measures = measures_of(a.direction, ks, len(set(a.labels)))
    images = len(set(a.image_ids))
    drawn = [resample(each, measures, samples, seed) for each in (a, b)]
    rows = []
    for measure in measures:
        values = [float(value_by_seed(measure, each).mean()) for each in (a, b)]
        differences = drawn[1][measure.name] - drawn[0][measure.name]
        low, high = interval(differences, confidence, images, least=-1.0)
        rows.append(
            {
                "run": name,
                "metric": measure.name,
                "a": values[0],
                "b": values[1],
                "difference": values[1] - values[0],
                "low": low,
                "high": high,
                "p_value": p_value(differences, images),
                "queries": len(kept),
                "left_out": left_out,
            }
        )
    return rows
