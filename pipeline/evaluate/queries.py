"""What is kept of every query, the rank of its right answer for each seed, and the numbers that ranks turn into.

`per_query.parquet` is the table of ranks; `compare` reads it back and joins two of them by query id. The numbers are
recall@k both ways, acc1, acc5 and mean_per_class_recall, named as CLIP_benchmark names them. Every one is a ratio of
sums over images (or the mean of such ratios over classes), so that one bootstrap serves all.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import UserError

IMAGE_RETRIEVAL = "image_retrieval"  # text → image
TEXT_RETRIEVAL = "text_retrieval"  # image → text
ZERO_SHOT = "zero_shot"
FILE = "per_query.parquet"
SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("image_id", pa.string()),
        ("label", pa.string()),
        ("direction", pa.string()),
        ("run", pa.string()),
        ("seed", pa.int64()),
        ("rank", pa.int64()),
    ]
)
Floats = NDArray[np.float64]


def zero_shot_direction(name: str) -> str:
    """Return the direction of a zero-shot set; the main data set has no name."""
    return f"{ZERO_SHOT}:{name}" if name else ZERO_SHOT


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
    ranks: NDArray[np.int64]
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
    if direction in (IMAGE_RETRIEVAL, TEXT_RETRIEVAL):
        return [Measure(name=f"{direction}_recall@{k}", direction=direction, k=k) for k in sorted(set(ks))]
    prefix = f"{direction.removeprefix(ZERO_SHOT + ':')}/" if direction != ZERO_SHOT else ""
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


def write_queries(path: Path, tables: Iterable[tuple[str, QueryRanks]]) -> None:
    """Write (run, ranks) pairs as one table, a row a query and seed."""
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for run, queries in tables:
            count = len(queries.ids)
            columns = [queries.ids, queries.image_ids, queries.labels, [queries.direction] * count, [run] * count]
            for seed, ranks in zip(queries.seeds, queries.ranks, strict=True):
                writer.write_table(pa.table([*columns, np.full(count, seed), ranks], schema=SCHEMA))


def read_queries(folder: Path, where: str = "") -> dict[str, dict[str, QueryRanks]]:
    """Read `per_query.parquet` of an evaluation's folder (`where` in errors): run → direction → ranks.

    Raises:
        UserError: The file is missing, damaged or of another make.
    """
    path = folder / FILE
    if not path.is_file():
        remedy = "run `pipeline evaluate` into that folder first"
        raise UserError(expected=f"the file {FILE}", found="none", where=where or str(folder), remedy=remedy)
    try:
        table = pq.ParquetFile(path).read(columns=SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, ValueError, OSError) as error:
        found = " ".join(str(error).split())[:200]
        raise UserError(expected="a table of ranks by query", found=found, where=str(path)) from error
    columns = {name: table.column(name).to_numpy(zero_copy_only=False) for name in SCHEMA.names}
    result: dict[str, dict[str, QueryRanks]] = {}
    for run, direction in dict.fromkeys(zip(columns["run"].tolist(), columns["direction"].tolist(), strict=True)):
        held = (columns["run"] == run) & (columns["direction"] == direction)
        rows = {name: column[held] for name, column in columns.items()}
        result.setdefault(run, {})[direction] = _stack(rows, direction, path)
    return result


def _stack(rows: dict[str, NDArray[np.generic]], direction: str, path: Path) -> QueryRanks:
    seeds = tuple(dict.fromkeys(rows["seed"].tolist()))
    parts = [rows["seed"] == seed for seed in seeds]
    ids = rows["query_id"][parts[0]].tolist()
    if any(rows["query_id"][part].tolist() != ids for part in parts) or len(set(ids)) < len(ids):
        found = f"other queries or repeated ones in direction {direction}"
        raise UserError(expected="the same queries for every seed", found=found, where=str(path))
    return QueryRanks(
        direction=direction,
        ids=ids,
        image_ids=rows["image_id"][parts[0]].tolist(),
        labels=rows["label"][parts[0]].tolist(),
        seeds=seeds,
        ranks=np.stack([rows["rank"][part] for part in parts]).astype(np.int64),
    )
